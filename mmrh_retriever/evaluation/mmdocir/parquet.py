"""Pages and layout boxes from the two parquet files of MMDocIR, a document at a time (extra ``eval``)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.mmdocir.annotations import Document
from mmrh_retriever.types import Page, Region

logger = logging.getLogger(__name__)

TextColumn = Literal["ocr_text", "vlm_text"]
"""Which of the official texts of a page stands for its text layer."""
_BATCH = 32


@dataclass(frozen=True, slots=True)
class ParquetPages:
    """Pages and layout boxes from the official parquet files, read a document at a time."""

    pages_file: Path
    layouts_file: Path | None = None
    text: TextColumn = "ocr_text"

    def check(self, documents: Sequence[Document], *, name: str) -> None:
        """Compare the files with the annotations before anything is run.

        Raises:
            DataError: a missing file or column, documents without rows, rows beyond the end.
        """
        self._check_file(self.pages_file, ["doc_name", "image_binary", self.text], documents, _page_rows, name)
        if self.layouts_file is not None:
            columns = ["doc_name", "page_id", "type", "bbox", "page_size"]
            self._check_file(self.layouts_file, columns, documents, _layout_rows, name)

    def pages(self, document: Document, *, regions: bool) -> list[Page]:
        """The document's pages, images still packed; ``size`` is in points where the layouts file gives it."""
        layouts, sizes = self._layouts(document, regions=regions)
        found = []
        rows = self._rows(self.pages_file, ["image_binary", self.text], document, document.page_rows)
        for index, row in enumerate(rows):
            text = row[self.text]
            if row["image_binary"] is None and not (text and text.strip()):
                raise PageError(
                    f"{self.pages_file}: page {index + 1} of {document.name} has neither image_binary nor {self.text}.",
                    source=document.name,
                    page=index,
                )
            page = Page(
                image=row["image_binary"],
                text=text if text and text.strip() else None,
                doc_id=document.name,
                index=index,
                size=sizes.get(index),
                regions=tuple(layouts.get(index, ())),
            )
            found.append(page)
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
        columns = ["page_id", "type", "bbox", "page_size", *texts]
        found: dict[int, list[Region]] = {}
        skipped = 0
        for row in self._rows(self.layouts_file, columns, document, document.layout_rows):
            index, box = int(row["page_id"]), tuple(float(value) for value in row["bbox"])
            sizes[index] = (float(row["page_size"][0]), float(row["page_size"][1]))
            words = next((row[name] for name in texts if row[name] and row[name].strip()), None)
            try:
                found.setdefault(index, []).append(Region(box=box, kind=str(row["type"]), text=words))  # type: ignore[arg-type]
            except PageError:
                skipped += 1
        if skipped:
            logger.warning("%s: %d layout boxes without area were left out.", document.name, skipped)
        return found, sizes

    def _rows(self, path: Path, columns: Sequence[str], document: Document, rows: range | None) -> Iterator[Any]:
        if rows is None:
            raise DataError(f"Line {document.line} ({document.name}) has no row indices, which parquet files need.")
        for row in _read_rows(path, ["doc_name", *columns], rows):
            if row["doc_name"] != document.name:
                raise DataError(
                    f"{path}: rows {rows.start} to {rows.stop - 1} should be {document.name}, found {row['doc_name']}. "
                    "Annotations and parquet files are of different editions."
                )
            yield row

    def _check_file(
        self,
        path: Path,
        columns: Sequence[str],
        documents: Sequence[Document],
        rows: Callable[[Document], range | None],
        name: str,
    ) -> None:
        lacking = sorted(set(columns) - set(_columns(path)))
        if lacking:
            raise DataError(f"{path}: columns {lacking} are missing, found {_columns(path)}. Get the official file.")
        total = _parquet(path).metadata.num_rows
        for document in documents:
            wanted = rows(document)
            if wanted is None or wanted.stop > total:
                rows_given = "no rows" if wanted is None else f"rows up to {wanted.stop - 1}"
                raise DataError(
                    f"{name}, line {document.line}: {document.name} has {rows_given}; {path} has {total}. Annotations "
                    "and parquet files are of different editions."
                )


def _page_rows(document: Document) -> range | None:
    return document.page_rows


def _layout_rows(document: Document) -> range | None:
    return document.layout_rows


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


def _read_rows(path: Path, columns: Sequence[str], rows: range) -> Iterator[dict[str, Any]]:
    """The given rows, and no more of the file in memory than a batch of them."""
    with _parquet(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            if start < rows.stop and stop > rows.start:
                yield from _read_group(file, group, columns, range(rows.start - start, rows.stop - start))
            start = stop


def _read_group(file: Any, group: int, columns: Sequence[str], rows: range) -> Iterator[dict[str, Any]]:
    start = 0
    for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=list(columns)):
        first, last = max(rows.start - start, 0), min(rows.stop - start, batch.num_rows)
        if first < last:
            yield from batch.slice(first, last - first).to_pylist()
        start += batch.num_rows
        if start >= rows.stop:
            return
