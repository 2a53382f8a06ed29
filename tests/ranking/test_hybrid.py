"""Hybrid scores: shares of attention and text, exact, and fair to pages without text."""

from __future__ import annotations

import numpy as np
import pytest

from mmrh_retriever import Page, Reranker, SettingsError
from mmrh_retriever.bm25 import TextIndex, bm25_scores
from mmrh_retriever.ranking.hybrid import TextLayer, joined_shares, softmax_of_z
from tests.factories import page_image, tiny

TEXTS = ["Revenue grew by nine percent.", "Staff numbers and water use.", "The report shows emissions of revenue."]


def layer(texts: list[str], weight: float = 0.5) -> TextLayer:
    found = TextLayer.of([Page(image=page_image(n), text=text or None) for n, text in enumerate(texts)], weight)
    assert found is not None
    return found


def reranker(**settings: object) -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", **settings)  # type: ignore[arg-type]


def pages(texts: list[str]) -> list[Page]:
    return [Page(image=page_image(n), text=text or None, index=n) for n, text in enumerate(texts)]


def test_where_all_pages_have_text_scores_are_the_weighted_shares() -> None:
    attention, text = np.array([0.1, 0.3, 0.2]), np.array([2.0, 0.0, 1.0])
    expected = 0.7 * softmax_of_z(attention) + 0.3 * softmax_of_z(text)
    np.testing.assert_allclose(layer(TEXTS, 0.3).joined(attention, text), expected)
    assert softmax_of_z(np.array([1.0, 1.0])).tolist() == [0.5, 0.5]
    z = np.array([-1.0, 1.0])
    np.testing.assert_allclose(softmax_of_z(np.array([3.0, 7.0])), np.exp(z) / np.exp(z).sum())


def test_a_page_without_text_keeps_its_share_and_the_others_theirs_together() -> None:
    attention, text = np.array([0.1, 0.3, 0.2, 0.25]), np.array([2.0, 0.0, 0.0, 1.0])
    joined = layer([TEXTS[0], "", "", TEXTS[1]], 0.8).joined(attention, text)
    shares = softmax_of_z(attention)
    np.testing.assert_allclose(joined[[1, 2]], shares[[1, 2]])
    assert joined[[0, 3]].sum() == pytest.approx(shares[[0, 3]].sum())
    assert joined[0] > joined[3]


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_which_kind_of_page_comes_first_is_up_to_attention(weight: float) -> None:
    lots = np.random.default_rng(3)
    for _ in range(50):
        attention, text = lots.normal(size=12), lots.exponential(size=12)
        has_text = lots.random(12) < 0.6
        has_text[:2] = True, False
        own, shares = has_text, softmax_of_z(attention)
        joined = joined_shares(attention, text, has_text, weight)
        assert joined.sum() == pytest.approx(1)
        assert joined[own].max() == pytest.approx(shares[own].max(), rel=1e-9)
        assert has_text[joined.argmax()] == has_text[shares.argmax()]
        among = (1 - weight) * shares[own] / shares[own].sum() + weight * softmax_of_z(text[own])
        assert joined[own].argsort().tolist() == among.argsort().tolist()


def test_equal_shares_stay_equal() -> None:
    found = joined_shares(np.array([0.5, 0.1, 0.1]), np.array([0.0, 1.0, 1.0]), np.array([False, True, True]), 0.5)
    np.testing.assert_allclose(found, softmax_of_z(np.array([0.5, 0.1, 0.1])))
    one = joined_shares(np.array([0.5, 0.1]), np.array([0.0, 1.0]), np.array([False, True]), 0.5)
    np.testing.assert_allclose(one, softmax_of_z(np.array([0.5, 0.1])))


def test_a_question_without_known_words_is_left_to_attention() -> None:
    attention = np.array([0.1, 0.3, 0.2])
    np.testing.assert_allclose(layer(TEXTS).joined(attention, np.zeros(3)), softmax_of_z(attention))
    assert TextLayer.of(pages(["", ""]), 0.5) is None


def test_rankings_are_joined_and_keep_both_scores() -> None:
    listed = pages([*TEXTS, ""])
    question = "How did revenue grow?"
    plain = {one.position: one for one in reranker().rank(question, listed)}
    found = reranker(hybrid=True, text_weight=0.4).rank(question, listed, with_tokens=True)
    attention = np.array([plain[index].score for index in range(4)])
    said = bm25_scores([question], [*TEXTS, ""])[0]
    expected = layer([*TEXTS, ""], 0.4).joined(attention, said)
    assert [one.rank for one in found] == [1, 2, 3, 4]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert one.score == pytest.approx(expected[one.position], abs=1e-5)
        assert one.attention_score == pytest.approx(plain[one.position].score, abs=1e-7)
        assert one.token_scores is not None
        assert one.text_score == (None if one.position == 3 else said[one.position])
    assert all(one.attention_score == one.score and one.text_score is None for one in plain.values())
    assert sum(one.score for one in found) == pytest.approx(1)


def test_encoded_pages_rank_alike_and_explain() -> None:
    hybrid, listed = reranker(hybrid=True), pages([*TEXTS, ""])
    questions = ["How did revenue grow?", "water?"]
    encoded = hybrid.encode(listed)
    for one, other in zip(encoded.rank_many(questions), hybrid.rank_many(questions, listed), strict=True):
        assert [page.position for page in one] == [page.position for page in other]
        assert [page.score for page in one] == pytest.approx([page.score for page in other], abs=1e-5)
    ranking = encoded.explain(questions[0]).ranking
    assert [page.score for page in ranking] == pytest.approx(
        [page.score for page in encoded.rank(questions[0])], abs=1e-5
    )


def test_a_score_does_not_depend_on_a_pages_position() -> None:
    hybrid, listed = reranker(hybrid=True, independent=True), pages([*TEXTS, ""])
    found = {
        one.page.index: one.score
        for one in hybrid.rank(
            "revenue?", [Page(image=page.image, text=page.text, index=page.index, doc_id="a") for page in listed]
        )
    }
    turned = [Page(image=page.image, text=page.text, index=page.index, doc_id="a") for page in reversed(listed)]
    again = {one.page.index: one.score for one in hybrid.rank("revenue?", turned)}
    assert again == pytest.approx(found, abs=1e-5)


def test_finalists_exchange_what_their_windows_gave() -> None:
    hybrid, listed = reranker(hybrid=True, text_weight=0.0, window_pages=2, final_round=2), pages([*TEXTS, "words"])
    plain = reranker(window_pages=2, final_round=2).rank("How did revenue grow?", listed)
    first = {
        one.position: one.score for one in reranker(window_pages=2, final_round=0).rank("How did revenue grow?", listed)
    }
    finals = [one.position for one in plain[:2]]
    given = sorted((first[position] for position in finals), reverse=True)
    dealt = first | dict(zip(finals, given, strict=True))
    expected = softmax_of_z(np.array([dealt[index] for index in range(4)]))
    for one in hybrid.rank("How did revenue grow?", listed):
        assert one.score == pytest.approx(expected[one.position], abs=1e-5)


def test_auto_follows_the_models_config() -> None:
    model = tiny("qwen3_vl")
    processors = (model.tokenizer, model.image_processor)
    assert Reranker(model.model, processors, "all").settings.hybrid is False
    model.model.config.mmrh_hybrid = True
    assert Reranker(model.model, processors, "all").settings.hybrid is True
    assert Reranker(model.model, processors, "all", hybrid=False).settings.hybrid is False
    with pytest.raises(SettingsError, match="text_weight"):
        reranker(text_weight=1.5)


def test_an_index_is_asked_again_and_again() -> None:
    index = TextIndex(TEXTS)
    np.testing.assert_array_equal(index.scores(["revenue", "water"]), bm25_scores(["revenue", "water"], TEXTS))
    assert index.scores(["zebra"]).tolist() == [[0.0, 0.0, 0.0]]


def test_a_model_ranks_with_and_without_text() -> None:
    hybrid, listed = reranker(hybrid=True), pages(TEXTS)
    plain = hybrid.with_hybrid(False).rank("revenue?", listed)
    assert [one.score for one in plain] == [one.score for one in reranker().rank("revenue?", listed)]
    assert all(one.text_score is None for one in plain)
    assert hybrid.with_hybrid("auto").settings.hybrid is False
    assert hybrid.settings.hybrid is True
