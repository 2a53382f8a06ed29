"""Parquet files in their published form: names without ``.pdf``, images in the file or beside it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmrh_retriever import Page, Region
from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.ranking.regions import Crops
from tests.evaluation.official_files import Official, write_official

pytest.importorskip("pyarrow", reason="pip install pyarrow to read parquet files")


@pytest.fixture(params=["binary", "files"])
def official(request: pytest.FixtureRequest, data: MMDocIR, tmp_path: Path) -> Official:
    lines = [json.loads(line) for line in (tmp_path / "annotations.jsonl").read_text().splitlines()]
    return write_official(tmp_path / "official", lines, tmp_path, images=request.param)


def test_pages_and_boxes_are_those_of_the_pdfs(official: Official, data: MMDocIR) -> None:
    read = MMDocIR.from_parquet(official.annotations, official.pages, official.layouts)
    for ours, theirs in zip(read.documents, data.documents, strict=True):
        for page, drawn in zip(read.pages(ours, regions=True), data.pages(theirs, regions=True), strict=True):
            assert (page.doc_id, page.index, page.text or None) == (drawn.doc_id, drawn.index, drawn.text or None)
            assert [region.box for region in page.regions] == [region.box for region in drawn.regions]
            assert page.size == drawn.size or not page.regions
            assert page.pixels().size == (200, 300)
            assert all(region.image is None for region in page.regions)


def test_boxes_bring_their_own_images_if_asked_for(official: Official) -> None:
    read = MMDocIR.from_parquet(official.annotations, official.pages, official.layouts, layout_images=True)
    pages = read.pages(read.documents[0], regions=True)
    crops = Crops(pages).pages
    assert [crop.metadata["layout_id"] for crop in crops] == list(range(len(crops)))
    assert [crop.metadata["page_index"] for crop in crops] == [page.index for page in pages for _ in page.regions]
    regions = [region for page in pages for region in page.regions]
    for crop, region in zip(crops, regions, strict=True):
        stored = Image.open(io.BytesIO(region.image) if isinstance(region.image, bytes) else str(region.image))
        assert crop.pixels().tobytes() == stored.tobytes()


def test_small_and_long_images_of_boxes_are_shown_in_white() -> None:
    line = Image.new("RGB", (900, 2))
    page = Page(text="x", size=(9, 9), regions=(Region((0, 0, 9, 1), image=line), Region((0, 0, 1, 1), image=line)))
    (first, _) = Crops([page]).pages
    assert first.pixels().size == (900, 9)
    with pytest.raises(PageError, match="region of page 1: these bytes are not an image"):
        Crops([replace(page, regions=(Region((0, 0, 9, 1), image=b"no"),))]).pages[0].pixels()


def test_image_files_that_are_missing_or_lead_out_are_named(official: Official, tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = parquet.read_table(official.pages).to_pylist()
    for path, message in (("gone.jpg", "neither in .*page_images"), ("../a.jpg", "leads out of the folder")):
        changed = [{**row, "image_path": path, "image_binary": None} for row in rows]
        parquet.write_table(arrow.Table.from_pylist(changed), official.pages)
        read = MMDocIR.from_parquet(official.annotations, official.pages)
        with pytest.raises(DataError, match=message):
            read.pages(read.documents[0])
    rows = parquet.read_table(official.layouts).to_pylist()
    emptied = [{**row, "image_path": None, "image_binary": b""} for row in rows]
    parquet.write_table(arrow.Table.from_pylist(emptied), official.layouts)
    read = MMDocIR.from_parquet(official.annotations, official.pages, official.layouts, layout_images=True)
    with pytest.raises(DataError, match=r"layout 0 of a\.pdf has neither image_binary nor image_path"):
        read.source.pages(read.documents[0], regions=True)
