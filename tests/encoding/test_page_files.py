"""Files of encoded pages: known as ours, tied to their names, damage found wherever it is."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmrh_retriever import Page, PageStore, SettingsError
from tests.encoding.test_page_store import reranker_for, scores
from tests.factories import page_image


@pytest.fixture
def pages() -> list[Page]:
    return [Page(image=page_image(seed), index=seed) for seed in range(3)]


def filled(folder: Path, pages: list[Page]) -> list[Path]:
    """A folder that holds the pages' files."""
    scores(reranker_for(independent=True, store=PageStore(folder=folder)), pages)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == len(pages)
    return files


def rebuilt(folder: Path, pages: list[Page], caplog: pytest.LogCaptureFixture) -> str:
    """What was warned about while all pages were made again, with the right scores."""
    expected = scores(reranker_for(independent=True), pages)
    store = PageStore(folder=folder)
    with caplog.at_level(logging.WARNING, logger="mmrh_retriever.encoding.page_store"):
        assert scores(reranker_for(independent=True, store=store), pages) == pytest.approx(expected, abs=1e-6)
    assert store.misses == len(pages)
    assert caplog.text.count("is not used and will be made again") == len(pages)
    return caplog.text


def test_files_that_are_not_a_stores_own_are_never_touched(tmp_path: Path, pages: list[Page]) -> None:
    own = filled(tmp_path, pages)[0]
    tensors = {"weight": torch.zeros(100_000)}
    others = ["model.safetensors", "0a1b-3.safetensors", f"ff{own.name}", f"{own.stem}.bin", ".a.1.2.part"]
    for name in others[:3]:
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
    for name in others[3:]:
        (tmp_path / name).write_bytes(b"kept here")
    for name in others:
        os.utime(tmp_path / name, (0, 0))
    before = {name: (tmp_path / name).read_bytes() for name in others}
    scores(reranker_for(independent=True, store=PageStore(0, tmp_path, disk=1)), [Page(image=page_image(9))])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_copy_under_another_name_is_not_taken_for_its_page(
    tmp_path: Path, pages: list[Page], caplog: pytest.LogCaptureFixture
) -> None:
    files = filled(tmp_path, pages)
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)
    assert "holds another page" in rebuilt(tmp_path, pages, caplog)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"scored": [[', '"scored": [[1'),
        ('"extent": ', '"extent": 1'),
        ('"grid": [', '"grid": [1'),
        ('"axes": 3', '"axes": 1'),
    ],
)
def test_a_damaged_description_is_found(
    old: str, new: str, tmp_path: Path, pages: list[Page], caplog: pytest.LogCaptureFixture
) -> None:
    for file in filled(tmp_path, pages):
        change_header(file, old, new)
    assert "its contents are damaged" in rebuilt(tmp_path, pages, caplog)


def change_header(file: Path, old: str, new: str) -> None:
    """Write a safetensors file again with another description of the page, and nothing else changed."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    described = header["__metadata__"]["segment"]
    assert old in described
    header["__metadata__"]["segment"] = described.replace(old, new)
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])


def test_what_killed_writers_left_is_deleted_at_the_next_write(tmp_path: Path, pages: list[Page]) -> None:
    stem = filled(tmp_path, pages[:1])[0].name.removesuffix(".safetensors")
    old, new, foreign = (tmp_path / name for name in (f".{stem}.7.8.part", f".{stem}.7.9.part", ".video.mp4.1.2.part"))
    for path in (old, new, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (time.time() - 7200,) * 2)
    scores(reranker_for(independent=True, store=PageStore(folder=tmp_path)), pages[:1])
    assert old.exists(), "nothing is written, nothing is deleted"
    scores(reranker_for(independent=True, store=PageStore(folder=tmp_path)), pages)
    assert [path.exists() for path in (old, new, foreign)] == [False, True, True]
    shutil.rmtree(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "store", tmp_path / ("long" * 1000), "nul\0byte"):
        with pytest.raises(SettingsError, match="store's folder .* can't be made"):
            PageStore(folder=folder)


def test_a_link_that_leads_nowhere_is_made_again(tmp_path: Path, pages: list[Page]) -> None:
    first, second, _ = filled(tmp_path, pages)
    for path, target in ((first, first), (second, tmp_path / "missing")):
        path.unlink()
        path.symlink_to(target)
    store = PageStore(folder=tmp_path)
    expected = scores(reranker_for(independent=True), pages)
    assert scores(reranker_for(independent=True, store=store), pages) == pytest.approx(expected, abs=1e-6)
    assert store.misses == 2
