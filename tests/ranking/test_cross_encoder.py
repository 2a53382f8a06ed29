"""Pairs scored in the shape of a cross-encoder: as ``rank`` does, by question, and with sentence-transformers' API."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrh_retriever import Page, PageError, QuestionError, Reranker, SettingsError
from tests import factories
from tests.ranking_stub import png, real

QUESTION, OTHER = "How did revenue change?", "Who inspected the lifeboats?"
TEXTS = ["Revenue grew by a tenth.", "The lifeboats were seen to in May.", "A crew of nine."]


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return real()


def scores_of(reranker: Reranker, question: str, pages: list[Any]) -> dict[int, float]:
    return {scored.position: scored.score for scored in reranker.rank(question, pages)}


@pytest.fixture
def passes(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Questions and pages of each pass over a list."""
    seen: list[tuple[int, int]] = []
    rank_many = reranker.rank_many

    def noted(questions: Any, pages: Any, **more: Any) -> Any:
        seen.append((len(questions), len(pages)))
        return rank_many(questions, pages, **more)

    monkeypatch.setattr(reranker, "rank_many", noted)
    return seen


# Scores


def test_pairs_score_as_their_pages_do(reranker: Reranker) -> None:
    own = scores_of(reranker, QUESTION, [Page(text=text) for text in TEXTS])
    found = reranker.predict([(QUESTION, text) for text in TEXTS])
    assert (found.dtype, found.shape) == (np.float32, (3,))
    assert found == pytest.approx([own[index] for index in range(3)], abs=1e-7)
    assert len(set(found.tolist())) == 3
    assert np.array_equal(asyncio.run(reranker.apredict([(QUESTION, text) for text in TEXTS])), found)


def test_pairs_are_put_together_by_question(reranker: Reranker, passes: list[tuple[int, int]]) -> None:
    pairs = [(QUESTION, TEXTS[0]), (OTHER, TEXTS[2]), (QUESTION, TEXTS[1]), (OTHER, TEXTS[0]), (QUESTION, TEXTS[2])]
    found = reranker.predict(pairs)
    first = scores_of(reranker, QUESTION, [Page(text=text) for text in TEXTS])
    second = scores_of(reranker, OTHER, [Page(text=TEXTS[2]), Page(text=TEXTS[0])])
    assert found == pytest.approx([first[0], second[0], first[1], second[1], first[2]], abs=1e-7)
    assert sorted(passes[:2]) == [(1, 2), (1, 3)]


def test_questions_about_the_same_documents_run_together(reranker: Reranker, passes: list[tuple[int, int]]) -> None:
    found = reranker.predict([(question, text) for question in (QUESTION, OTHER) for text in TEXTS])
    assert passes == [(2, 3)]
    for row, question in enumerate((QUESTION, OTHER)):
        own = scores_of(reranker, question, [Page(text=text) for text in TEXTS])
        assert found[3 * row : 3 * row + 3] == pytest.approx([own[index] for index in range(3)], abs=1e-7)


def test_a_document_given_twice_is_read_once(reranker: Reranker, passes: list[tuple[int, int]]) -> None:
    image, page = factories.page_image(0), Page(text=TEXTS[2])
    found = reranker.predict([(QUESTION, it) for it in (TEXTS[0], image, TEXTS[0], page, image, page)])
    assert passes == [(1, 3)]
    assert (found[0], found[1], found[3]) == (found[2], found[4], found[5])


def test_documents_of_every_kind(reranker: Reranker, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    image = factories.page_image(0)
    kinds = [image, png(0), tmp_path / "a.png", Page(image=image), {"image": image}, {"image": str(tmp_path / "a.png")}]
    expected = scores_of(reranker, QUESTION, [image, Page(text=TEXTS[0])])
    for kind in kinds:
        found = reranker.predict([(QUESTION, kind), ({"text": QUESTION}, {"text": TEXTS[0]})])
        assert found == pytest.approx([expected[0], expected[1]], abs=1e-7), kind


def test_a_str_is_a_text_and_no_path(reranker: Reranker, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(0))
    found = reranker.predict([(QUESTION, str(path)), (QUESTION, TEXTS[0])])
    expected = scores_of(reranker, QUESTION, [Page(text=str(path)), Page(text=TEXTS[0])])
    assert found == pytest.approx([expected[0], expected[1]], abs=1e-7)
    assert reranker.rank(QUESTION, [str(path)])[0].page.image is not None  # pages are given by path


@pytest.mark.parametrize("hybrid", [False, True])
def test_scores_sort_as_the_ranking_does_over_several_windows(hybrid: bool) -> None:
    scorer = real(token_budget=700, final_round=3, hybrid=hybrid)
    pages = [Page(image=factories.page_image(seed), text=f"sheet {seed} revenue" * (seed % 3)) for seed in range(12)]
    ranking = scorer.rank(QUESTION, pages)
    order = [scored.position for scored in ranking]
    if not hybrid:  # else the test below would hold by itself
        raw = [scored.score for scored in ranking]
        assert raw != sorted(raw, reverse=True)
    found = scorer.predict([(QUESTION, page) for page in pages])
    assert np.argsort(-found, kind="stable").tolist() == order
    assert len(set(found.tolist())) == len(pages)
    assert [it["corpus_id"] for it in scorer.as_cross_encoder().rank(QUESTION, pages)] == order
    assert found[order[:3]] == pytest.approx([scored.score for scored in ranking[:3]], abs=1e-7)


def test_empty_lists(reranker: Reranker) -> None:
    assert (reranker.predict([]).shape, reranker.predict([]).dtype) == ((0,), np.float32)
    view = reranker.as_cross_encoder()
    assert view.predict([]).shape == (0,)
    assert view.rank(QUESTION, []) == []


# Errors


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ("words", QuestionError, "list of pairs"),
        ([QUESTION, TEXTS[0]], QuestionError, "Pair 1 is one that is a str"),
        ([(QUESTION, TEXTS[0]), (QUESTION,)], QuestionError, "Pair 2 is one of 1"),
        ([(b"words", TEXTS[0])], QuestionError, "question of pair 1 is a bytes"),
        ([("  ", TEXTS[0])], QuestionError, "empty"),
        ([(QUESTION, TEXTS[0]), (QUESTION, " ")], PageError, "document of pair 2 can't be scored: .*neither an image"),
        ([(QUESTION, Path("missing.png"))], PageError, r"document of pair 1 .*missing\.png"),
        ([(QUESTION, {"video": 1})], PageError, "pair 1 .*its keys are video"),
        ([(QUESTION, {})], PageError, "pair 1 .*its keys are none"),
        ([(QUESTION, 3)], PageError, "pair 1 .*int"),
    ],
)
def test_what_is_no_pair_is_refused(reranker: Reranker, pairs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reranker.predict(pairs)


# The shape of sentence-transformers


def test_kinds_of_results(reranker: Reranker) -> None:
    view = reranker.as_cross_encoder()
    pairs = [[QUESTION, text] for text in TEXTS]
    array = view.predict(pairs, batch_size=2, show_progress_bar=False, prompt=None)
    assert (array.dtype, array.shape) == (np.float32, (3,))
    assert np.array_equal(array, reranker.predict(pairs))
    assert np.array_equal(view.predict(np.array(pairs)), array)
    tensor = view.predict(pairs, convert_to_tensor=True)
    assert torch.equal(tensor, torch.from_numpy(array))
    listed = view.predict(pairs, convert_to_numpy=False)
    assert isinstance(listed, list)
    assert torch.equal(torch.stack(listed), tensor)
    raised = view.predict(pairs, activation_fn=torch.nn.Sigmoid())
    assert raised == pytest.approx(torch.sigmoid(tensor).numpy())
    for single in ((QUESTION, TEXTS[0]), [QUESTION, TEXTS[0]], np.array([QUESTION, TEXTS[0]])):
        found = view.predict(single)
        assert isinstance(found, np.float32)
        assert found == reranker.predict([(QUESTION, TEXTS[0])])[0]
    assert view.predict((QUESTION, TEXTS[0]), convert_to_tensor=True).ndim == 0


def test_a_ranking_has_indices_scores_and_documents(reranker: Reranker) -> None:
    view = reranker.as_cross_encoder()
    image = factories.page_image(0)
    documents = [TEXTS[0], image, TEXTS[1]]
    own = reranker.rank(QUESTION, [Page(text=TEXTS[0]), image, Page(text=TEXTS[1])])
    found = view.rank(QUESTION, documents)
    assert [(it["corpus_id"], it["score"]) for it in found] == [(it.position, it.score) for it in own]
    assert all(type(it["score"]) is float and it.keys() == {"corpus_id", "score"} for it in found)
    best = view.rank(QUESTION, documents, 2, True, activation_fn=torch.sigmoid)
    assert [it["corpus_id"] for it in best] == [it["corpus_id"] for it in found[:2]]
    assert all(it["text"] is documents[it["corpus_id"]] for it in best)
    assert best[0]["score"] == pytest.approx(torch.sigmoid(torch.tensor(found[0]["score"])).item())
    with pytest.raises(SettingsError, match="top_k"):
        view.rank(QUESTION, documents, top_k=0)


def test_arguments_with_a_place_elsewhere_are_refused(reranker: Reranker) -> None:
    view = reranker.as_cross_encoder()
    with pytest.raises(SettingsError, match=r"prompt= is not taken here, got 'Find'\. .*instruction"):
        view.predict([(QUESTION, TEXTS[0])], prompt="Find")
    with pytest.raises(SettingsError, match=r"device= is not taken here.*from_pretrained"):
        view.rank(QUESTION, TEXTS, device="cpu")
    with pytest.raises(TypeError, match="no argument 'top_n'"):
        view.rank(QUESTION, TEXTS, top_n=2)


def test_it_takes_what_sentence_transformers_takes(reranker: Reranker) -> None:
    module = pytest.importorskip("sentence_transformers", reason="pip install 'mmrh-retriever[rerankers]'")
    view = reranker.as_cross_encoder()
    for name, given in (("predict", ([(QUESTION, TEXTS[0])],)), ("rank", (QUESTION, TEXTS))):
        theirs = inspect.signature(getattr(module.CrossEncoder, name)).parameters
        defaults = {
            key: it.default
            for key, it in theirs.items()
            if it.kind is not it.VAR_KEYWORD and it.default is not inspect.Parameter.empty
        }
        assert {"prompt", "batch_size", "show_progress_bar", "activation_fn", "device"} <= defaults.keys()
        getattr(view, name)(*given, **defaults)


def test_sentence_transformers_own_evaluator_takes_it(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = pytest.importorskip(
        "sentence_transformers.cross_encoder.evaluation", reason="pip install 'mmrh-retriever[rerankers]'"
    )
    view = reranker.as_cross_encoder()
    samples = [
        {"query": question, "positive": [TEXTS[index]], "negative": TEXTS[:index] + TEXTS[index + 1 :]}
        for question, index in ((QUESTION, 1), (OTHER, 2))
    ]
    measure = evaluation.CrossEncoderRerankingEvaluator(samples, write_csv=False)
    monkeypatch.setattr(measure, "store_metrics_in_model_card_data", lambda *_: None)  # a card of trained models
    orders = [
        [it["corpus_id"] for it in view.rank(sample["query"], sample["positive"] + sample["negative"])]
        for sample in samples
    ]
    assert measure(view)["mrr@10"] == pytest.approx(np.mean([1 / (1 + order.index(0)) for order in orders]))
