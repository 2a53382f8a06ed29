"""Rotary embeddings whose frequencies change with the length of a pass: exact where they stay, refused beyond."""

from __future__ import annotations

import pytest
import transformers

from mmrh_retriever import ContextOverflowError, Page
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.ranking.inputs import as_candidates
from tests.encoding.test_full_pass import TOLERANCE, every_head, expected_mass, prompter_for
from tests.factories import PLAIN_TEMPLATE, Tiny, tiny, tokenizer

QUESTION = "How did revenue change?"
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 1024,
    "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def rotated(rope: dict[str, object], most: int) -> Tiny:
    plain = tiny("llama")
    settings = plain.model.config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": most}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    model.load_state_dict(plain.model.state_dict())
    return Tiny("llama", model, tokenizer(PLAIN_TEMPLATE), None)


@pytest.mark.parametrize(("rope", "most"), [(LONGROPE, 4096), (DYNAMIC, 1024)])
def test_the_context_ends_where_frequencies_begin_to_change(rope: dict[str, object], most: int) -> None:
    model = rotated(rope, most)
    prompter = prompter_for(model)
    assert prompter.backbone.context == 1024
    engine = Engine(prompter, every_head(prompter.backbone), 4000)
    pages = [Page(text=f"Revenue grew by {number} percent. " * 20) for number in range(12)]
    windows = list(engine.windows(as_candidates(pages)))
    assert len(windows) > 2
    question = prompter.question_segment(QUESTION)
    start = 0
    for window in windows:
        shown = pages[start : start + len(window.pages)]
        numbered = enumerate(shown, start=start + 1)
        segments = [prompter.prefix_segment(), *(prompter.page_segment(page, number) for number, page in numbered)]
        got = engine.ask(window, [question]).mass[0]
        expected = expected_mass(model, segments, question, window.owners())
        assert float((got - expected).abs().max()) <= TOLERANCE
        start += len(shown)
    with pytest.raises(ContextOverflowError, match=f"1024.*{rope['rope_type']}"):
        engine.ask(windows[0], [prompter.question_segment("How did revenue change? " * 200)])
    with pytest.raises(ContextOverflowError, match="1024"):
        list(engine.windows(as_candidates([Page(text="Revenue grew. " * 300)])))
