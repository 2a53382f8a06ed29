"""What asking takes beside the model and the kept keys is bounded, whatever the number of heads and questions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrh_retriever import HeadId, Page
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter
from mmrh_retriever.ranking.inputs import as_candidates
from tests.factories import tiny

BUDGET = 20_000
"""Cells of a tail pass, and logits at a time."""


class Largest(TorchDispatchMode):
    """The largest tensor that is made, in elements; views of what is there already do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, leaf.numel())
        return output


@pytest.mark.parametrize("kind", ["different", "same", "longer"])
def test_the_largest_tensor_is_bounded_for_any_number_of_heads_and_questions(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrh_retriever.encoding.engine.TAIL_CELLS", BUDGET)
    monkeypatch.setattr("mmrh_retriever.model.recording.LOGIT_BUDGET", BUDGET)
    model = tiny("llama")
    backbone = Backbone.of(model.model)
    prompter = Prompter(backbone, model.tokenizer)
    every = [HeadId(layer, head) for layer in range(3) for head in range(4)]
    pages = [Page(text=f"Revenue grew by {number} percent. " * 3, index=number) for number in range(6)]
    texts = {
        "different": [f"{year}: how did revenue change?" for year in range(2000, 2040)],
        "same": ["How did revenue change?"] * 250,
        "longer": ["How" + " very" * (number % 8) for number in range(250)],  # one begins like the other
    }[kind]
    asked = [prompter.question_segment(text) for text in texts]
    found: dict[tuple[int, int], int] = {}
    masses = {}
    for heads in ([every[-1]], every):
        engine = Engine(prompter, heads, 4000)
        (window,) = engine.windows(as_candidates(pages))
        for count in (2, len(asked)):
            with Largest() as largest:
                masses[len(heads), count] = engine.ask(window, asked[:count]).mass
            found[len(heads), count] = largest.elements
    keys = len(window)
    print(f"{keys} keys, largest tensor by heads and questions: {found}")
    assert max(found.values()) <= 1.5 * BUDGET
    rows = sum(len(tree) for tree, _ in engine._groups(window, asked))
    held = max(len(every) * rows, 2 * len(asked)) * keys
    assert held > (50 if kind == "different" else 5) * BUDGET, (
        "small enough to be held at once: the test could not fail"
    )
    torch.testing.assert_close(masses[12, len(asked)][:2, -1:], masses[1, 2], atol=1e-6, rtol=0)
