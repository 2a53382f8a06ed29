"""Question tokens that count by how rare they are: the weights, where they come from, and the rankings they give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrh_retriever import DataError, Page, Reranker, RerankSettings, SettingsError
from mmrh_retriever.model.token_weights import FREQUENCIES_FILE, SMOOTHING, TokenFrequencies, frequency_weights
from tests.factories import Tiny, page_image, tiny

QUESTION = "How did revenue change?"


def counted(folder: Path, model: Tiny) -> torch.Tensor:
    """Frequencies of a model's tokens beside its weights, as if it were loaded from the folder; their weights."""
    counts = [(7 * token) % 50 for token in range(len(model.tokenizer))]
    found = TokenFrequencies(source="test", counts=counts)
    (folder / FREQUENCIES_FILE).write_text(found.model_dump_json())
    model.model.config._name_or_path = str(folder)
    return found.weights()


def reranker(model: Tiny, **settings: object) -> Reranker:
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", **settings)  # type: ignore[arg-type]


def pages() -> list[Page]:
    return [Page(image=page_image(number), index=number) for number in range(3)]


def test_the_formula() -> None:
    weights = TokenFrequencies(source="test", counts=[0, 1, 999]).weights()
    expected = [1.0, SMOOTHING / (SMOOTHING + 0.001), SMOOTHING / (SMOOTHING + 0.999)]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_scores_are_the_weighted_means_of_what_the_tokens_pay(tmp_path: Path) -> None:
    model = tiny("qwen3_vl")
    weights = counted(tmp_path, model)
    weighted, plain = reranker(model, question_weights="frequency"), reranker(model, calibrate=False)
    encoded = weighted.encode(pages())
    ranking = {one.position: one for one in encoded.rank(QUESTION, with_tokens=True)}
    explained = {one.position: one for one in encoded.explain(QUESTION).ranking}
    segment = plain.prompter.question_segment(QUESTION)
    null = plain.prompter.null_segment()
    engine = plain.engine()
    (window,) = engine.windows(plain.candidates(pages()))

    def paid(asked: object) -> np.ndarray:
        from mmrh_retriever.ranking.question_attention import token_by_token

        rows = token_by_token(asked)  # type: ignore[arg-type]
        own = weights[[rows.ids[span.start] for span in rows.scored]].numpy()
        mass = engine.ask(window, [rows]).mass.mean(dim=1).numpy()  # (tokens, pages)
        return np.asarray(own @ mass / own.sum())

    expected = paid(segment) - paid(null)
    for position, value in enumerate(expected):
        assert ranking[position].score == pytest.approx(value, abs=1e-6)
        assert explained[position].score == pytest.approx(value, abs=1e-6)
        np.testing.assert_allclose(ranking[position].token_scores, explained[position].token_scores, atol=1e-6)
    alike = {one.position: one.score for one in reranker(model).rank(QUESTION, pages())}
    assert max(abs(alike[position] - expected[position]) for position in alike) > 1e-5


def test_the_models_config_decides_unless_one_says(tmp_path: Path) -> None:
    model = tiny("qwen3_vl")
    counted(tmp_path, model)
    assert reranker(model).prompter.token_weights is None
    assert reranker(model).settings.question_weights == "uniform"
    model.model.config.mmrh_question_weights = "frequency"
    assert reranker(model).prompter.token_weights is not None
    assert reranker(model).settings.question_weights == "frequency"
    assert reranker(model, question_weights="uniform").prompter.token_weights is None
    assert reranker(model, settings=RerankSettings.paper()).prompter.token_weights is None


def test_what_cannot_be_weighted(tmp_path: Path) -> None:
    model = tiny("qwen3_vl")
    model.model.config._name_or_path = "some/model"
    with pytest.raises(SettingsError, match=r"needs mmrh_token_frequencies\.json .* some/model has none"):
        reranker(model, question_weights="frequency")
    (tmp_path / FREQUENCIES_FILE).write_text(json.dumps({"source": "test", "counts": [3, -1]}))
    with pytest.raises(DataError, match=r"counts\.1"):
        frequency_weights(str(tmp_path))
    counted(tmp_path, model)
    (tmp_path / FREQUENCIES_FILE).write_text(json.dumps({"source": "test", "counts": [3, 1]}))
    with pytest.raises(SettingsError, match="weights of 2 tokens, and the tokenizer has"):
        reranker(model, question_weights="frequency")
