"""The newer families as a user has them: from a folder, ranked from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrh_retriever import Page, Reranker
from tests.factories import NEWER, page_image, tiny

QUESTION = "How did revenue change?"
TORCHVISION = ("cohere2_vision", "lfm2_vl")
"""Families whose image processor demands it."""


@pytest.mark.parametrize("name", [name for name in NEWER if name not in TORCHVISION])
def test_a_family_loads_from_a_folder_and_ranks_as_in_memory(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    pages = [Page(image=page_image(seed)) for seed in range(3)]
    for part in (model.model, model.tokenizer, model.image_processor):
        part.save_pretrained(tmp_path)
    loaded = Reranker.from_pretrained(tmp_path, heads="all")
    tokenizer = loaded.prompter.tokenizer  # of the family's own class, which may split text otherwise
    in_memory = Reranker(model.model, (tokenizer, model.image_processor), "all").rank(QUESTION, pages)
    found = loaded.rank(QUESTION, pages)
    assert [page.position for page in found] == [page.position for page in in_memory]
    assert [page.score for page in found] == pytest.approx([page.score for page in in_memory], abs=1e-6)


def test_pixels_of_a_family_that_counts_frames_are_pixels(tmp_path: Path) -> None:
    model = tiny("glm4v")
    for part in (model.model, model.tokenizer, model.image_processor):
        part.save_pretrained(tmp_path)
    limit = 14 * 14 * 12
    small = Reranker.from_pretrained(tmp_path, heads="all", max_pixels=limit)
    segment = small.prompter.page_segment(Page(image=page_image(1, (300, 400))), 1)
    assert limit / 2 < len(segment.visual) * 14 * 14 <= limit
