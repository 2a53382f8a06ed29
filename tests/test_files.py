"""Files: lines and schemas, messages that name what was read, packed files, writes that are all or nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import (
    FileModel,
    format_of,
    leftovers,
    read_json,
    read_jsonl,
    read_text,
    write_atomically,
    write_json,
)


class Question(FileModel):
    text: str
    page: int


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


# JSON lines


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    texts = ["one\u2028two", "three\u0085four", "five\rsix", "seven\u000ceight", "nine\nten"]
    path = tmp_path / "questions.jsonl"
    lines = [json.dumps({"text": text, "page": 1}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join([*lines[:2], "", "  ", *lines[2:]]), encoding="utf-8")  # the last line has no end
    read = list(read_jsonl(path, Question, what="question"))
    assert [question.text for _, question in read] == texts
    assert [number for number, _ in read] == [1, 2, 5, 6, 7]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"text": "a", "page": 1}\r\n\r\n{"text": "b", "page": 2}\r\n')
    assert [number for number, _ in read_jsonl(path, Question, what="question")] == [1, 3]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "b", "page": "two"}', "page: Input should be a valid integer (got 'two')"),
        ('{"text": "b"}', "page: Field required"),
        ('{"text": "b", "page": 2, "pages": 3}', "pages: Extra inputs are not permitted (got '3')"),
        ('{"text": "b", ', "all of it: Invalid JSON"),
        ("[1, 2]", "all of it: Input should be an object"),
    ],
)
def test_a_malformed_line_is_named_with_file_number_field_and_what_it_is(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"text": "a", "page": 1}\n\n' + line + "\n")
    lines = read_jsonl(path, Question, what="question")
    assert next(lines)[0] == 1
    message = failure(lambda: next(lines))
    assert message.startswith(f"{path}, line 3: not a valid question: ")
    assert problem in message


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"text": "\xff\xfe", "page": 1}\n')
    assert "line 1: not a valid question" in failure(lambda: list(read_jsonl(path, Question, what="question")))


def test_missing_and_unreadable_files_say_what_they_should_be(tmp_path: Path) -> None:
    for read in (
        lambda path: list(read_jsonl(path, Question, what="question")),
        lambda path: read_json(path, Question, what="question"),
        lambda path: read_text(path, what="question"),
    ):
        missing = failure(lambda read=read: read(tmp_path / "none.jsonl"))
        assert f"{tmp_path / 'none.jsonl'}: no such file" in missing
        assert "question" in missing
        folder = failure(lambda read=read: read(tmp_path))
        assert f"{tmp_path}: can't be read" in folder
        assert "question" in folder


def test_many_problems_are_counted(tmp_path: Path) -> None:
    class Wide(FileModel):
        a: int
        b: int
        c: int
        d: int
        e: int

    path = tmp_path / "wide.json"
    path.write_text("{}")
    assert "a: Field required" in failure(lambda: read_json(path, Wide, what="row"))
    assert "and 2 more" in failure(lambda: read_json(path, Wide, what="row"))


# Text, packed or not


def test_text_is_unpacked_by_its_ending(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.json", tmp_path / "a.json.gz"
    plain.write_text("δ\n", encoding="utf-8")
    packed.write_bytes(gzip.compress("δ\n".encode()))
    assert read_text(plain, what="text") == read_text(packed, what="text") == "δ\n"


@pytest.mark.parametrize("damage", ["not gzip", "cut", "body", "check"])
def test_damaged_packed_files_are_refused(tmp_path: Path, damage: str) -> None:
    whole = bytearray(gzip.compress(b"".join(b"%d, " % number for number in range(3000)), mtime=0))
    path = tmp_path / "a.json.gz"
    if damage == "not gzip":
        whole = bytearray(b"{}")
    elif damage == "cut":
        whole = whole[:-12]
    elif damage == "body":
        whole[10] = 0xFF  # no such kind of block
    else:
        whole[-6] ^= 0xFF
    path.write_bytes(whole)
    message = failure(lambda: read_text(path, what="head set"))
    assert f"{path}: can't be read" in message
    assert "head set" in message


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes("ö".encode("latin-1"))
    assert "Expected a UTF-8 file: the question" in failure(lambda: read_text(path, what="question"))


def test_the_declared_format() -> None:
    assert format_of('{"format": "mmrh-run"}', where="here", what="run") == "mmrh-run"
    assert format_of('{"format": 3}', where="here", what="run") is None
    assert format_of("{}", where="here", what="run") is None
    for text in ("", "{", "[1]", '"text"', "[" * 200_000, "9" * 5_000):
        message = failure(lambda text=text: format_of(text, where="here", what="run"))
        assert message.startswith("here: ")
        assert "a run" in message


# Writing


def test_packed_files_have_the_same_bytes_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one.json.gz", tmp_path / "other.json.gz"
    content = {"text": "δ", "values": [0.1, 1e-9, 3]}
    write_json(one, content)
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.0)
    write_json(other, content)
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(read_text(one, what="content")) == content


def test_models_and_plain_data_are_written_alike(tmp_path: Path) -> None:
    path = tmp_path / "question.json"
    write_json(path, Question(text="a", page=1), indent=None)
    assert path.read_text() == '{"text":"a","page":1}\n'
    assert read_json(path, Question, what="question") == Question(text="a", page=1)
    write_json(path, {"text": "a", "page": 1})
    assert read_json(path, Question, what="question") == Question(text="a", page=1)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    assert "No space left" in failure(lambda: write_atomically(path, b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert "its folder exists" in failure(lambda: write_atomically(tmp_path / "none" / "a.json", b"new"))


def test_leftovers_are_files_of_interrupted_writes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    for name in (".hidden.tmp", "a.tmp", ".a.json.0123.tmp"):
        (tmp_path / name).touch()

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            write_atomically(tmp_path / "below" / "a.json", b"new")
    assert [item.parent.name for item in leftovers(tmp_path)] == ["below"]
