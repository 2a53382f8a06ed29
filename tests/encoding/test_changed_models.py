"""What someone does to a model after its reranker was made is seen at the next pass."""

from __future__ import annotations

import pytest

from mmrh_retriever import AttentionCaptureError, Page, PageStore, Reranker, UnsupportedModelError
from tests.factories import Tiny, page_image, tiny

QUESTION = "How did revenue change?"
NAMES = ["qwen3_vl", "gemma3", "llama"]


def reranker_for(model: Tiny, **options: object) -> Reranker:
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", **options)  # type: ignore[arg-type]


def pages_for(name: str) -> list[Page]:
    texts = [Page(text="Revenue grew by nine percent."), Page(text="The annual report shows emissions.")]
    return texts if name == "llama" else [Page(image=page_image(1)), *texts, Page(image=page_image(2))]


def scores(reranker: Reranker, pages: list[Page]) -> list[float]:
    return [scored.score for scored in sorted(reranker.rank(QUESTION, pages), key=lambda scored: scored.position)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_another_attention_implementation_set_later_changes_nothing(name: str, implementation: str) -> None:
    pages = pages_for(name)
    expected = scores(reranker_for(tiny(name)), pages)
    model, store = tiny(name), PageStore()
    reranker = reranker_for(model, store=store)
    model.model.set_attn_implementation(implementation)
    assert scores(reranker, pages) == pytest.approx(expected, abs=1e-6)
    assert scores(reranker, pages) == pytest.approx(expected, abs=1e-6), "the store holds wrong pages"
    assert store.hits == len(pages)
    assert reranker.backbone.seam.base == implementation


@pytest.mark.parametrize("name", NAMES)
def test_a_second_reranker_made_after_that_does_not_take_the_first_ones_pages_away(name: str) -> None:
    pages = pages_for(name)
    expected = scores(reranker_for(tiny(name)), pages)
    model = tiny(name)
    first = reranker_for(model)
    encoded = first.encode(pages)
    model.model.set_attn_implementation("eager")
    second = reranker_for(model)
    for reranker in (first, second, first):
        assert scores(reranker, pages) == pytest.approx(expected, abs=1e-6)
    ranked = sorted(encoded.rank(QUESTION), key=lambda scored: scored.position)
    assert [scored.score for scored in ranked] == pytest.approx(expected, abs=1e-6)


def test_heads_are_ablated_whatever_was_set_before() -> None:
    model = tiny("llama")
    reranker = reranker_for(model)
    plain = scores(reranker, pages_for("llama"))
    model.model.set_attn_implementation("eager")
    with reranker.backbone.seam.ablating([(0, head) for head in range(4)]):
        assert scores(reranker, pages_for("llama")) != pytest.approx(plain, abs=1e-6)


def test_attention_that_cannot_be_read_is_refused_at_the_next_pass() -> None:
    model = tiny("llama")
    reranker = reranker_for(model)
    model.model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="'flex_attention' can't be read"):
        reranker.rank(QUESTION, pages_for("llama"))


def test_layers_put_in_the_place_of_others_are_refused() -> None:
    model = tiny("llama")
    reranker = reranker_for(model)
    other = tiny("llama", seed=1).model.model.layers[1]
    other.self_attn.config = model.model.config
    model.model.model.layers[1] = other
    with pytest.raises(AttentionCaptureError, match="replaced"):
        reranker.rank(QUESTION, pages_for("llama"))
    newer = reranker_for(model, check=False)  # transformers gives eager weights of the first layers alone
    assert len(scores(newer, pages_for("llama"))) == 2
    with pytest.raises(AttentionCaptureError, match="replaced"):
        reranker.rank(QUESTION, pages_for("llama"))


@pytest.mark.parametrize("part", ["language_model.layers.1.mlp", "visual.blocks.0", "language_model"])
def test_training_mode_of_any_module_is_refused_at_every_pass(part: str) -> None:
    model, store = tiny("qwen3_vl"), PageStore()
    reranker = reranker_for(model, store=store)
    encoded = reranker.encode([Page(text="Revenue")])
    trained = model.model.model.get_submodule(part).train()
    with pytest.raises(UnsupportedModelError, match=rf"model\.{part} .*training mode.*eval\(\)"):
        reranker.rank(QUESTION, [Page(image=page_image(1))])
    with pytest.raises(UnsupportedModelError, match="training mode"):
        encoded.rank(QUESTION)
    with pytest.raises(UnsupportedModelError, match="training mode"):
        reranker_for(model)
    assert len(store) == 1
    trained.eval()
    assert len(encoded.rank(QUESTION)) == 1
