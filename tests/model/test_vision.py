"""Vision features: several pages at once equal each alone; a page seen again is not computed twice."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import Page, PageError, Reranker, SettingsError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter
from mmrh_retriever.model.vision import Vision
from tests.factories import VISION, page_image, tiny

QUESTION = "How did revenue change?"
SIZES = [(96, 128), (96, 128), (150, 70), (60, 140), (96, 128)]


def reranker_for(name: str = "qwen3_vl", **options: object) -> Reranker:
    model = tiny(name)
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VISION)
def test_several_pages_at_once_equal_each_alone(name: str) -> None:
    model = tiny(name)
    prompter = Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor)
    segments = [prompter.page_segment(Page(image=page_image(seed, size)), seed + 1) for seed, size in enumerate(SIZES)]
    together = Vision(prompter.backbone).of(segments)
    for segment, features in zip(segments, together, strict=True):
        alone = Vision(prompter.backbone).of([segment])[0]
        torch.testing.assert_close(features.pooled, alone.pooled, atol=1e-5, rtol=1e-5)
        assert len(features.deep) == len(alone.deep) == (2 if name.startswith("qwen3_vl") else 0)
        for one, other in zip(features.deep, alone.deep, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert features.pooled.numel() // features.pooled.shape[-1] == segment.ids.count(
            prompter.backbone.config.image_token_id
        )


def test_a_page_seen_again_is_not_computed_twice() -> None:
    reranker = reranker_for(token_budget=620)
    pages = [Page(image=page_image(seed), index=seed) for seed in range(5)]
    expected = [scored.score for scored in reranker.rank(QUESTION, pages)]
    assert reranker.vision.computed == 5
    assert [scored.score for scored in reranker.rank(QUESTION, pages)] == pytest.approx(expected, abs=1e-7)
    reranker.encode([Page(image=page_image(3)), Page(image=page_image(9)), Page(image=page_image(9))])
    assert reranker.vision.computed == 6, "the same pixels are the same image, wherever they come from"
    other = reranker.with_heads("all")
    other.rank(QUESTION, pages)
    assert other.vision.computed == 6
    reranker.vision.clear()
    assert reranker.vision.nbytes == 0
    reranker.rank(QUESTION, pages)
    assert reranker.vision.computed == 11


def test_the_memory_is_bounded_and_the_oldest_go_first() -> None:
    reranker = reranker_for()
    reranker.rank(QUESTION, [page_image(1)])
    each = reranker.vision.nbytes
    assert each > 0
    small = reranker_for(vision_memory=2 * each)
    for seed in (1, 2, 1, 3):
        small.rank(QUESTION, [page_image(seed)])
    assert (small.vision.nbytes, small.vision.computed) == (2 * each, 3)
    small.rank(QUESTION, [page_image(1)])
    assert small.vision.computed == 3
    small.rank(QUESTION, [page_image(2)])
    assert small.vision.computed == 4
    none = reranker_for(vision_memory=0)
    none.rank(QUESTION, [page_image(1), page_image(2)])
    assert (none.vision.nbytes, none.vision.computed) == (0, 2)
    with pytest.raises(SettingsError, match="vision_memory"):
        reranker_for(vision_memory=-1)


def test_batches_keep_within_the_pixel_budget_and_shrink_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = reranker_for()
    vision = reranker.vision
    sizes: list[int] = []
    run = vision._run

    def counted(segments: list[object]) -> object:
        sizes.append(len(segments))
        if len(segments) > 2:
            raise torch.OutOfMemoryError
        return run(segments)  # type: ignore[arg-type]

    monkeypatch.setattr(vision, "_run", counted)
    pages = [Page(image=page_image(seed), index=seed) for seed in range(6)]
    expected = reranker_for().rank(QUESTION, pages)
    got = reranker.rank(QUESTION, pages)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]
    assert [scored.score for scored in got] == pytest.approx([scored.score for scored in expected], abs=1e-6)
    sizes.clear()
    vision.clear()
    vision.pixel_budget = 1
    reranker.rank(QUESTION, pages)
    assert sizes == [1] * 6

    def short(segments: list[object]) -> object:
        raise torch.OutOfMemoryError

    vision.clear()
    monkeypatch.setattr(vision, "_run", short)
    with pytest.raises(PageError, match="does not fit in memory"):
        reranker.rank(QUESTION, pages)


def test_an_image_of_a_single_token_is_seen_alone_as_in_company() -> None:
    model = tiny("mistral3")
    backbone = Backbone.of(model.model)
    prompter = Prompter(backbone, model.tokenizer, model.image_processor)
    images = [page_image(0, (14, 14)).resize((8, 8)), page_image(1)]
    small, other = [prompter.page_segment(Page(image=image), 1) for image in images]
    assert small.ids.count(backbone.config.image_token_id) == 1
    (alone,) = Vision(backbone).of([small])
    together = Vision(backbone).of([small, other])
    torch.testing.assert_close(alone.pooled, together[0].pooled, atol=1e-6, rtol=0)
