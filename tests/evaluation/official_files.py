"""MMDocIR's three files in their published form, made from PDFs and questions about them.

As there, the parquet files' ``doc_name`` lacks ``.pdf``, row indices in the annotations are first and last row, both
included, and ``type`` is a Python list in a string or a plain word.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmrh_retriever import Page, read_pdf
from mmrh_retriever.ranking.regions import Crops


@dataclass(frozen=True)
class Official:
    """Where the files stand."""

    annotations: Path
    pages: Path
    layouts: Path


def write_official(
    folder: Path, lines: Sequence[dict[str, Any]], pdfs: Path, *, images: str = "binary", dpi: int = 72
) -> Official:
    """Write the files for the documents of annotation lines, whose PDFs are in a folder, under their official names.

    ``images`` is ``"binary"`` (in the parquet files) or ``"files"`` (beside them, where ``image_path`` says).
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    found = Official(
        *(folder / f"MMDocIR_{name}" for name in ("annotations.jsonl", "pages.parquet", "layouts.parquet"))
    )
    written: list[dict[str, Any]] = []
    pages: list[dict[str, Any]] = []
    layouts: list[dict[str, Any]] = []
    for line in lines:
        read = read_pdf(pdfs / line["doc_name"], layout=True, dpi=dpi, strict=False)
        boxes = [(page, region) for page in read for region in page.regions]
        written.append(
            {
                **line,
                "page_indices": [len(pages), len(pages) + len(read) - 1],
                "layout_indices": [len(layouts), len(layouts) + len(boxes) - 1],
            }
        )
        shared = {"doc_name": line["doc_name"].removesuffix(".pdf"), "domain": line["domain"]}
        for page in read:
            path = f"{shared['doc_name']}_{page.index}.jpg"
            pages.append(
                {**shared, "passage_id": str(page.index), **_image(page.pixels(), folder / "page_images", path, images),
                 "ocr_text": page.text or "", "vlm_text": ""}
            )  # fmt: skip
        for number, ((page, region), crop) in enumerate(zip(boxes, Crops(read).pages, strict=True)):
            path = f"{shared['doc_name']}_{page.index}_{number}.jpg"
            layouts.append(
                {**shared, "type": region.kind, "layout_id": number, "page_id": page.index,
                 **_image(crop.pixels(), folder / "layout_images", path, images), "bbox": list(region.box),
                 "page_size": list(_size(page)), "ocr_text": region.text or "", "vlm_text": ""}
            )  # fmt: skip
    found.annotations.write_text("".join(json.dumps(line) + "\n" for line in written))
    for target, rows in ((found.pages, pages), (found.layouts, layouts)):
        parquet.write_table(arrow.Table.from_pylist(rows), target, row_group_size=7)  # documents cross row groups
    return found


def _size(page: Page) -> tuple[float, float]:
    assert page.size is not None
    return page.size


def _image(image: Image.Image, folder: Path, path: str, images: str) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    if images == "binary":
        return {"image_path": path, "image_binary": stream.getvalue()}
    folder.mkdir(exist_ok=True)
    (folder / path).write_bytes(stream.getvalue())
    return {"image_path": path, "image_binary": None}
