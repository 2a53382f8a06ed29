"""The MM-NIAH reader on a small generated sample in MMLongBench's form and in the original, and on damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrh_retriever.errors import DataError
from mmrh_retriever.research.probes.mm_niah import as_identical_image, as_rendered_text, read_mm_niah
from mmrh_retriever.types import Page
from tests.factories import page_image

NEEDLE = "The penguin counted exactly 214 kites."
TEXT = {
    "id": 0,
    "ctxs": [
        {"text": f"A first paragraph. {NEEDLE} More of it.", "doc_id": "a"},
        {"text": "<image>"},
        {"text": "End."},
    ],
    "image_list": ["niah/0.png"],
    "question": "How many kites did the penguin count?",
    "answer": "214",
    "depth": 0.2,
    "needles": [NEEDLE],
}
IMAGE = {
    "id": 1,
    "ctxs": [{"text": "Text. <image> text"}, {"text": "<image>"}],
    "image_list": ["niah/0.png", "niah/1.png"],
    "question": "Which of these is part of an image in the document?",
    "answer": 1,
    "depth": 0.8,
    "needle_image_list": ["niah/1.png"],
    "choices_image": ["niah/2.png", "niah/3.png"],
}


PUBLISHED_TEXT = {
    "id": "retrieval-text-3",
    "ctxs": [
        {"type": "text", "text": f"A first paragraph. {NEEDLE} More of it.", "len": 20, "has_answer": True},
        {"type": "image", "text": "<image>", "image": "niah/0.png"},
        {"type": "text", "text": "End.", "len": 1},
    ],
    "positive_ctxs": [{"type": "text", "text": NEEDLE, "len": 9}],
    "image_list": ["mm-niah/niah/0.png"],
    "needle_image_list": [],
    "question": "How many kites did the penguin count?",
    "answer": "214",
    "depth": 0.2,
}
PUBLISHED_IMAGE = {
    "id": "retrieval-image-3",
    "ctxs": [{"text": "Text."}, {"text": "<image>"}, {"text": "<image>"}, {"text": "<image>"}],
    "positive_ctxs": [{"type": "image", "text": "<image>", "image": "niah/1.png", "has_ans": True}],
    "image_list": ["mm-niah/other/1.png", "mm-niah/niah/1.png", "mm-niah/niah/3.png"],
    "needle_image_list": ["mm-niah/niah/3.png"],  # the right option, which another item happens to show
    "choices_image": ["mm-niah/niah/2.png", "mm-niah/niah/3.png"],
    "question": "Which of these is part of an image in the document?",
    "answer": 1,
    "depth": 0.8,
}
"""Records in the form of the published files."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for folder in ("niah", "other"):
        (tmp_path / "mm-niah" / folder).mkdir(parents=True)
        for number in range(4):
            page_image(number).save(tmp_path / "mm-niah" / folder / f"{number}.png")
    write(tmp_path / "retrieval-text_test_K8_dep6.jsonl", [PUBLISHED_TEXT])
    write(tmp_path / "retrieval-image_test_K16_dep6.jsonl", [PUBLISHED_IMAGE])
    return tmp_path


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    (tmp_path / "niah").mkdir()
    for number in range(4):
        page_image(number).save(tmp_path / "niah" / f"{number}.png")
    write(tmp_path / "retrieval-text_test_K8_dep6.jsonl", [TEXT, {**TEXT, "id": 1, "depth": 0.4}])
    write(tmp_path / "retrieval-image_test_K16_dep6.jsonl", [IMAGE])
    return tmp_path


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_all_tasks_and_lengths_are_read(sample: Path) -> None:
    probes = list(read_mm_niah(sample, sample))
    conditions = [(probe.task, probe.context_length) for probe in probes]
    assert conditions == [
        ("image", 16384),
        ("identical_image", 16384),
        ("text", 8192),
        ("rendered_text", 8192),
        ("text", 8192),
        ("rendered_text", 8192),
    ]
    assert len({probe.name for probe in probes}) == len(probes)
    assert [probe.depth for probe in probes] == [0.8, 0.8, 0.2, 0.2, 0.4, 0.4]


def test_a_text_needle_is_located(sample: Path) -> None:
    (probe,) = read_mm_niah(sample / "retrieval-text_test_K8_dep6.jsonl", sample, tasks=["text"], limit=1)
    (evidence,) = probe.evidence
    assert probe.items[evidence.item].text[evidence.start : evidence.stop] == NEEDLE
    assert [item.image is not None for item in probe.items] == [False, True, False]
    rendered = as_rendered_text(probe)
    assert [item.image is not None for item in rendered.items] == [False, True, False, True, False]
    assert rendered.items[rendered.evidence[0].item].image.text == NEEDLE
    assert rendered.items[0].text == "A first paragraph."
    with pytest.raises(DataError, match="no needle in a text"):
        as_rendered_text(rendered)


def test_image_needles_have_options_and_become_identical_images(sample: Path) -> None:
    (probe,) = read_mm_niah(sample, sample, tasks=["image"], lengths=[16384])
    assert (probe.answer, probe.choices, probe.gold) == ("B", ("A", "B"), {3})
    assert probe.options[1].doc_id == "niah/3.png"
    same = as_identical_image(probe)
    assert same.items[same.evidence[0].item].doc_id == "niah/3.png"
    assert [part.doc_id for part in same.question if isinstance(part, Page)] == ["niah/3.png"]
    with pytest.raises(DataError, match="no picture"):
        as_identical_image(same)


def test_the_needle_is_what_positive_ctxs_say(published: Path) -> None:
    image, same, text, rendered = read_mm_niah(published, published)
    assert (image.gold, image.answer) == ({2}, "B"), "neither the option's picture nor another of the needle's name"
    assert same.items[2].doc_id == "mm-niah/niah/3.png"
    (span,) = text.evidence
    assert text.items[span.item].text[span.start : span.stop] == NEEDLE
    assert rendered.items[rendered.evidence[0].item].image.text == NEEDLE


@pytest.mark.parametrize("positive", [[{"type": "image", "image": "niah/0.png"}], [{"type": "text", "text": "Text."}]])
def test_an_image_needle_that_is_not_shown_is_refused(published: Path, positive: list[dict[str, str]]) -> None:
    path = write(published / "retrieval-image_x_K8.jsonl", [{**PUBLISHED_IMAGE, "positive_ctxs": positive}])
    with pytest.raises(DataError, match="can't be located: expected positive_ctxs"):
        list(read_mm_niah(path, published))


def test_the_original_form_is_read_too(sample: Path) -> None:
    record = {
        "id": 7,
        "images_list": ["niah/0.png"],
        "context": f"Before. <image> {NEEDLE}",
        "question": "How many?",
        "answer": "214",
        "meta": {"placed_depth": 0.9, "context_length": 3000, "needles": [NEEDLE], "choices": None},
    }
    (probe,) = read_mm_niah(write(sample / "retrieval-text.jsonl", [record]), sample, tasks=["text"])
    assert (probe.context_length, probe.depth, len(probe.items)) == (3000, 0.9, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "question"),
        ({"answer": None}, "answer"),
        ({"ctxs": None}, "no context"),
        ({"image_list": []}, "1 <image> placeholders"),
        ({"image_list": ["niah/9.png"]}, r"niah/9\.png' is missing"),
        ({"needles": ["Not there."]}, "can't be located"),
        ({"needles": None}, "can't be located"),
        ({"depth": 1.2}, "depth"),
    ],
)
def test_bad_records_are_named_by_file_and_line(sample: Path, change: dict[str, object], message: str) -> None:
    path = write(sample / "retrieval-text_x_K8.jsonl", [TEXT, {**TEXT, **change}])
    with pytest.raises(DataError, match=message) as caught:
        list(read_mm_niah(path, sample))
    assert f"{path}, line 2" in str(caught.value)


def test_truncated_lines_are_named_by_file_and_line(sample: Path) -> None:
    path = sample / "retrieval-text_test_K8_dep6.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match=r"K8_dep6\.jsonl, line 2 .*cut off.*: not a valid MM-NIAH record"):
        list(read_mm_niah(path, sample))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="line 1.*not a valid MM-NIAH record"):
        list(read_mm_niah(path, sample))


def test_needles_that_cannot_be_located_may_be_let_through(sample: Path) -> None:
    path = write(sample / "retrieval-text_x_K8.jsonl", [{**TEXT, "needles": None}])
    (probe,) = read_mm_niah(path, sample, needs_evidence=False)
    assert (probe.task, probe.evidence, probe.answer) == ("text", (), "214")


@pytest.mark.parametrize("answer", ["B", "b", 1])
def test_answers_may_be_letters_or_indices(sample: Path, answer: object) -> None:
    path = write(sample / "retrieval-image_x_K8.jsonl", [{**IMAGE, "answer": answer}])
    assert next(read_mm_niah(path, sample)).answer == "B"


def test_answers_that_name_no_choice_are_refused(sample: Path) -> None:
    path = write(sample / "retrieval-image_x_K8.jsonl", [{**IMAGE, "answer": 5}])
    with pytest.raises(DataError, match="names none of 2"):
        list(read_mm_niah(path, sample))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_mm_niah(tmp_path / "x.jsonl", tmp_path))
    with pytest.raises(DataError, match="no files named like"):
        list(read_mm_niah(tmp_path, tmp_path))
    path = write(tmp_path / "retrieval-text.jsonl", [{**TEXT, "ctxs": [{"text": NEEDLE}], "image_list": []}])
    with pytest.raises(DataError, match="no context length"):
        list(read_mm_niah(path, tmp_path))
    with pytest.raises(DataError, match="Unknown tasks"):
        list(read_mm_niah(path, tmp_path, tasks=["texts"]))
