"""A plan says before the weights are there what a run then takes: tokens, windows, bytes exactly, operations nearly."""

from __future__ import annotations

from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever import HeadSet, Page, PageStore, Reranker, RerankSettings, read_pdf
from mmrh_retriever.benchmark.flops import counted_flops
from mmrh_retriever.benchmark.pairs import PlainProcedure
from mmrh_retriever.benchmark.plan import LETTER, QUESTION, Plan, empty_reranker, plan
from mmrh_retriever.errors import ContextOverflowError, PageError, UnsupportedModelError
from mmrh_retriever.model.families import Backbone
from tests.factories import BUILDERS, TEXT_ONLY, page_image, tiny

PAGES = 11
UNCOUNTED = ("gemma4", "gemma4_shared", "mistral4", "qwen3_5", "qwen3_5_moe")
"""Families that keep states, latents or keys of other layers."""
TORCHVISION = ("cohere2_vision", "lfm2_vl")
"""Families whose image processor can't be loaded without it."""
PLANNED = [name for name in BUILDERS if name not in (*UNCOUNTED, *TORCHVISION)]
SIZE = (96, 128)


def saved(name: str, folder: Path) -> Path:
    """A model's folder without its weights."""
    model = tiny(name)
    for part in (model.model.config, model.tokenizer, model.image_processor):
        if part is not None:
            part.save_pretrained(folder)
    return folder


def middle_heads(name: str) -> HeadSet:
    """All heads of a layer in the middle: the plan has to leave out the layers behind it."""
    facts = Backbone.of(tiny(name).model).facts
    layer = facts.global_layers[len(facts.global_layers) // 2]
    return HeadSet.all_heads(facts.n_layers, facts.n_heads, [layer])


def planned(folder: Path, text: bool, heads: HeadSet, settings: RerankSettings) -> Plan:
    reranker, notes = empty_reranker(str(folder), heads, settings=settings)
    assert all(weight.is_meta for weight in reranker.backbone.model.parameters())
    more = {"page_tokens": 40} if text else {"page_size": SIZE}
    return plan(reranker, pages=PAGES, page_memory=1_000_000, notes=notes, **more)


def made_pages(name: str, reranker: Reranker) -> list[Page]:
    """As many pages as are planned for, of as many tokens."""
    if name not in TEXT_ONLY:
        return [Page(image=page_image(number, SIZE), index=number) for number in range(PAGES)]
    rest = [40 - len(reranker.prompter.page_segment(Page(text="z"), number)) for number in range(1, PAGES + 1)]
    return [Page(text="z" * (count + 1), index=index) for index, count in enumerate(rest)]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_is_what_a_run_takes(name: str, independent: bool, tmp_path: Path) -> None:
    heads = middle_heads(name)
    settings = RerankSettings(independent=independent, token_budget=1400, dtype="bfloat16")
    found = planned(saved(name, tmp_path), name in TEXT_ONLY, heads, settings)
    tiny(name).model.save_pretrained(tmp_path)
    reranker = Reranker.from_pretrained(tmp_path, heads=heads, settings=settings)
    pages = made_pages(name, reranker)
    weights = list(reranker.backbone.model.parameters())
    assert (found.weights, found.weight_bytes) == (sum(w.numel() for w in weights), sum(w.nbytes for w in weights))
    assert found.dtype == "bfloat16"
    windows = list(reranker.with_store(PageStore(0)).engine().windows(reranker.candidates(pages)))
    assert (found.windows, found.tokens) == (len(windows), sum(len(window) for window in windows))
    kept = [part for window in windows for part in window.cache.part(0, len(window))]
    assert found.kept_bytes == sum(part.nbytes for part in kept)
    store = PageStore(found.page_bytes * PAGES * 2)
    reranker.with_store(store).encode(pages[:1])
    assert found.page_bytes == store.nbytes
    assert found.page_memory_pages == 1_000_000 // store.nbytes


@pytest.mark.parametrize("name", UNCOUNTED)
def test_what_a_plan_cannot_count_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="states, latents or another layer's keys.*EncodedPages.nbytes"):
        planned(saved(name, tmp_path), False, middle_heads(name), RerankSettings(token_budget=1400))


@pytest.mark.parametrize("name", PLANNED)
def test_planned_operations_are_those_of_a_run(name: str, tmp_path: Path) -> None:
    heads = middle_heads(name)
    settings = RerankSettings(token_budget=3000, independent=False)
    found = planned(saved(name, tmp_path), name in TEXT_ONLY, heads, settings)
    model = tiny(name)
    reranker = Reranker(model.model, (model.tokenizer, model.image_processor), heads, settings=settings)
    pages = made_pages(name, reranker)
    procedure = PlainProcedure(reranker, pages)
    whole = [*procedure.prompt(), reranker.prompter.question_segment(QUESTION)]
    encode = counted_flops(lambda: reranker.encode(pages))
    encoded = reranker.encode(pages)
    encoded.rank(QUESTION)  # the null question is remembered
    ratios = [
        found.encode_flops / encode,
        found.question_flops / counted_flops(lambda: encoded.rank(QUESTION)),
        found.plain_flops / 2 / counted_flops(lambda: procedure.full_pass(whole, None)),
    ]
    print(name, *(f"{ratio:.3f}" for ratio in ratios))
    assert ratios == pytest.approx([1, 1, 1], abs=0.1)


def test_quantised_weights_are_said_to_take_less(tmp_path: Path) -> None:
    model = tiny("qwen3")
    model.model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    for part in (model.model.config, model.tokenizer):
        part.save_pretrained(tmp_path)
    _, notes = empty_reranker(str(tmp_path), "all", settings=RerankSettings())
    assert "quantised" in notes[0]


def test_a_page_is_planned_as_read_pdf_draws_it() -> None:
    document = pymupdf.open()
    document.new_page(width=612, height=792)
    (page,) = read_pdf(document.tobytes())
    assert page.pixels().size == LETTER


def test_a_page_longer_than_a_window_and_a_page_without_tokens_are_refused(tmp_path: Path) -> None:
    seen, _ = empty_reranker(str(saved("qwen3_vl", tmp_path / "seen")), "all", settings=RerankSettings())
    with pytest.raises(ContextOverflowError, match="9000 tokens; a window has room for 35"):
        plan(seen, pages=2, page_tokens=9000, page_memory=0)
    read, _ = empty_reranker(str(saved("qwen3", tmp_path / "read")), "all", settings=RerankSettings())
    with pytest.raises(PageError, match="page_tokens"):
        plan(read, pages=2, page_memory=0)
