"""The facade: rankings, windows, encoded pages, what callers may pass, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from mmrh_retriever import (
    AttentionCaptureError,
    ContextOverflowError,
    DataError,
    HeadSet,
    HeadSetError,
    Page,
    PageError,
    QuestionError,
    Reranker,
    SettingsError,
    UnsupportedModelError,
)
from mmrh_retriever.encoding.scoring import descending
from mmrh_retriever.model.loading import HEADS_FILE, cpu_dtype
from mmrh_retriever.ranking.inputs import as_candidates
from tests.factories import Tiny, page_image, tiny

QUESTION = "How did revenue change?"


@pytest.fixture(scope="module")
def qwen() -> Tiny:
    return tiny("qwen3_vl")


@pytest.fixture
def pages() -> list[Page]:
    return [Page(image=page_image(seed), index=seed) for seed in range(6)]


def reranker_for(model: Tiny, heads: object = "all", **options: object) -> Reranker:
    return Reranker(model.model, (model.tokenizer, model.image_processor), heads, **options)  # type: ignore[arg-type]


def test_rank_is_best_first_and_agrees_with_encoded_pages(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen)
    top = reranker.rank(QUESTION, pages)
    assert [scored.rank for scored in top] == [1, 2, 3, 4, 5, 6]
    assert sorted((scored.score for scored in top), reverse=True) == [scored.score for scored in top]
    assert {scored.position for scored in top} == set(range(6))
    assert all(pages[scored.position] is scored.page for scored in top)
    assert type(top[0].score) is float
    encoded = reranker.encode(pages)
    assert len(encoded) == 6
    again = encoded.rank(QUESTION, top_n=3)
    assert [scored.position for scored in again] == [scored.position for scored in top[:3]]
    assert [scored.score for scored in again] == pytest.approx([scored.score for scored in top[:3]], abs=1e-6)


def test_scores_are_the_mean_calibrated_mass_of_the_selected_heads(qwen: Tiny, pages: list[Page]) -> None:
    one, two = HeadSet.parse("1-2"), HeadSet.parse("0-3")
    both = HeadSet.parse("1-2,0-3")
    values = {}
    for heads in (one, two, both):
        ranked = reranker_for(qwen, heads).rank(QUESTION, pages)
        values[heads] = {scored.position: scored.score for scored in ranked}
    for place in range(6):
        assert values[both][place] == pytest.approx((values[one][place] + values[two][place]) / 2, abs=1e-7)
    raw = reranker_for(qwen, both, calibrate=False)
    null = {scored.position: scored.score for scored in raw.rank("N/A", pages)}
    plain = {scored.position: scored.score for scored in raw.rank(QUESTION, pages)}
    assert all(0 <= score <= 1 for score in plain.values())
    for place in range(6):
        assert values[both][place] == pytest.approx(plain[place] - null[place], abs=1e-6)


def test_token_scores_add_up_to_the_images_part(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen)
    for scored in reranker.rank(QUESTION, pages, with_tokens=True):
        assert scored.grid is not None
        assert scored.token_scores is not None
        assert scored.token_scores.shape == (len(scored.grid),)
    bare = reranker_for(qwen, options=reranker.prompter.options.__class__(count_image_markers=False))
    for scored in bare.encode(pages).rank(QUESTION, with_tokens=True):
        assert scored.token_scores is not None
        assert float(scored.token_scores.sum()) == pytest.approx(scored.score, abs=1e-6)
    assert reranker.rank(QUESTION, pages)[0].token_scores is None


def test_long_lists_are_ranked_over_windows_in_order(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen, token_budget=620)
    windows = list(reranker.engine().windows(as_candidates(pages)))
    assert len(windows) > 1
    assert [place for window in windows for place in window.indices] == list(range(6))
    assert all(len(window) <= 620 - 512 for window in windows)
    ranked = reranker.rank(QUESTION, pages)
    assert {scored.position for scored in ranked} == set(range(6))
    assert [scored.position for scored in reranker.encode(pages).rank(QUESTION)] == [
        scored.position for scored in ranked
    ]


def test_encoded_pages_stay_within_their_memory_budget_and_do_not_change(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen, token_budget=620)
    free = reranker.encode(pages)
    tight = reranker.encode(pages, memory_budget=free.nbytes // 2)
    assert 0 < tight.nbytes <= free.nbytes // 2
    for question in (QUESTION, "water use"):
        got, expected = tight.rank(question), free.rank(question)
        assert [scored.score for scored in got] == [scored.score for scored in expected]
    assert tight.nbytes <= free.nbytes // 2
    with pytest.raises(SettingsError, match="memory_budget"):
        reranker.encode(pages, memory_budget=-1)


def test_questions_together_equal_questions_alone(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen)
    questions = [QUESTION, "staff numbers", "N/A"]
    together = reranker.rank_many(questions, pages)
    encoded = reranker.encode(pages)
    for question, ranked, kept in zip(questions, together, encoded.rank_many(questions), strict=True):
        alone = {scored.position: scored.score for scored in reranker.rank(question, pages)}
        assert {scored.position: scored.score for scored in ranked} == pytest.approx(alone, abs=1e-6)
        assert {scored.position: scored.score for scored in kept} == pytest.approx(alone, abs=1e-6)
    assert all(abs(scored.score) < 1e-6 for scored in together[2]), "the null question calibrates itself away"
    assert reranker.rank_many([], pages) == []


def test_pages_come_in_many_shapes(qwen: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    page_image(3).save(path)
    same = [page_image(3), path.read_bytes(), path, str(path), Page(image=page_image(3))]
    engine = reranker_for(qwen)
    scores = [engine.rank(QUESTION, [page_image(9), shape])[0] for shape in same]
    assert {scored.position for scored in scores} == {scores[0].position}
    assert {round(scored.score, 6) for scored in scores} == {round(scores[0].score, 6)}


def test_equal_scores_stay_in_the_callers_order() -> None:
    assert descending(torch.tensor([0.5, 2.0, 0.5, 2.0, 0.1, 0.5])) == [1, 3, 0, 2, 5, 4]


def test_async_and_threads_give_the_same_scores(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen)
    expected = [scored.score for scored in reranker.rank(QUESTION, pages)]

    async def ask() -> list[list[float]]:
        encoded = await reranker.aencode(pages)
        rankings = await asyncio.gather(
            reranker.arank(QUESTION, pages), encoded.arank(QUESTION), reranker.arank_many([QUESTION], pages)
        )
        return [[s.score for s in rankings[0]], [s.score for s in rankings[1]], [s.score for s in rankings[2][0]]]

    for got in asyncio.run(ask()):
        assert got == pytest.approx(expected, abs=1e-6)
    found: list[list[float]] = []
    encoded = reranker.encode(pages)

    def one(number: int) -> None:
        source = encoded if number % 2 else None
        ranked = source.rank(QUESTION) if source else reranker.rank(QUESTION, pages)
        found.append([scored.score for scored in ranked])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(found) == 8
    for got in found:
        assert got == pytest.approx(expected, abs=1e-6)


def test_rerankers_share_a_model(qwen: Tiny, pages: list[Page]) -> None:
    first = reranker_for(qwen, HeadSet.parse("1-2"))
    second = first.with_heads("all")
    assert second.backbone.model is first.backbone.model
    assert second.backbone.seam is first.backbone.seam
    assert len(second.heads) == 12
    assert first.rank(QUESTION, pages)[0].score != second.rank(QUESTION, pages)[0].score


def test_what_is_refused(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen)
    with pytest.raises(QuestionError, match="empty"):
        reranker.rank(" ", pages)
    with pytest.raises(PageError, match="no pages"):
        reranker.rank(QUESTION, [])
    with pytest.raises(PageError, match="single Page"):
        reranker.rank(QUESTION, pages[0])  # type: ignore[arg-type]
    with pytest.raises(PageError, match="read_pdf"):
        reranker.rank(QUESTION, "report.pdf")
    with pytest.raises(SettingsError, match="top_n is a whole number of at least 1"):
        reranker.rank(QUESTION, pages, top_n=0)
    with pytest.raises(PageError, match="no such file"):
        reranker.rank(QUESTION, ["nowhere.png"])
    with pytest.raises(PageError, match="an object with load"):
        reranker.rank(QUESTION, [12])  # type: ignore[list-item]
    with pytest.raises(UnsupportedModelError, match="Expected a transformers processor"):
        Reranker(qwen.model, "a processor", "all")


def test_a_prompt_over_the_limit_says_what_was_asked_and_allowed(qwen: Tiny) -> None:
    long = Page(text="revenue " * 3000, index=4, doc_id="report.pdf")
    with pytest.raises(ContextOverflowError, match=r"page 5 of report.pdf takes \d+ tokens.*token_budget") as caught:
        reranker_for(qwen).rank(QUESTION, [long])
    assert caught.value.tokens > caught.value.allowed > 0
    with pytest.raises(ContextOverflowError, match=r"question of \d+ tokens"):
        reranker_for(qwen).rank("revenue " * 2040, [page_image(1)])


def test_nan_weights_are_noticed() -> None:
    broken = tiny("qwen3_vl", seed=5)
    broken.model.model.language_model.layers[0].self_attn.q_proj.weight.data[3] = float("nan")
    with pytest.raises(AttentionCaptureError, match="NaN"):
        reranker_for(broken)
    unchecked = reranker_for(broken, check=False)
    with pytest.raises(AttentionCaptureError, match="NaN"):
        unchecked.rank(QUESTION, [page_image(1)])


def test_nan_pixels_reach_no_score() -> None:
    broken = tiny("qwen3_vl", seed=6)
    broken.model.model.visual.patch_embed.proj.weight.data[0] = float("nan")
    with pytest.raises(AttentionCaptureError, match="NaN"):
        reranker_for(broken).rank(QUESTION, [page_image(1)])


def test_heads_must_fit_the_model(qwen: Tiny, tmp_path: Path) -> None:
    with pytest.raises(HeadSetError, match="9-0"):
        reranker_for(qwen, HeadSet.parse("9-0"))
    with pytest.raises(HeadSetError, match="36 layers"):
        reranker_for(qwen, HeadSet.parse("1-1", n_layers=36, n_heads=32))
    with pytest.raises(HeadSetError, match="mmrh detect"):
        reranker_for(qwen, "published")
    with pytest.raises(DataError, match="neither 'published' nor 'all' nor a file"):
        reranker_for(qwen, "nothing.json")
    with pytest.raises(HeadSetError, match="got int"):
        reranker_for(qwen, 3)
    with pytest.raises(HeadSetError, match=r"Only layers \[1, 3\]"):
        reranker_for(tiny("gemma3"), HeadSet.parse("0-0"))
    path = tmp_path / "heads.json"
    HeadSet.parse("1-2,0-1").save(path)
    assert [str(head) for head in reranker_for(qwen, path).heads] == ["1-2", "0-1"]


def test_loading_from_a_folder_is_the_same_model(qwen: Tiny, pages: list[Page], tmp_path: Path) -> None:
    expected = [scored.score for scored in reranker_for(qwen).rank(QUESTION, pages)]
    tiny("qwen3_vl").save(tmp_path)
    HeadSet.all_heads(3, 4).save(tmp_path / HEADS_FILE)
    loaded = Reranker.from_pretrained(tmp_path)
    assert len(loaded.heads) == 12, "heads='published' takes the set beside the weights"
    assert [scored.score for scored in loaded.rank(QUESTION, pages)] == pytest.approx(expected, abs=1e-6)
    small = Reranker.from_pretrained(tmp_path, heads="all", max_pixels=32 * 32 * 4, dtype=torch.bfloat16, device="cpu")
    assert small.backbone.model.dtype is torch.bfloat16
    assert len(small.prompter.page_segment(pages[0], 1).visual) <= 4
    with pytest.raises(UnsupportedModelError, match="trust_remote_code"):
        Reranker.from_pretrained(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("name", ["gemma3", "internvl", "llava_onevision", "smolvlm", "mistral3", "llama"])
def test_every_kind_of_family_loads_from_a_folder(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    for part in (model.model, model.tokenizer, model.image_processor):
        if part is not None:
            part.save_pretrained(tmp_path)
    loaded = Reranker.from_pretrained(tmp_path, heads="all")
    page = Page(text="words") if name == "llama" else Page(image=page_image(1))
    assert loaded.rank(QUESTION, [page, page])[0].rank == 1
    if name != "llama":
        with pytest.raises(UnsupportedModelError, match="max_pixels"):
            Reranker.from_pretrained(tmp_path, heads="all", max_pixels=1000)


def test_weights_stay_bfloat16_on_a_cpu_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, stored, expected in (
        ({"amx_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"amx_bf16": True}, torch.float32, torch.float32),
        ({"amx_bf16": True}, None, torch.float32),
        ({"avx512_f": True}, torch.bfloat16, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert cpu_dtype(stored) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older torch
    assert cpu_dtype(torch.bfloat16) is torch.float32


def test_an_unknown_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UnsupportedModelError, match="'gpt2' are not supported.*Qwen3-VL"):
        Reranker.from_pretrained(tmp_path, heads="all")


def test_independent_pages_still_stand_within_the_models_context() -> None:
    model = tiny("llama")
    reranker = reranker_for(model, independent=True, token_budget=100_000)
    words = "revenue " * 600
    pages = [Page(text=words, index=place) for place in range(4)]
    assert len(reranker.rank(QUESTION, pages)) == 4, "together they are longer than the context, and may be"
    with pytest.raises(ContextOverflowError, match="page 1"):
        reranker.rank(QUESTION, [Page(text=words * 4)])
    with pytest.raises(ContextOverflowError, match="question"):
        reranker.rank(words * 3, pages)


def test_a_budget_just_too_small_drops_few_windows(
    qwen: Tiny, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = reranker_for(qwen, token_budget=620, final_round=0)
    whole = reranker.encode(pages)
    tight = reranker.encode(pages, memory_budget=whole.nbytes - 1)
    encoded = 0
    make = tight._engine.windows

    def counted(*arguments: object, **options: object) -> object:
        nonlocal encoded
        encoded += 1
        return make(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tight._engine, "windows", counted)
    tight.rank(QUESTION)
    assert 1 <= encoded < len(tight._windows)
    assert tight.nbytes <= whole.nbytes - 1


def test_asking_inside_an_ablation_does_not_block_other_threads(qwen: Tiny, pages: list[Page]) -> None:
    encoded = reranker_for(qwen).encode(pages)
    done: list[int] = []

    def ablated() -> None:
        with encoded.reranker.backbone.seam.ablating([(0, 0)]):
            done.append(len(encoded.rank(QUESTION)))

    threads = [threading.Thread(target=target, daemon=True) for target in (ablated, lambda: encoded.rank(QUESTION)) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert done == [6, 6, 6]


def test_a_token_budget_without_room_is_refused(qwen: Tiny) -> None:
    with pytest.raises(ContextOverflowError, match="token_budget=500"):
        reranker_for(qwen, token_budget=500)
    for budget in (0, -5):
        with pytest.raises(SettingsError, match=f"token_budget: .*greater than 0 .got {budget}"):
            reranker_for(qwen, token_budget=budget)


def test_a_single_text_is_not_a_list_of_questions(qwen: Tiny, pages: list[Page]) -> None:
    reranker = reranker_for(qwen)
    with pytest.raises(QuestionError, match="list of questions"):
        reranker.rank_many("ab", pages)
    with pytest.raises(QuestionError, match="list of questions"):
        reranker.encode(pages).rank_many("ab")
    assert len(reranker.rank_many((text for text in (QUESTION, "staff")), pages)) == 2


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="no configuration"):
        Reranker.from_pretrained(tmp_path, heads="all")
    model = tiny("llama")
    model.model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="Device 'tpuu'"):
        Reranker.from_pretrained(tmp_path, heads="all", device="tpuu")
    with pytest.raises(SettingsError, match="max_pixels"):
        Reranker.from_pretrained(tmp_path, heads="all", max_pixels=0)
