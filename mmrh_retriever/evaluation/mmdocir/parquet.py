"""Pages and layout boxes from the two parquet files of MMDocIR, a document at a time (extra ``eval``).

Columns of the pages file: ``doc_name``, ``domain``, ``passage_id``, ``image_path``, ``image_binary``, ``ocr_text``,
``vlm_text``. Columns of the layouts file: ``doc_name``, ``domain``, ``type``, ``layout_id``, ``page_id``,
``image_path``, ``image_binary``, ``bbox``, ``page_size``, ``ocr_text``, ``vlm_text`` and, in some editions, ``text``.
``doc_name`` stands there without ``.pdf``. An image is in ``image_binary`` or a file at ``image_path``, beside the
parquet file or in a folder :data:`IMAGE_FOLDERS` there.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.mmdocir.annotations import Document
from mmrh_retriever.types import Page, Region

logger = logging.getLogger(__name__)

TextColumn = Literal["ocr_text", "vlm_text"]
"""Which of the official texts of a page stands for its text layer."""
IMAGE_FOLDERS = ("", "page_images", "layout_images", "doc_miscellaneous/page_images", "doc_miscellaneous/layout_images")
"""Where image files are looked for, from the parquet file's folder."""
_BATCH = 32
_NAMES = 65_536  # rows of names alone
_LAYOUT_COLUMNS = ("page_id", "type", "bbox", "page_size")
_LAYOUT_TEXTS = ("text", "ocr_text", "vlm_text")
_OPTIONAL_COLUMNS = ("layout_id", *_LAYOUT_TEXTS)
_IMAGE_COLUMNS = ("image_binary", "image_path")


@dataclass(frozen=True, slots=True)
class ParquetPages:
    """Pages and layout boxes from the official parquet files, read a document at a time.

    With ``layout_images`` each box comes with its own image from the layouts file.
    """

    pages_file: Path
    layouts_file: Path | None = None
    text: TextColumn = "ocr_text"
    layout_images: bool = False

    def check(self, documents: Sequence[Document], *, name: str) -> None:
        """Compare the files with the annotations, which messages call ``name``, before anything is run."""
        self._check_file(self.pages_file, (self.text,), True, [(item, item.page_rows) for item in documents], name)
        if self.layouts_file is not None:
            rows = [(item, item.layout_rows) for item in documents]
            self._check_file(self.layouts_file, _LAYOUT_COLUMNS, self.layout_images, rows, name)

    def _check_file(
        self, path: Path, columns: Sequence[str], images: bool, rows: Sequence[tuple[Document, range | None]], name: str
    ) -> None:
        """See that a file has its columns, and that each document's rows are there and its own."""
        found = _columns(path)
        lacking = sorted({"doc_name", *columns} - {*found})
        if images and not {*_IMAGE_COLUMNS} & {*found}:
            lacking.append(" or ".join(_IMAGE_COLUMNS))
        if lacking:
            raise DataError(f"{path}: columns {lacking} are missing, found {found}. Get the official file.")
        with _parquet(path) as file:
            batches = file.iter_batches(batch_size=_NAMES, columns=["doc_name"])
            names = [stem(str(value)) for batch in batches for value in batch.column(0).to_pylist()]
        for document, wanted in rows:
            if wanted is None or wanted.stop > len(names):
                given = "no rows" if wanted is None else f"rows up to {wanted.stop - 1}"
                raise DataError(
                    f"{name}, line {document.line}: {document.name} has {given}; {path} has {len(names)}. "
                    "Annotations and parquet files are of different editions."
                )
            for other in names[wanted.start : wanted.stop]:
                _check_name(other, document, wanted, path)

    def pages(self, document: Document, *, regions: bool) -> list[Page]:
        """The document's pages, images still packed; ``size`` is in points where the layouts file gives it."""
        layouts, sizes = self._layouts(document, regions=regions)
        found = []
        rows = _rows(self.pages_file, (self.text,), document, document.page_rows, images=True)
        for index, row in enumerate(rows):
            text = row[self.text]
            text = text if text and text.strip() else None
            image = _image(row, self.pages_file, f"page {index + 1} of {document.name}")
            if image is None and text is None:
                raise PageError(
                    f"{self.pages_file}: page {index + 1} of {document.name} has neither image_binary nor image_path "
                    f"nor {self.text}.",
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
        found: dict[int, list[Region]] = {}
        skipped = 0
        columns = (*_LAYOUT_COLUMNS, *_OPTIONAL_COLUMNS)
        rows = _rows(self.layouts_file, columns, document, document.layout_rows, images=self.layout_images)
        for number, row in enumerate(rows):
            index = int(row["page_id"])
            sizes[index] = (float(row["page_size"][0]), float(row["page_size"][1]))
            words = next((row[name] for name in _LAYOUT_TEXTS if row.get(name) and row[name].strip()), None)
            layout_id = int(row.get("layout_id", number))
            image = None
            if self.layout_images:
                what = f"layout {layout_id} of {document.name}"
                image = _image(row, self.layouts_file, what)
                if image is None:
                    raise DataError(f"{self.layouts_file}: {what} has neither image_binary nor image_path.")
            try:
                region = Region(row["bbox"], str(row["type"]), words, {"layout_id": layout_id}, image)
            except PageError:
                skipped += 1
            else:
                found.setdefault(index, []).append(region)
        if skipped:
            logger.warning("%s: %d layout boxes without area were left out.", document.name, skipped)
        for boxes in found.values():
            boxes.sort(key=lambda region: int(region.metadata["layout_id"]))
        return found, sizes


def stem(name: str) -> str:
    """A document's name without ``.pdf``: the annotations have it, the parquet files don't."""
    return name[:-4] if name.lower().endswith(".pdf") else name


def _check_name(found: str, document: Document, rows: range, path: Path) -> None:
    if stem(found) != stem(document.name):
        raise DataError(
            f"{path}: rows {rows.start} to {rows.stop - 1} should be {document.name}, found {found}. Annotations and "
            "parquet files are of different editions."
        )


def _image(row: dict[str, Any], path: Path, what: str) -> bytes | Path | None:
    """The image of a row: its bytes, or the file that it names; ``None`` if it has neither."""
    if row.get("image_binary"):
        return bytes(row["image_binary"])
    written = row.get("image_path")
    if not written:
        return None
    relative = PurePosixPath(written)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{path}: the image_path {written!r} of {what} leads out of the folder. Correct it.")
    places = [path.parent / folder / relative for folder in IMAGE_FOLDERS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise DataError(
            f"{path}: {what} has no image_binary, and its image file {written!r} is neither in {path.parent} nor in "
            f"{', '.join(IMAGE_FOLDERS[1:])} there. Unpack the image archives there."
        )
    return file


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


def _rows(
    path: Path, columns: Sequence[str], document: Document, rows: range | None, *, images: bool
) -> Iterator[dict[str, Any]]:
    """A document's rows, checked to be its own, and no more of the file in memory than a batch of them.

    Of the columns, and those of images if wanted, a row holds what the file has.
    """
    if rows is None:
        raise DataError(f"Line {document.line} ({document.name}) has no row indices, which parquet files need.")
    with _parquet(path) as file:
        wanted = {"doc_name", *columns, *(_IMAGE_COLUMNS if images else ())}
        there = [name for name in file.schema_arrow.names if name in wanted]
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = list(accumulate(sizes, initial=0))
        groups = [group for group in range(len(sizes)) if starts[group] < rows.stop and starts[group + 1] > rows.start]
        start = starts[groups[0]]
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=groups, columns=there):
            first, last = max(rows.start - start, 0), min(rows.stop - start, batch.num_rows)
            for row in batch.slice(first, last - first).to_pylist() if first < last else ():
                _check_name(str(row["doc_name"]), document, rows, path)
                yield row
            start += batch.num_rows
            if start >= rows.stop:
                return
