"""New, changed, removed and unreadable files; what is kept on disk, and what of it is not trusted."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrh_retriever import PageError, SettingsError
from mmrh_retriever.library import contents, watching
from mmrh_retriever.library.watching import Watch
from tests.factories import page_image
from tests.library.made_files import QUESTION, found, library, make


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, as they are."""
    names: list[str] = []
    read = contents.read_document

    def noted(path: Path, *args: Any, **more: Any) -> Any:
        names.append(path.name)
        return read(path, *args, **more)

    monkeypatch.setattr(contents, "read_document", noted)
    return names


def texts(of: Any) -> list[str | None]:
    return [page.text for page in of.pages]


def test_new_changed_and_removed_files_are_noticed_at_each_question(tmp_path: Path, reads: list[str]) -> None:
    make(tmp_path / "a.pdf", "harbour", "lifeboat")
    asked = library(tmp_path, first_stage="bm25", candidates=1)
    assert [one[:2] for one in found(asked)] == [("a.pdf", 2)]
    make(tmp_path / "b.pdf", "lifeboat lifeboat")
    assert [one[:2] for one in found(asked)] == [("b.pdf", 1)]
    make(tmp_path / "b.pdf", "anchor", "lifeboat lifeboat")
    assert [one[:2] for one in found(asked)] == [("b.pdf", 2)]
    (tmp_path / "b.pdf").unlink()
    assert [one[:2] for one in found(asked)] == [("a.pdf", 2)]
    assert reads == ["a.pdf", "b.pdf", "b.pdf"]


def test_changes_are_seen_by_content_whatever_the_times_say(tmp_path: Path) -> None:
    path = make(tmp_path / "a.pdf", "harbour")
    old, other = path.read_bytes(), make(tmp_path / "other.pdf", "anchors").read_bytes()
    size = max(len(old), len(other))  # comments behind the end make them alike in size
    path.write_bytes(old.ljust(size, b"\n"))
    asked = library(path, first_stage="bm25")
    assert texts(asked) == ["harbour"]
    before = path.stat()
    path.write_bytes(other.ljust(size, b"\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert texts(asked) == ["anchors"]


def test_files_that_settled_are_not_read_whole_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.pdf", "harbour")
    watch = Watch([path])
    digests = []
    file_digest = watching.hashlib.file_digest
    monkeypatch.setattr(watching.hashlib, "file_digest", lambda *args: (digests.append(1), file_digest(*args))[1])
    first, _ = watch.look()
    assert watch.look()[0] == first
    assert len(digests) == 2  # it has only just been written
    later = time.time_ns() + watching.SETTLED
    monkeypatch.setattr(watching.time, "time_ns", lambda: later)
    for _ in range(3):
        assert watch.look()[0] == first
    assert len(digests) == 3


def test_a_touched_file_keeps_its_record_and_can_be_drawn(tmp_path: Path, reads: list[str]) -> None:
    path = make(tmp_path / "a.pdf", "harbour")
    asked = library(path, folder=tmp_path / "kept")
    first = found(asked)
    os.utime(path, (1, 1))
    assert found(asked) == first
    assert asked.pages[0].pixels().width > 0
    assert reads == ["a.pdf"]


def test_unchanged_files_keep_their_pages(tmp_path: Path) -> None:
    make(tmp_path / "a.pdf", "harbour")
    asked = library(tmp_path)
    (page,) = asked.pages
    shelf = asked.refresh()
    assert asked.refresh() is shelf
    make(tmp_path / "b.pdf", "anchor")
    assert asked.pages[0] is page


@pytest.mark.parametrize("stage", ["bm25", "all"])
def test_a_file_that_cannot_be_read_does_not_lose_the_others(
    tmp_path: Path, stage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "good.pdf", "lifeboat")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    missing = tmp_path / "missing.pdf"
    with pytest.raises(PageError, match=r"broken\.pdf"):
        library(tmp_path, first_stage=stage).rank(QUESTION)
    asked = library([tmp_path, missing], first_stage=stage, on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert [one[:2] for one in found(asked)] == [("good.pdf", 1)]
        found(asked)
    reasons = {skipped.path: str(skipped.error) for skipped in asked.skipped}
    assert reasons.keys() == {str(tmp_path / "broken.pdf"), str(missing)}
    assert "No such file" in reasons[str(missing)]
    assert len([record for record in caplog.records if "left out" in record.message]) == 2  # once each
    make(missing, "anchor")
    (tmp_path / "broken.pdf").unlink()
    assert texts(asked) == ["lifeboat", "anchor"]
    assert asked.skipped == ()


def test_a_page_that_cannot_be_drawn_is_left_out_and_named(tmp_path: Path) -> None:
    page_image(1).save(tmp_path / "good.png")
    page_image(2, (300, 400)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for stage in ("bm25", "all"):
        with pytest.raises(PageError, match=r"cut\.png"):
            library(tmp_path, first_stage=stage).rank(QUESTION)
        asked = library(tmp_path, first_stage=stage, on_error="skip")
        assert [one[0] for one in found(asked)] == ["good.png"]
        (skipped,) = asked.skipped
        assert (skipped.path, skipped.page) == (str(tmp_path / "cut.png"), asked.pages[0])


def test_an_image_that_changes_before_it_is_drawn_is_not_taken_for_another(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    page_image(1).save(path)
    (page,) = library(path).pages
    assert page.size == (96.0, 128.0)
    Image.new("RGB", (96, 128), "red").save(path)
    with pytest.raises(PageError, match="has changed"):
        page.pixels()


# On disk


def records(folder: Path) -> list[Path]:
    return sorted((folder / "documents").glob("*.mmrh-document"))


def test_a_library_is_opened_again_without_reading_a_pdf(tmp_path: Path, reads: list[str]) -> None:
    make(tmp_path / "in" / "a.pdf", "harbour", "lifeboat", "")
    page_image(1).save(tmp_path / "in" / "b.png")
    options = {"folder": tmp_path / "kept", "first_stage": "bm25", "layout": True}
    first = library(tmp_path / "in", **options)
    before = found(first)
    again = library(tmp_path / "in", **options)
    assert found(again) == before
    assert reads == ["a.pdf", "b.png"]
    for one, other in zip(first.pages, again.pages, strict=True):
        assert (one.text, one.size, one.label, one.doc_id, one.index) == (
            other.text, other.size, other.label, other.doc_id, other.index,
        )  # fmt: skip
        assert one.metadata == other.metadata
        assert [(region.box, region.kind, region.text) for region in one.regions] == [
            (region.box, region.kind, region.text) for region in other.regions
        ]
        assert one.pixels_key == other.pixels_key
        assert one.pixels().tobytes() == other.pixels().tobytes()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other", "older"])
def test_damaged_records_are_made_again(
    tmp_path: Path, reads: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "in" / "a.pdf", "harbour", "lifeboat")
    make(tmp_path / "in" / "b.pdf", "anchor")
    kept = tmp_path / "kept"
    before = texts(library(tmp_path / "in", folder=kept))
    one, other = records(kept)
    data = one.read_bytes()
    damaged = {
        "flipped": data.replace(b"harbour", b"parlour").replace(b"anchor", b"banker"),
        "cut": data[:-9],
        "empty": b"",
        "other": other.read_bytes(),
        "older": data.replace(b"mmrh-library-1", b"mmrh-library-0"),
    }[damage]
    if damage == "older":
        payload = damaged.partition(b"\n")[2]
        damaged = watching.hashlib.blake2b(payload, digest_size=16).hexdigest().encode() + b"\n" + payload
    assert damaged != data
    one.write_bytes(damaged)
    reads.clear()
    with caplog.at_level(logging.WARNING):
        assert texts(library(tmp_path / "in", folder=kept)) == before
    assert len(reads) == 1
    assert (damage == "other") or "made again" in caplog.text
    assert one.read_bytes() == data


def test_records_of_removed_files_and_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    make(tmp_path / "in" / "a.pdf", "harbour")
    make(tmp_path / "in" / "b.pdf", "anchor")
    kept = tmp_path / "kept"
    library(tmp_path / "in", folder=kept).refresh()
    left = kept / "documents" / f".x.mmrh-document.{'0' * 32}.tmp"
    mine = kept / "documents" / "notes.txt"
    for path in (left, mine):
        path.write_text("")
    (tmp_path / "in" / "b.pdf").unlink()
    library(tmp_path / "in", folder=kept).refresh()
    assert len(records(kept)) == 1
    assert not left.exists()
    assert mine.exists()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "a.pdf", "harbour")
    asked = library(tmp_path / "a.pdf", folder=tmp_path / "kept")
    (tmp_path / "kept" / "documents").rmdir()
    (tmp_path / "kept" / "documents").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert texts(asked) == ["harbour"]
    assert "can't be kept" in caplog.text
    with pytest.raises((PageError, SettingsError, ValueError), match="can't be made"):
        library(tmp_path / "a.pdf", folder=tmp_path / "a.pdf")
