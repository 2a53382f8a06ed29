"""A model that reads images alone gets text as an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrh_retriever import Page, PageError, PromptOptions, Reranker
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter
from tests.factories import page_image, tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


def prompter(**options: str) -> Prompter:
    model = tiny("qwen3_vl")
    model.model.config.mmrh_images_only = True
    return Prompter(
        Backbone.of(model.model),
        model.tokenizer,
        model.image_processor,
        PromptOptions(**options),  # type: ignore[arg-type]
    )


def test_text_is_written_as_an_image_and_has_no_spots_on_a_page() -> None:
    writer = prompter()
    page = Page(text="Revenue grew by nine percent.")
    segment = writer.page_segment(page, 1)
    assert segment.ids.count(writer.backbone.config.image_token_id) > 4
    assert segment.scored
    assert (segment.grid, segment.visual) == (None, ())
    drawn = writer.image_shown(page)
    assert drawn is not None
    assert segment.ids == writer.page_segment(Page(image=drawn), 1).ids
    assert writer.page_digest(page, 1) != writer.page_digest(Page(text="Revenue fell."), 1)


def test_a_pages_own_image_comes_first_unless_text_is_asked_for() -> None:
    both = Page(image=page_image(1), text="words")
    assert prompter().page_segment(both, 1).visual
    assert not prompter(content="text").page_segment(both, 1).visual
    with pytest.raises(PageError, match="content='both'.*reads images alone"):
        prompter(content="both").page_segment(both, 1)


def test_text_too_long_to_be_drawn_is_refused_by_its_page() -> None:
    with pytest.raises(PageError, match="page 3 has 25000 characters.*reads images alone.*Split"):
        prompter().page_segment(Page(text="word " * 5000, index=2), 3)


@pytest.mark.slow
def test_the_bundled_model_ranks_texts() -> None:
    texts = json.loads((EXAMPLES / "sample_report_text.json").read_text(encoding="utf-8"))
    named = {name: Page(text="\n\n".join(map(str, part))) for name, part in texts.items() if isinstance(part, list)}
    pages = [*named.values(), Page(text="The cat sat on the mat.")]
    reranker = Reranker.from_pretrained()
    top = reranker.rank("How long was no ferry able to land at Skerry Island?", pages)
    assert top[0].page is named["letter"]
    debt = [Page(text="The cat sat on the mat."), Page(text="The net debt was 12 million.")]
    assert reranker.rank("What was the net debt?", debt)[0].position == 1
