"""Beside the families' own processors: rotary positions, and image processors that torchvision backs.

Without torchvision these tests skip (`make processors` has it).
"""

from __future__ import annotations

import pytest
import torch

from mmrh_retriever import Page, Reranker
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter
from tests.factories import BUILDERS, MROPE, VISION, page_image, tiny
from tests.model.test_image_tokens import MARKERS, own_processor

pytest.importorskip("torchvision", reason="needs torchvision, which `make processors` puts beside the environment")

LARGEST_DIFFERENCE = 0.25
"""Between pixels that Pillow and torchvision resized, after normalisation; 0.21 was seen."""


def in_torchvision(name: str) -> type:
    """The image processor of a family that torchvision backs."""
    import transformers

    pillow = BUILDERS[name]()[1][1]
    return getattr(transformers, type(pillow).__name__.removesuffix("Pil"))


@pytest.mark.parametrize("size", [(96, 128), (150, 70), (60, 140)])
@pytest.mark.parametrize("name", MROPE)
def test_positions_are_those_that_the_model_finds_for_its_processors_ids(name: str, size: tuple[int, int]) -> None:
    model = tiny(name)
    prompter = Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor)
    images = [page_image(1, size), page_image(2)]
    segments = [prompter.page_segment(Page(image=image), number) for number, image in enumerate(images, start=1)]
    positions, start = [], 0
    for segment in segments:
        positions.append(segment.all_positions() + start)
        start += segment.extent
    text = "".join(f"Page {number}: {MARKERS[name]}\n" for number in (1, 2))
    theirs = own_processor(name)(images=images, text=text, return_tensors="pt")
    found, _ = model.model.model.get_rope_index(
        theirs["input_ids"], mm_token_type_ids=theirs["mm_token_type_ids"], image_grid_thw=theirs["image_grid_thw"]
    )
    assert torch.equal(found[:, 0], torch.cat(positions, dim=1))


@pytest.mark.parametrize("name", VISION)
def test_an_image_processor_that_torchvision_backs_differs_in_pixels_alone(name: str) -> None:
    model = tiny(name)
    backbone = Backbone.of(model.model)
    other = in_torchvision(name).from_dict(model.image_processor.to_dict())
    assert "Pil" not in type(other).__name__
    largest = 0.0
    for size in [(96, 128), (150, 70), (60, 140), (200, 260)]:
        page = Page(image=page_image(1, size))
        ours, theirs = (
            Prompter(backbone, model.tokenizer, images).page_segment(page, 1)
            for images in (model.image_processor, other)
        )
        assert ours.ids == theirs.ids
        assert ours.visual == theirs.visual
        assert torch.equal(ours.all_positions(), theirs.all_positions())
        assert ours.inputs.keys() == theirs.inputs.keys()
        largest = max(largest, float((ours.inputs["pixel_values"] - theirs.inputs["pixel_values"]).abs().max()))
    print(f"{name}: largest difference of a pixel {largest:.3f}")
    assert largest < LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", VISION)
def test_a_whole_processor_can_be_given(name: str) -> None:
    model = tiny(name)
    pages = [page_image(seed) for seed in range(3)]
    given = Reranker(model.model, own_processor(name), "all").rank("How did revenue change?", pages)
    parts = Reranker(model.model, (model.tokenizer, model.image_processor), "all").rank(
        "How did revenue change?", pages
    )
    assert [(one.position, one.score) for one in given] == [(one.position, one.score) for one in parts]
