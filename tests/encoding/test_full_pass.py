"""The fast path equals the slow one: pages once and question tails, against one plain eager pass, per family."""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import HeadId, Page, PromptOptions
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.ranking.inputs import as_candidates
from mmrh_retriever.types import Candidate
from tests.factories import BUILDERS, RECURRENT, TEXT_ONLY, Tiny, page_image, tiny
from tests.reference import eager_attentions

TOLERANCE = 1e-5
QUESTIONS = [
    "How did revenue change?",
    "N/A",
    "Which table shows water use and staff numbers in the last year?",
    "How did revenue change?",
    "How did revenue",
    "Which table shows revenue?",
]


def some_pages(name: str, kind: str) -> list[Page]:
    """One page, several, or images and texts mixed."""
    texts = [Page(text="Revenue grew by nine percent."), Page(text="The annual report shows emissions.")]
    if name in TEXT_ONLY:
        return texts[:1] if kind == "one" else [*texts, Page(text="Question: How did revenue change?")]
    images = [Page(image=page_image(1)), Page(image=page_image(2, (150, 70))), Page(image=page_image(3, (60, 140)))]
    if kind == "one":
        return images[:1]
    if kind == "several":
        return images
    both = Page(image=page_image(4), text="The tables of the balance sheet.")
    return [images[0], texts[0], both, texts[1]]


def prompter_for(model: Tiny, **options: object) -> Prompter:
    return Prompter(
        Backbone.of(model.model),
        model.tokenizer,
        model.image_processor,
        PromptOptions(**options),  # type: ignore[arg-type]
    )


def every_head(backbone: Backbone) -> list[HeadId]:
    return [HeadId(layer, head) for layer in backbone.seam.modules for head in range(backbone.heads)]


def whole_prompt(prompter: Prompter, pages: list[Page]) -> list[PromptSegment]:
    numbered = enumerate(pages, start=1)
    return [prompter.prefix_segment(), *(prompter.page_segment(page, number) for number, page in numbered)]


def expected_mass(
    model: Tiny, segments: list[PromptSegment], question: PromptSegment, owner: torch.Tensor
) -> torch.Tensor:
    """``(heads, pages + keys)``: the definition, straight from the full attention matrices."""
    attention = eager_attentions(model, [*segments, question])  # (layers, heads, tokens, tokens)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    keys = owner.numel()
    span = question.scored[0]
    rows = slice(keys + span.start, keys + span.stop)
    weights = torch.tensor(question.weights or [1.0] * len(question))[span.start : span.stop]
    shares = weights / weights.sum()
    paid = torch.einsum("lhqk,q->lhk", attention[:, :, rows, :keys], shares).flatten(0, 1)  # (heads, keys)
    pages = int(owner.max()) + 1
    return torch.stack([paid[:, owner == page].sum(-1) for page in range(pages)], dim=-1)


@pytest.mark.parametrize("kind", ["one", "several", "mixed"])
@pytest.mark.parametrize("name", list(BUILDERS))
def test_tails_on_kept_pages_equal_the_full_eager_pass(name: str, kind: str, record_property) -> None:
    model = tiny(name)
    prompter = prompter_for(model, content="both" if kind == "mixed" and name not in TEXT_ONLY else "auto")
    if kind == "mixed" and name not in TEXT_ONLY:
        prompter = prompter_for(model, content="both")
    pages = some_pages(name, kind)
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    (window,) = engine.windows(as_candidates(pages))
    questions = [prompter.question_segment(question) for question in QUESTIONS]
    ran: list[int] = []
    counting = prompter.backbone.base.register_forward_pre_hook(
        lambda _module, _args, given: ran.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    together = engine.ask(window, questions, tokens=True)
    counting.remove()
    assert name in RECURRENT or sum(ran) < sum(map(len, questions)), "what questions begin alike runs once"
    alone = torch.cat([engine.ask(window, [question]).mass for question in questions])
    segments = [
        prompter.prefix_segment(),
        *(prompter.page_segment(page, number) for number, page in enumerate(pages, start=1)),
    ]
    expected = torch.stack([expected_mass(model, segments, question, window.owners()) for question in questions])
    difference = float((together.mass - expected).abs().max())
    between = float((together.mass - alone).abs().max())
    print(f"{name:16} {kind:8} {len(window):4} tokens: full pass {difference:.1e}, asked together {between:.1e}")
    record_property("largest_difference", difference)
    assert float(expected.std()) > 1e-3, "the random model attends to everything alike: the test could not fail"
    assert difference <= TOLERANCE
    assert between <= TOLERANCE
    assert together.tokens is not None
    sums = torch.stack([together.tokens[:, window.owners() == page].sum(-1) for page in range(len(pages))], dim=-1)
    torch.testing.assert_close(sums, together.mass.mean(dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_weighted_tokens_equal_the_weighted_rows_of_the_full_eager_pass(name: str) -> None:
    model = tiny(name)
    plain = prompter_for(model)
    weights = 0.05 + torch.rand(len(model.tokenizer), generator=torch.Generator().manual_seed(3))
    prompter = Prompter(plain.backbone, model.tokenizer, model.image_processor, token_weights=weights)
    pages = some_pages(name, "several")
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    (window,) = engine.windows(as_candidates(pages))
    questions = [prompter.question_segment(question) for question in QUESTIONS]
    asked, null = engine.ask_with_null(window, questions, prompter.null_segment(), tokens=True)
    assert null is not None
    assert asked.tokens is not None
    segments = whole_prompt(prompter, pages)
    for question, mass in zip([*questions, prompter.null_segment()], [*asked.mass, null.mass[0]], strict=True):
        assert question.weights == tuple(weights[question.ids].tolist())
        torch.testing.assert_close(
            mass, expected_mass(model, segments, question, window.owners()), atol=TOLERANCE, rtol=0
        )
    unweighted = engine.ask(window, [plain.question_segment(question) for question in QUESTIONS]).mass
    assert float((asked.mass - unweighted).abs().max()) > 1e-4, "weights change nothing: the test could not fail"
    sums = torch.stack([asked.tokens[:, window.owners() == page].sum(-1) for page in range(len(pages))], dim=-1)
    torch.testing.assert_close(sums, asked.mass.mean(dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_either_base_implementation_gives_the_same(name: str, implementation: str) -> None:
    model = tiny(name, attn_implementation=implementation)
    prompter = prompter_for(model)
    assert prompter.backbone.seam.base == implementation
    pages = some_pages(name, "several")
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    (window,) = engine.windows(as_candidates(pages))
    question = prompter.question_segment(QUESTIONS[0])
    got = engine.ask(window, [question]).mass[0]
    segments = [
        prompter.prefix_segment(),
        *(prompter.page_segment(page, number) for number, page in enumerate(pages, start=1)),
    ]
    expected = expected_mass(model, segments, question, window.owners())
    assert float((got - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_images_longer_than_the_sliding_window_equal_the_full_eager_pass(implementation: str) -> None:
    model = tiny("gemma3", attn_implementation=implementation)
    model.model.config.text_config.sliding_window = 6  # of images of 16 tokens
    prompter = prompter_for(model)
    pages = some_pages("gemma3", "several")
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    (window,) = engine.windows(as_candidates(pages))
    question = prompter.question_segment(QUESTIONS[0])
    got = engine.ask(window, [question]).mass[0]
    expected = expected_mass(model, whole_prompt(prompter, pages), question, window.owners())
    assert float((got - expected).abs().max()) <= TOLERANCE


def test_stopping_early_changes_nothing() -> None:
    model = tiny("qwen2_5_vl")
    prompter = prompter_for(model)
    pages = some_pages("qwen2_5_vl", "several")
    heads = every_head(prompter.backbone)
    shallow = [head for head in heads if head.layer <= 1]
    masses = []
    for chosen in (heads, shallow):
        engine = Engine(prompter, chosen, 4000)
        (window,) = engine.windows(as_candidates(pages))
        masses.append(engine.ask(window, [prompter.question_segment(QUESTIONS[0])]).mass[0])
        assert len(window.cache.layers) == max(head.layer for head in chosen) + 1
    torch.testing.assert_close(masses[0][: len(shallow)], masses[1])


def test_a_question_leaves_the_kept_pages_as_they_were() -> None:
    model = tiny("qwen3_vl")
    prompter = prompter_for(model)
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    (window,) = engine.windows(as_candidates(some_pages("qwen3_vl", "several")))
    before = [layer.keys[:, :, : len(window)].clone() for layer in window.cache.layers if layer.keys is not None]
    buffers = [layer.keys.data_ptr() for layer in window.cache.layers if layer.keys is not None]
    first = engine.ask(window, [prompter.question_segment(QUESTIONS[0])]).mass
    engine.ask(window, [prompter.question_segment(QUESTIONS[2])])
    again = engine.ask(window, [prompter.question_segment(QUESTIONS[0])]).mass
    assert torch.equal(first, again)
    assert window.cache.get_seq_length() == len(window)
    for layer, kept, pointer in zip(window.cache.layers, before, buffers, strict=True):
        assert layer.keys is not None
        assert torch.equal(layer.keys[:, :, : len(window)], kept)
        assert layer.keys.data_ptr() == pointer, "the cache was copied"


def test_many_questions_are_split_by_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3_vl")
    prompter = prompter_for(model)
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    (window,) = engine.windows(as_candidates(some_pages("qwen3_vl", "several")))
    questions = [prompter.question_segment(f"How did revenue change in {year}?") for year in range(2000, 2012)]
    whole = engine.ask(window, questions).mass
    monkeypatch.setattr("mmrh_retriever.encoding.engine.TAIL_CELLS", 30 * len(window))
    assert len(list(engine._groups(window, questions))) > 2
    torch.testing.assert_close(engine.ask(window, questions).mass, whole, atol=1e-6, rtol=0)


def pages_apart(lengths: list[int], question: int) -> torch.Tensor:
    """Causal, but a page sees the prefix and itself alone; the question sees everything."""
    prefix, *pages = lengths
    total = sum(lengths) + question
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    start = prefix
    for length in pages:
        seen[start : start + length, prefix:start] = False
        start += length
    return seen


INDEPENDENT = ["qwen2_vl", "qwen3_vl", "internvl", "smolvlm", "mistral3", "llama", "gemma3"]
INDEPENDENT += ["glm4v", "aya_vision", "llava_next", "mistral4", "gemma4_shared"]


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_pages_equal_one_pass_under_a_mask_that_separates_them(name: str) -> None:
    model = tiny(name)
    prompter = prompter_for(model)
    kind = "mixed" if name not in (*TEXT_ONLY, "gemma3") else "several"
    pages = some_pages(name, kind) if name != "gemma3" else [Page(text=f"Revenue grew in {year}.") for year in (1, 22)]
    engine = Engine(prompter, every_head(prompter.backbone), 4000, independent=True)
    (window,) = engine.windows(as_candidates(pages))
    question = prompter.question_segment(QUESTIONS[0])
    got = engine.ask(window, [question, prompter.null_segment()]).mass[0]

    prefix = prompter.prefix_segment()
    segments = [prompter.page_segment(page, number) for number, page in enumerate(pages, start=1)]
    parts = [prefix.all_positions(), *(segment.all_positions() + prefix.extent for segment in segments)]
    parts.append(question.all_positions() + prefix.extent + max(segment.extent for segment in segments))
    positions = torch.cat(parts, dim=1)
    seen = pages_apart([len(prefix), *map(len, segments)], len(question))
    masks = {"full_attention": seen}
    if name in ("gemma3", "aya_vision", "gemma4_shared"):
        distance = positions[0][:, None] - positions[0][None, :]
        masks["sliding_attention"] = seen & (distance < model.model.config.text_config.sliding_window)
    attention = eager_attentions(model, [prefix, *segments, question], masks=masks, positions=positions)
    rows = slice(len(window), len(window) + len(question))
    paid = attention[:, :, rows, : len(window)].mean(dim=2).flatten(0, 1)
    expected = torch.stack([paid[:, window.owners() == page].sum(-1) for page in range(len(pages))], dim=-1)
    difference = float((got - expected).abs().max())
    print(f"{name:16} independent {len(window):4} tokens: {difference:.1e}")
    assert difference <= TOLERANCE


def test_an_independent_page_does_not_depend_on_its_neighbours() -> None:
    model = tiny("qwen3_vl")
    prompter = prompter_for(model)
    pages = some_pages("qwen3_vl", "several")
    engine = Engine(prompter, every_head(prompter.backbone), 4000, independent=True)
    keys = []
    for shown in ([Candidate(0, 3, pages[2])], as_candidates(pages)):
        (window,) = engine.windows(shown)
        own = window.owners() == len(shown) - 1
        keys.append([layer.keys[:, :, : len(window)][:, :, own] for layer in window.cache.layers])
    for alone, among in zip(*keys, strict=True):
        torch.testing.assert_close(alone, among)
