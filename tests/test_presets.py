"""The paper's preset, and wordings of the prompt from files."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from mmrh_retriever import DataError, Page, PageError, PromptOptions, Region, Reranker, RerankSettings, SettingsError
from mmrh_retriever.settings import read_prompt
from tests.factories import page_image, tiny
from tests.reference import eager_attentions

QUESTION = " How did revenue change? "


def reranker_for(settings: RerankSettings, **changes: Any) -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", settings=settings, **changes)


def shown(reranker: Reranker, pages: list[Page]) -> str:
    """The prompt of a window and a question as text."""
    prompter = reranker.prompter
    segments = [prompter.prefix_segment()]
    segments += [prompter.page_segment(item.page, item.number) for item in reranker.candidates(pages)]
    segments.append(prompter.question_segment(QUESTION))
    text = prompter.tokenizer.decode([token for segment in segments for token in segment.ids])
    return str(text).replace("<|image_pad|>", "")


def test_the_papers_prompt_for_pages() -> None:
    reranker = reranker_for(RerankSettings.paper())
    pages = [Page(image=page_image(seed), index=seed, doc_id="a.pdf") for seed in range(2)]
    image = "<|vision_start|><|vision_end|>"
    assert shown(reranker, pages).endswith(
        f"for the question\nPage 0: {image}\nPage 1: {image}\n\nQuestion:  How did revenue change? "
    )
    assert reranker.engine().token_budget == reranker.backbone.context == 4096
    assert (reranker.engine().window_pages, reranker.settings.final_round) == (200, 0)
    assert not reranker.independent
    assert len(reranker.rank(QUESTION, pages)) == 2


def test_the_papers_prompt_for_layouts() -> None:
    reranker = reranker_for(RerankSettings.paper("layout"))
    box = Region((0, 0, 48, 64), metadata={"layout_id": 41})
    pages = [Page(image=page_image(seed), index=seed + 3, regions=(box,)) for seed in range(2)]
    prompts: list[str] = []
    rank = reranker.rank_many
    reranker.rank_many = lambda questions, pages, **more: (  # type: ignore[method-assign]
        prompts.append(shown(reranker, list(pages))) or rank(questions, pages, **more)
    )
    assert len(reranker.rank_regions(QUESTION, pages, method="crops")) == 2
    image = "<|vision_start|><|vision_end|>"
    assert prompts[0].endswith(
        f"for the question\nLayout 41 on page 3: {image}\nLayout 41 on page 4: {image}"
        "\n\nQuestion:  How did revenue change? "
    )
    assert reranker.engine().window_pages == 50
    with pytest.raises(PageError, match="layout_id"):
        reranker.rank(QUESTION, pages)


@pytest.mark.parametrize("level", ["page", "layout"])
def test_scores_are_those_of_plain_passes_window_by_window(level: Literal["page", "layout"]) -> None:
    reranker = reranker_for(RerankSettings.paper(level), window_pages=2)
    metadata = {"layout_id": 7, "page_index": 1}
    pages = [Page(image=page_image(seed, (70, 41)), index=seed, metadata=metadata) for seed in range(3)]
    expected: dict[int, float] = {}
    prompter = reranker.prompter
    for indices in ([0, 1], [2]):
        shown = [prompter.prefix_segment(), *(prompter.page_segment(pages[index], index + 1) for index in indices)]
        before = [sum(map(len, shown[:number])) for number in range(len(shown) + 1)]
        paid = []
        for question in (prompter.question_segment(QUESTION), prompter.null_segment()):
            attention = eager_attentions(tiny("qwen3_vl"), [*shown, question])  # (layers, heads, tokens, tokens)
            looks = slice(before[-1] + question.scored[0].start, before[-1] + question.scored[0].stop)
            paid.append(attention[:, :, looks].mean(dim=(0, 1, 2)))  # (tokens,)
        for number, index in enumerate(indices, start=1):
            (span,) = (item.shifted(before[number]) for item in shown[number].scored)
            expected[index] = float(sum(paid[0][span.start : span.stop]) - sum(paid[1][span.start : span.stop]))
    got = {scored.position: scored.score for scored in reranker.rank(QUESTION, pages)}
    assert got == pytest.approx(expected, abs=1e-6)


def test_options_go_before_the_preset() -> None:
    settings = RerankSettings.of(RerankSettings.paper(), {"window_pages": 4, "dtype": "bfloat16"})
    assert (settings.window_pages, settings.dtype, settings.final_round) == (4, "bfloat16", 0)
    assert settings.options == RerankSettings.paper().options


def test_a_prompt_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps({"instruction": "Look.", "first_number": 0, "count_question_label": False}))
    expected = PromptOptions(instruction="Look.", first_number=0, count_question_label=False)
    assert read_prompt(path) == expected
    paper = RerankSettings.paper().options
    over = read_prompt(path, paper)
    assert (over.instruction, over.page_label) == ("Look.", paper.page_label)
    path.write_text(json.dumps(asdict(paper)))
    assert read_prompt(path) == paper
    assert set(asdict(paper)) == {item.name for item in fields(PromptOptions)}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"instructions": "x"}, DataError, "instructions: Extra inputs"),
        ({"first_number": "1"}, DataError, "first_number: Input should be a valid integer"),
        ({"content": "pixels"}, DataError, "content: Input should be 'auto'"),
        ({"page_label": "{0}"}, SettingsError, "page_label may hold"),
        ({"null_question": " "}, SettingsError, "null_question is empty"),
        ([], DataError, "not a valid prompt file"),
    ],
)
def test_wrong_prompt_files_are_named_with_the_field(
    tmp_path: Path, content: object, error: type[Exception], message: str
) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(error, match="prompt.json") as caught:
        read_prompt(path)
    assert message in str(caught.value)
