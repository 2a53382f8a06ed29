"""Head files, head scores, evaluations, annotations: valid ones round trip, spoiled ones are refused."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

from mmrh_retriever import HeadScoresTable, HeadSet
from mmrh_retriever.evaluation.mmdocir.annotations import read_annotations
from mmrh_retriever.evaluation.rows import MEASURES, read_parts
from mmrh_retriever.settings import read_prompt
from tests.hostile import damage
from tests.hostile.outcomes import expect

SET = {
    "format": "mmrh-head-set", "version": 1, "heads": ["1-0", "0-3", "2-2"], "scores": [0.5, 0.25, 0.125],
    "model": "some/model", "n_layers": 3, "n_heads": 4, "tasks": ["text"], "context_length": 8192, "source": "made",
}  # fmt: skip
SCORES = {
    "format": "mmrh-head-scores", "version": 1, "model": "some/model", "n_layers": 2, "n_heads": 2,
    "scores": [{"task": "text", "context_length": 8192, "values": [[0.5, 0.25], [None, 0.0]], "n_examples": 4}],
}  # fmt: skip
RELEASED = {
    "model": "some/model", "n_layers": 2, "n_heads": 2, "scores": {"text": {"8192": [[0.5, 0.25], [0.125, 0.0]]}},
}  # fmt: skip


def heads(rng: random.Random, folder: Path) -> None:
    """What is read of a spoiled file of heads lies within the file's own layers and heads, and is finite."""
    content = rng.choice([SET, SCORES, RELEASED])
    path = _write(rng, folder, damage.json_text(rng, content), "heads.json")
    if (content is SET) == (rng.random() < 0.9):
        found = HeadSet.load(path)
        expect(len(found) > 0 and all(head.layer >= 0 and head.head >= 0 for head in found), f"heads {found}")
    else:
        table = HeadScoresTable.load(path)
        for scores in table.values():
            expect(scores.values.shape == (scores.n_layers, scores.n_heads), f"{scores.values.shape}")


def parsed(rng: random.Random, folder: Path) -> None:
    """Heads written as text are refused, or are those that the text says, in its order."""
    chosen = rng.sample([(layer, head) for layer in range(12) for head in range(8)], rng.randrange(1, 6))
    given = ",".join(f"{layer}-{head}" for layer, head in chosen)
    if rng.random() < 0.4:
        found = HeadSet.parse(given, n_layers=12, n_heads=8)
        expect([tuple(head) for head in found] == chosen, f"{given} became {found}")
        found.save(folder / "set.json")
        expect(HeadSet.load(folder / "set.json") == found, "a saved set is another one")
        return
    spoiled = damage.spoiled(rng, given.encode()).decode("utf-8", "surrogateescape")
    again = HeadSet.parse(spoiled, n_layers=12, n_heads=8)
    written = [tuple(map(int, part.split("-"))) for part in spoiled.split(",") if part.strip()]
    expect([tuple(head) for head in again] == written, f"{spoiled!r} became {again}")


def evaluations(rng: random.Random, folder: Path) -> None:
    """Of an evaluation's spoiled folder every row that is read has all measures of its level, or none is read."""
    measures = dict.fromkeys(MEASURES["page"], 0.5)
    row = {"ranker": "a", "document": "d", "question": 0, "text": "How?\u2028", "domain": "News", "types": ["Table"],
           "source": "text", "gold": [0], "scores": [0.5, None], "measures": measures}  # fmt: skip
    part = {"ranker": "a", "document": "d", "line": 1, "level": "page", "seconds": 0.5, "rows": [row]}
    settings = {"format": "mmrh-run", "settings": {
        "format": "mmrh-evaluation", "version": 3, "level": "page", "dataset": {"documents": 1}}}  # fmt: skip
    contents: dict[str, Any] = {"settings.json": settings, "journal.jsonl": part, "summary.json": {"a": {"micro": {}}}}
    spoiled = rng.choice([None, *contents])
    for name, content in contents.items():
        text = damage.json_text(rng, content) if name == spoiled else json.dumps(content, ensure_ascii=False)
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape" if "\udc80" <= max(text, default="") <=
                                                "\udcff" else "replace") + b"\n")  # fmt: skip
    if spoiled is None:
        expect(read_parts(folder)[1]["a"][0].rows[0].text == "How?\u2028", "another row")
        return
    level, found = read_parts(folder)
    rows = [row for parts in found.values() for part in parts for row in part.rows]
    expect(all(row.measures.keys() == MEASURES[level] for row in rows), "rows of unequal measures")


def annotations(rng: random.Random, folder: Path) -> None:
    """Spoiled annotations are refused with their line, or every question has gold pages and boxes in order."""
    layout = {"page": 0, "page_size": [200, 300], "bbox": [1, 2, 30, 40]}
    question = {"Q": "How\u2028?", "A": "", "page_id": [0, 1], "type": "['Table', 'Chart']", "layout_mapping": [layout]}
    document = {"doc_name": "a.pdf", "domain": "News", "page_indices": [0, 1], "questions": [question]}
    lines = [damage.json_text(rng, document) if rng.random() < 0.8 else json.dumps(document, ensure_ascii=False)]
    path = _write(rng, folder, "\n".join([*lines, json.dumps({**document, "doc_name": "b.pdf"})]), "a.jsonl")
    for found in read_annotations(path):
        expect(
            found.questions and all(asked.pages and asked.text for asked in found.questions), "a question of nothing"
        )


def prompts(rng: random.Random, folder: Path) -> None:
    """A spoiled file of a prompt's wording is refused, or gives one whose fields are of their types."""
    content = {"instruction": "Find it.", "page_label": "Page {number}: ", "count_image_markers": True}
    found = read_prompt(_write(rng, folder, damage.json_text(rng, content), "prompt.json"))
    expect(isinstance(found.instruction, str) and isinstance(found.count_image_markers, bool), f"{found}")


def _write(rng: random.Random, folder: Path, text: str, name: str) -> Path:
    """A file of this text, seldom one that is packed (or a bomb), a pipe, a loop of links, or not there."""
    data = text.encode("utf-8", "surrogatepass")
    path = folder / name
    kind = rng.randrange(40)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        return Path(rng.choice(["/dev/zero", "\x00", "a" * 5000, "", "/proc/self/mem", "missing.json"]))
    elif kind == 3:
        path = folder / f"{name}.gz"
        path.write_bytes(damage.spoiled(rng, gzip.compress(data)))
    elif kind == 4:
        path = folder / f"{name}.gz"
        block = gzip.compress(bytes(16 * 1024**2), 6)
        path.write_bytes(block * 40)
    else:
        path.write_bytes(data)
    return path
