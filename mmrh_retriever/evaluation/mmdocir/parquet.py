"""Pages and layout boxes from the two parquet files of MMDocIR, a document at a time (extra ``eval``)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.mmdocir.annotations import Document
from mmrh_retriever.types import Page, Region

logger = logging.getLogger(__name__)

TextColumn = Literal["ocr_text", "vlm_text"]
"""Which of the official texts of a page stands for its text layer."""
_BATCH = 32
_LAYOUT_COLUMNS = ("page_id", "type", "bbox", "page_size")


@dataclass(frozen=True, slots=True)
class ParquetPages:
    """Pages and layout boxes from the official parquet files, read a document at a time."""

    pages_file: Path
    layouts_file: Path | None = None
    text: TextColumn = "ocr_text"

    def check(self, documents: Sequence[Document], *, name: str) -> None:
        """Compare the files with the annotations, which messages call ``name``, before anything is run."""
        given: list[tuple[Path | None, tuple[str, ...], list[range | None]]] = [
            (self.pages_file, ("image_binary", self.text), [item.page_rows for item in documents]),
            (self.layouts_file, _LAYOUT_COLUMNS, [item.layout_rows for item in documents]),
        ]
        for path, columns, rows in given:
            if path is None:
                continue
            found = _columns(path)
            lacking = sorted({"doc_name", *columns} - {*found})
            if lacking:
                raise DataError(f"{path}: columns {lacking} are missing, found {found}. Get the official file.")
            total = _parquet(path).metadata.num_rows
            for document, wanted in zip(documents, rows, strict=True):
                if wanted is None or wanted.stop > total:
                    rows_given = "no rows" if wanted is None else f"rows up to {wanted.stop - 1}"
                    raise DataError(
                        f"{name}, line {document.line}: {document.name} has {rows_given}; {path} has {total}. "
                        "Annotations and parquet files are of different editions."
                    )

    def pages(self, document: Document, *, regions: bool) -> list[Page]:
        """The document's pages, images still packed; ``size`` is in points where the layouts file gives it."""
        layouts, sizes = self._layouts(document, regions=regions)
        found = []
        rows = _rows(self.pages_file, ("image_binary", self.text), document, document.page_rows)
        for index, row in enumerate(rows):
            image, text = row["image_binary"], row[self.text]
            text = text if text and text.strip() else None
            if image is None and text is None:
                raise PageError(
                    f"{self.pages_file}: page {index + 1} of {document.name} has neither image_binary nor {self.text}.",
                    source=document.name,
                    page=index,
                )
            boxes = tuple(layouts.get(index, ()))
            found.append(Page(image, text, document.name, index, sizes.get(index), regions=boxes))
        return found

    def _layouts(
        self, document: Document, *, regions: bool
    ) -> tuple[dict[int, list[Region]], dict[int, tuple[float, float]]]:
        """Boxes and page sizes by page index. Sizes fall back on those beside the gold boxes."""
        sizes = {gold.page: gold.page_size for question in document.questions for gold in question.layouts}
        if not regions:
            return {}, sizes
        if self.layouts_file is None:
            raise DataError(f"Layout boxes of {document.name} were asked for. Give the layouts parquet file.")
        texts = [name for name in ("text", "ocr_text", "vlm_text") if name in _columns(self.layouts_file)]
        found: dict[int, list[Region]] = {}
        skipped = 0
        for row in _rows(self.layouts_file, (*_LAYOUT_COLUMNS, *texts), document, document.layout_rows):
            index = int(row["page_id"])
            sizes[index] = (float(row["page_size"][0]), float(row["page_size"][1]))
            words = next((row[name] for name in texts if row[name] and row[name].strip()), None)
            try:
                region = Region(row["bbox"], str(row["type"]), words)
            except PageError:
                skipped += 1
            else:
                found.setdefault(index, []).append(region)
        if skipped:
            logger.warning("%s: %d layout boxes without area were left out.", document.name, skipped)
        return found, sizes


def _parquet(path: Path) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "Reading parquet files needs pyarrow: pip install 'mmrh-retriever[eval]'. A folder of PDFs needs none."
        ) from error
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path of the parquet file.")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: not a parquet file ({error}). Download it again.") from error


def _columns(path: Path) -> list[str]:
    return list(_parquet(path).schema_arrow.names)


def _rows(path: Path, columns: Sequence[str], document: Document, rows: range | None) -> Iterator[dict[str, Any]]:
    """A document's rows, checked to be its own, and no more of the file in memory than a batch of them."""
    if rows is None:
        raise DataError(f"Line {document.line} ({document.name}) has no row indices, which parquet files need.")
    with _parquet(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = list(accumulate(sizes, initial=0))
        groups = [group for group in range(len(sizes)) if starts[group] < rows.stop and starts[group + 1] > rows.start]
        start = starts[groups[0]]
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=groups, columns=["doc_name", *columns]):
            first, last = max(rows.start - start, 0), min(rows.stop - start, batch.num_rows)
            for row in batch.slice(first, last - first).to_pylist() if first < last else ():
                if row["doc_name"] != document.name:
                    raise DataError(
                        f"{path}: rows {rows.start} to {rows.stop - 1} should be {document.name}, found "
                        f"{row['doc_name']}. Annotations and parquet files are of different editions."
                    )
                yield row
            start += batch.num_rows
            if start >= rows.stop:
                return
