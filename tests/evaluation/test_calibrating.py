"""Learning a calibration: which lists are asked, what is learned, and how good it is said to be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pymupdf
import pytest

from mmrh_retriever import Reranker
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation.calibrating import AskedList, ask, calibrate, fit
from mmrh_retriever.evaluation.calibration_quality import left_out, quality
from mmrh_retriever.evaluation.generated import generated_questions
from mmrh_retriever.evaluation.labelled import read_labelled
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.ranking.calibration import ATTENTION, HYBRID, features, probabilities
from tests.factories import tiny

sklearn = pytest.importorskip("sklearn", reason="pip install scikit-learn to learn calibrations")
WORDS = [f"{kind}{number}" for number in range(40) for kind in ("apple", "pear")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, words in (("a.pdf", WORDS[:40]), ("b.pdf", WORDS[40:])):
        made = pymupdf.open()
        for start in (0, 10, 20):
            page = made.new_page(width=200, height=300)
            for line in range(5):
                page.insert_text((10, 30 + 20 * line), " ".join(words[start + 4 * line :][:4]), fontsize=8)
        made.new_page(width=200, height=300).draw_rect((20, 20, 90, 90), fill=(0, 0, 0))
        made.save(tmp_path / name)
    return tmp_path


@pytest.fixture
def data(folder: Path) -> MMDocIR:
    lines = [
        {"document": name, "question": f"{word}?", "pages": [page]}
        for name, words in (("a.pdf", WORDS[:40]), ("b.pdf", WORDS[40:]))
        for page, word in ((1, words[0]), (3, words[36]))
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_labelled(folder / "questions.jsonl", folder)


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", independent=True)


def synthetic(count: int, documents: int = 5, *, seed: int = 0) -> list[AskedList]:
    """Lists whose pages are evidence with the probability that a known function gives."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        attention = rng.exponential(0.05, 6)
        text = np.where(np.arange(6) < 4, rng.exponential(2.0, 6), np.nan)
        columns = features(attention, text)
        value = -2 + columns @ np.array([10.0, 5.0, 0.5, 0.3])
        gold = rng.random(6) < 1 / (1 + np.exp(-value))
        made.append(AskedList(f"{number % documents}", attention, text, gold, int(value.argmax())))
    return made


def test_each_question_is_asked_with_and_without_its_pages(data: MMDocIR, reranker: Reranker) -> None:
    asked = list(ask(reranker, data))
    assert [one.document for one in asked] == ["a.pdf"] * 8 + ["b.pdf"] * 8
    assert [one.has_answer for one in asked] == [True, False] * 8
    assert [one.whole for one in asked] == [True, True, False, False] * 4
    assert [(len(one.gold), one.gold.tolist()) for one in asked[:2]] == [
        (4, [True, False, False, False]),
        (3, [False] * 3),
    ]
    assert all(len(one.gold) == len(other.gold) for one, other in zip(asked[2::4], asked[3::4], strict=True))
    pages = data.pages(data.documents[0])
    ranking = reranker.with_hybrid(True).rank(f"{WORDS[0]}?", pages)
    by_page = {scored.position: scored for scored in ranking}
    one = asked[0]
    np.testing.assert_allclose(one.attention, [by_page[index].attention_score for index in range(4)], atol=1e-6)
    assert one.text is not None
    np.testing.assert_allclose(one.text[:3], [by_page[index].text_score for index in range(3)])
    assert np.isnan(one.text[3])  # the page without text
    assert one.best == ranking[0].position
    again = list(ask(reranker, data))
    assert [one.gold.tolist() for one in again] == [one.gold.tolist() for one in asked]
    assert [one.whole for one in ask(reranker, data, drawn=False)] == [True] * 8


def test_a_known_function_is_learned() -> None:
    asked = synthetic(4000)
    attention, hybrid = fit(asked)
    assert tuple(attention.weights) == ATTENTION
    assert hybrid is not None
    assert tuple(hybrid.weights) == HYBRID
    np.testing.assert_allclose([hybrid.intercept, *hybrid.weights.values()], [-2, 10, 5, 0.5, 0.3], rtol=0.25)
    assert fit([one.by_images() for one in asked])[1] is None


def test_quality_says_what_the_lists_say() -> None:
    rng = np.random.default_rng(1)
    asked = synthetic(60, seed=2)
    asked += [AskedList("0", np.array([1.0]), None, np.array([True]), 0, whole=False)]  # does not count
    given = [rng.random(len(one.gold)).round(1) for one in asked]
    found = quality(asked, given)
    with_answer = [values.max() for one, values in zip(asked[:-1], given, strict=False) if one.has_answer]
    without = [values.max() for one, values in zip(asked[:-1], given, strict=False) if not one.has_answer]
    pairs = [(a > b) + 0.5 * (a == b) for a in with_answer for b in without]
    assert found.auc.mean == pytest.approx(np.mean(pairs))
    threshold = max(t for t in with_answer if np.mean([a >= t for a in with_answer]) >= 0.9)
    assert found.false_answers.mean == pytest.approx(np.mean([b >= threshold for b in without]))
    first = [(values[one.best], one.gold[one.best]) for one, values in zip(asked[:-1], given, strict=False)]
    pairs = [(a > b) + 0.5 * (a == b) for a, yes in first for b, no in first if yes and not no]
    assert found.first_auc.mean == pytest.approx(np.mean(pairs))
    assert found.expected == pytest.approx(np.mean([p for p, _ in first]))
    assert found.found.mean == pytest.approx(np.mean([right for _, right in first]))
    assert found.brier == pytest.approx(np.mean([(p - right) ** 2 for p, right in first]))
    assert found.auc.low < found.auc.mean < found.auc.high
    answered = [one for one in asked if one.has_answer]
    with pytest.raises(DataError, match="Expected some with, some without"):
        quality(answered, [np.zeros(len(one.gold)) for one in answered])


def test_a_document_is_left_out_of_what_it_is_judged_by() -> None:
    asked = synthetic(200)
    found = left_out(asked)
    functions = fit([one for one in asked if one.document != "3"])
    for one, values in zip(asked, found, strict=True):
        if one.document == "3":
            np.testing.assert_allclose(values, probabilities(*functions, one.attention, one.text))
    with pytest.raises(DataError, match="needs two or more, got 1"):
        left_out(synthetic(5, documents=1))


def test_a_calibration_names_what_it_holds_for(data: MMDocIR, reranker: Reranker) -> None:
    found = calibrate(reranker, data, source="4 questions")
    assert reranker.with_calibration(found).calibration == found
    assert (found.source, found.hybrid is not None) == ("4 questions", True)


def test_what_can_not_be_learned_from_is_refused(
    data: MMDocIR, folder: Path, reranker: Reranker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="6 of 6 pages are evidence. Expected some that are and some that are not"):
        fit([AskedList("a", np.ones(6), None, np.ones(6, dtype=bool), 0)])
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'mmrh-retriever\[calibrate\]'"):
        fit(synthetic(5))
    for name in ("a.pdf", "b.pdf"):
        (folder / name).write_bytes(b"no PDF")
    with pytest.raises(DataError, match="No document could be ranked"):
        calibrate(reranker, data)
    assert "a.pdf is left out: " in caplog.text


def test_generated_questions_hold_words_of_their_page(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = generated_questions(folder, 12, seed=3)
    assert [document.name for document in made.documents] == ["a.pdf", "b.pdf"]
    for document in made.documents:
        pages = made.pages(document)
        for question in document.questions:
            (index,) = question.pages
            assert index < 3  # the last page has no text
            assert set((pages[index].text or "").split()) & set(question.text.rstrip("?").split())
    assert made.fingerprint == generated_questions(folder, 12, seed=3).fingerprint
    assert made.fingerprint != generated_questions(folder, 12, seed=4).fingerprint
    assert sum(len(document.questions) for document in made.documents) == 12
    (folder / "broken.pdf").write_bytes(b"no PDF")
    assert generated_questions(folder, 12, seed=3).fingerprint == made.fingerprint
    assert "broken.pdf is left out" in caplog.text


def test_nothing_to_generate_from_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="At least one question is needed, got 0"):
        generated_questions(folder, 0)
    with pytest.raises(DataError, match="none: no such folder"):
        generated_questions(folder / "none", 4)
    (folder / "scans").mkdir()
    with pytest.raises(DataError, match="scans: no PDF here has a page with 20 words of text"):
        generated_questions(folder / "scans", 4)
