"""Files from outside, damaged in every place: what can't be used is an error of ours that names the file."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pymupdf
import pytest

from mmrh_retriever import HeadScores, HeadScoresTable, HeadSet, files
from mmrh_retriever.errors import DataError, HeadSetError, MMRHError
from mmrh_retriever.evaluation import evaluate, read_run
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.evaluation.mmdocir.annotations import read_annotations
from mmrh_retriever.evaluation.rankers import RankerSpec
from mmrh_retriever.evaluation.tables import result_tables
from mmrh_retriever.files import FileModel, read_jsonl
from mmrh_retriever.heads.published import ModelFacts, load_head_set, resolve_heads
from mmrh_retriever.research.head_tables import head_set_summary, head_summary, heads_from
from mmrh_retriever.research.probes.long_documents import read_long_documents
from mmrh_retriever.research.probes.mm_niah import read_mm_niah
from mmrh_retriever.runs.journal import Journal
from tests.evaluation.conftest import data as data
from tests.factories import page_image

FACTS = ModelFacts("any", "qwen3", 3, 4, 32, (0, 1, 2))
DIGITS = "1" + "0" * 5000
HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -1e308, 0.5, "", " ", "0-0", "x" * 5000, "\0", "a\u2028b",
    f"{10**30}-0", "0-99999999999999999999", "../" * 2000, [], [[]], [0], ["a"], {}, {"a": 1}, [None] * 3,
]  # fmt: skip
TEXTS = [
    "", "{", "null", "[]", "{}", "[" * 100_000, '{"a":' * 100_000, DIGITS, f'{{"format": {DIGITS}}}', '"\\ud800"',
    "NaN", '{"format": "mmrh-head-set"}', "\ufeff{}",
]  # fmt: skip


def damaged(content: Any, times: int, seed: int = 0) -> Iterator[Any]:
    """Copies of JSON data with a hostile value in one place, or without that place."""
    rng = random.Random(seed)
    places = list(_places(content))
    for _ in range(times):
        made = copy.deepcopy(content)
        *way, last = rng.choice(places)
        holder = made
        for step in way:
            holder = holder[step]
        if rng.random() < 0.1:
            del holder[last]
        else:
            holder[last] = rng.choice(HOSTILE)
        yield made


def _places(content: Any) -> Iterator[tuple[Any, ...]]:
    steps = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for step, inner in steps:
        yield (step,)
        yield from ((step, *rest) for rest in _places(inner))


def outcome(action: Callable[[], Any], named: Path) -> None:
    """Run a reader; what it raises must be ours, of a readable length, and name the file."""
    said = ""
    try:
        action()
    except MMRHError as error:
        said = str(error)
    assert not said or (named.name in said and len(said) < 20_000), said[:3000]


@pytest.fixture
def head_files(tmp_path: Path) -> list[Path]:
    values = np.array([[0.1, 0.4, -0.2, 0.0], [0.4, 0.0, 0.3, 0.1], [0.2, 0.1, 0.0, 0.5]], dtype=np.float32)
    scores = [HeadScores(values, "org/model", "text", length, n_examples=3) for length in (1024, 2048)]
    table, heads = tmp_path / "scores.json", tmp_path / "heads.json"
    HeadScoresTable(scores).save(table)
    HeadSet.top(scores[0], count=3).save(heads)
    released = tmp_path / "released.json"
    entry = {"1024": values.tolist(), "2048": values.tolist()}
    released.write_text(json.dumps({"model": "m", "n_layers": 3, "n_heads": 4, "scores": {"text": entry}}))
    return [table, heads, released]


def read_heads(path: Path) -> None:
    found = heads_from(path)
    load_head_set(path)
    with suppress(HeadSetError):  # the file is whole, and says too little or fits no such model
        resolve_heads(path, FACTS)
        head_set_summary(found) if isinstance(found, HeadSet) else head_summary(found)


def test_files_of_heads(head_files: list[Path]) -> None:
    for file in head_files:
        read_heads(file)
        content = json.loads(file.read_text())
        for number, made in enumerate(damaged(content, 80)):
            target = file.with_name(f"damaged{number}.json")
            target.write_text(json.dumps(made))
            outcome(lambda target=target: read_heads(target), target)
        for text in TEXTS:
            file.write_text(text)
            with pytest.raises(MMRHError, match=file.name):
                read_heads(file)


def test_packed_files_of_heads(head_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gzip.compress(head_files[0].read_bytes())
    packed = tmp_path / "scores.json.gz"
    rng = random.Random(3)
    for _ in range(80):
        data = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.4 else whole)
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        packed.write_bytes(bytes(data))
        outcome(lambda: read_heads(packed), packed)
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 1_000_000)
    packed.write_bytes(gzip.compress(b" " * 1_000_001))
    with pytest.raises(DataError, match=r"scores.json.gz: more than 1,000,000 bytes, unpacked"):
        read_heads(packed)


@pytest.mark.parametrize("path", ["nul\0byte.json", "x" * 5000, "x" * 5000 + ".json", "\ud800.json"])
def test_paths_that_are_none(path: str) -> None:
    for action in (load_head_set, heads_from, HeadSet.load, HeadScoresTable.load, read_annotations, read_run):
        with pytest.raises(MMRHError):
            action(path)
    with pytest.raises(MMRHError):
        resolve_heads(path, FACTS)
    for reader in (read_long_documents, read_mm_niah):
        with pytest.raises(MMRHError):
            list(reader(path, path))


def test_annotations_and_questions(data: MMDocIR, tmp_path: Path) -> None:
    first, *_ = (tmp_path / "annotations.jsonl").read_text().strip().split("\n")
    pymupdf.open(tmp_path / "a.pdf").save(tmp_path / "b2.pdf")
    asked = {"document": "b2.pdf", "questions": [{"question": "Q?", "answer": ["1"], "pages": [1], "choices": ["1"]}]}
    page_image(0).save(tmp_path / "0.png")
    niah = {
        "id": 0, "ctxs": [{"text": "A needle. <image>"}], "image_list": ["0.png"], "question": "What?", "answer": "A",
        "needles": ["needle"], "placed_depth": [0.5], "choices": ["A"], "meta": {"context_length": 8},
        "positive_ctxs": [],
    }  # fmt: skip
    cases: list[tuple[str, Any, Callable[[Path], Any]]] = [
        ("annotations.jsonl", json.loads(first), read_annotations),
        ("questions.jsonl", asked, lambda path: list(read_long_documents(path, tmp_path))),
        ("retrieval-text_test.jsonl", niah, lambda path: list(read_mm_niah(path, tmp_path, tasks=["text"]))),
    ]
    for name, content, read in cases:
        file = tmp_path / name
        for line in [*map(json.dumps, damaged(content, 150)), *TEXTS]:
            file.write_text("\n".join([json.dumps(content) if name[0] == "q" else line, line, ""]))
            outcome(lambda read=read, file=file: read(file), file)


@pytest.fixture
def run(data: MMDocIR, tmp_path: Path) -> Path:
    evaluate(data, {"one": RankerSpec("random"), "two": RankerSpec("random", seed=1)}, tmp_path / "out")
    return tmp_path / "out"


def test_finished_runs(run: Path) -> None:
    whole = {path.name: path.read_text() for path in run.iterdir()}
    for name in ("settings.json", "journal.jsonl", "summary.json"):
        lines = whole[name].strip().split("\n") if name.endswith("l") else [whole[name]]
        for made in damaged(json.loads(lines[0]), 60):
            (run / name).write_text("\n".join([json.dumps(made), *lines[1:], ""]))
            outcome(lambda: result_tables(read_run(run)), run)
        (run / name).write_text(whole[name])
    result_tables(read_run(run))


def test_rows_with_unequal_measures_are_named(run: Path) -> None:
    journal = run / "journal.jsonl"
    lines = journal.read_text().strip().split("\n")
    last = json.loads(lines[-1])
    del last["rows"][-1]["measures"]["recall@1"]
    journal.write_text("\n".join([*lines[:-1], json.dumps(last), ""]))
    with pytest.raises(DataError, match=rf"journal.jsonl, line {len(lines)}: .* under two has other measures"):
        read_run(run)


class _Unit(FileModel):
    text: str


def test_lines_end_at_line_breaks_alone(tmp_path: Path) -> None:
    units = [_Unit(text=f"a{sign}b") for sign in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"]
    with Journal(tmp_path / "run", _Unit, lambda unit: unit.text, {}, what="test", resume=False) as journal:
        for unit in units:
            journal.add(unit)
    with Journal(tmp_path / "run", _Unit, lambda unit: unit.text, {}, what="test", resume=True) as again:
        assert list(again.done.values()) == units
    lines = read_jsonl(tmp_path / "run" / "journal.jsonl", _Unit, what="test")
    assert [unit for _, unit in lines] == units
