"""Files are kept whole, within a budget, and none but the server's own are touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from mmrh_retriever import SettingsError
from mmrh_retriever.library.records import PageRecord
from mmrh_retriever.pdf import WorkerLimits
from mmrh_retriever.serving.errors import RequestError
from mmrh_retriever.serving.file_store import FileRecord, FileStore, content_id
from tests.serving.conftest import small_pages

PLACES = ["folder", "memory://mmrh-tests"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "files")
    return f"{request.param}/{tmp_path.name}"


def record_of(content: bytes, name: str = "scan.png") -> FileRecord:
    page = PageRecord(text="said", size=(9.0, 9.0), label=None, metadata={})
    return FileRecord(id=content_id(content), name=name, kind="image", bytes=len(content), reader="x", pages=(page,))


def add(store: FileStore, content: bytes, name: str = "scan.png") -> str:
    record = record_of(content, name)
    store.add(record, content)
    return record.id


def missing(store: FileStore, file_id: str) -> bool:
    try:
        store.record(file_id)
    except RequestError as error:
        return error.status_code == 404
    return False


def test_files_outlive_the_store(place: str) -> None:
    first = FileStore(place, 10_000)
    file_id = add(first, b"content")
    first.close()
    store = FileStore(place, 10_000)
    assert store.record(file_id) == record_of(b"content")
    (page,) = store.pages(store.record(file_id), pixels=1000, limits=WorkerLimits())
    assert (page.text, page.doc_id, page.image.path.read_bytes()) == ("said", "scan.png", b"content")
    assert [record.id for record in store.records()] == [file_id]
    assert (store.delete(file_id), store.delete(file_id), missing(store, file_id)) == (True, False, True)
    store.close()


def test_the_same_content_is_one_file_under_its_last_name(place: str) -> None:
    store = FileStore(place, 10_000)
    assert add(store, b"content", "a.png") == add(store, b"content", "b.png")
    assert [record.name for record in store.records()] == ["b.png"]
    store.close()


def test_a_file_that_is_read_may_be_asked_for_and_sent_again(place: str) -> None:
    content = small_pages("Revenue rose.")
    page = PageRecord(text="said", size=(220.0, 160.0), label=None, metadata={})
    record = record_of(content).model_copy(update={"kind": "pdf", "pages": (page,)})
    store = FileStore(place, 100_000)
    store.add(record, content)
    for again in (lambda: store.record(record.id), lambda: store.add(record, content)):
        (read,) = store.pages(record, pixels=1000, limits=WorkerLimits())
        again()
        assert read.pixels().width == read.image.width
    store.close()


def test_files_used_last_come_first(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path), 10_000)
    ids = [add(store, bytes([number])) for number in range(3)]
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    store.record(ids[1])
    assert store.records()[0].id == ids[1]
    store.close()


def test_beyond_the_budget_the_files_used_longest_ago_go(place: str) -> None:
    store = FileStore(place, 3 * (1000 + len(record_of(b"").model_dump_json()) + 10))
    ids = [add(store, bytes([number]) * 1000) for number in range(3)]
    if "://" not in place:  # an object store keeps the time of writing alone
        for age, file_id in enumerate(reversed(ids)):
            for path in Path(place).glob(f"{file_id}*"):
                os.utime(path, (age + 1, age + 1))  # the first one added was used last
        ids.reverse()
    ids.append(add(store, b"x" * 1000))
    assert [missing(store, file_id) for file_id in ids] == [True, False, False, False]
    with pytest.raises(RequestError) as refused:
        add(store, b"y" * 10_000)
    assert refused.value.status_code == 413
    assert [missing(store, file_id) for file_id in ids] == [True, False, False, False]
    store.close()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "thesis.pdf"
    other.write_bytes(b"mine" * 1000)
    half = tmp_path / f".{'0' * 64}.mmrh-file.{'a' * 32}.tmp"
    half.write_bytes(b"half")
    os.utime(half, (1, 1))
    theirs = tmp_path / f".notes.{'a' * 32}.tmp"
    theirs.write_bytes(b"half")
    os.utime(theirs, (1, 1))
    store = FileStore(str(tmp_path), 1000)
    add(store, b"a" * 500)
    add(store, b"b" * 500)
    assert (other.exists(), half.exists(), theirs.exists(), len(store.records())) == (True, False, True, 1)


def test_a_damaged_or_renamed_record_is_no_file(tmp_path: Path) -> None:
    file_id = add(FileStore(str(tmp_path), 10_000), b"content")
    record = tmp_path / f"{file_id}.mmrh-file.json"
    other = "1" * 64
    (tmp_path / f"{other}.mmrh-file.json").write_bytes(record.read_bytes())
    (tmp_path / f"{other}.mmrh-file").write_bytes(b"content")
    record.write_bytes(b"{")
    store = FileStore(str(tmp_path), 10_000)
    assert missing(store, file_id)
    assert missing(store, other)
    assert store.records() == []


def test_without_a_place_files_end_with_the_store() -> None:
    store = FileStore(None, 10_000)
    path = store.storage.local(f"{add(store, b'content')}.mmrh-file")
    assert path.read_bytes() == b"content"
    assert store.without_paths(f"{path} is damaged") == f"{path.name} is damaged"
    store.close()
    assert not path.parent.exists()


def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="nowhere://"):
        FileStore("nowhere://bucket", 10_000)
