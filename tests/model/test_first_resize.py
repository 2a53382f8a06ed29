"""Images resized to whole visual tokens before their image processor sees them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever import Page, Reranker, RerankSettings
from mmrh_retriever.model.first_resize import FirstResize, whole_tokens, with_first_resize
from tests.factories import page_image, tiny


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 200), (96, 192)),  # to the nearest multiples
        ((112, 208), (128, 192)),  # 3.5 and 6.5 to the even ones
        ((600, 10), (608, 32)),  # no side below one token
        ((33, 33), (64, 64)),  # at least 4 tokens
        ((20, 50), (64, 128)),
        ((8000, 4000), (5792, 2880)),  # at most 16,384
    ],
)
def test_sizes_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert whole_tokens(*size, 32) == expected
    assert 4 <= expected[0] * expected[1] // 32**2 <= 16_384


def test_a_small_image_is_resized_twice_and_a_large_one_as_before() -> None:
    plain = tiny("qwen3_vl").image_processor  # takes 1 to 20 tokens of 32 pixels
    first = with_first_resize(plain)
    small = page_image(1, (70, 41))
    expected = small.resize((96, 64), Image.Resampling.BICUBIC)
    got = first(images=[small], return_tensors="np")
    assert np.array_equal(got["pixel_values"], plain(images=[expected], return_tensors="np")["pixel_values"])
    assert not np.array_equal(got["image_grid_thw"], plain(images=[small], return_tensors="np")["image_grid_thw"])
    whole = page_image(2, (96, 128))
    assert np.array_equal(
        first(images=[whole], return_tensors="np")["pixel_values"],
        plain(images=[whole], return_tensors="np")["pixel_values"],
    )
    assert first.patch_size == plain.patch_size
    assert isinstance(pickle.loads(pickle.dumps(first)), FirstResize)  # noqa: S301


def test_families_that_do_not_take_images_at_their_own_size_are_left_alone() -> None:
    for name in ("gemma3", "internvl", "mistral3", "llama"):
        given = tiny(name).image_processor
        assert with_first_resize(given) is given


def test_it_is_a_setting_of_the_reranker() -> None:
    model = tiny("qwen3_vl")
    pages = [Page(image=page_image(seed, (70, 41)), index=seed) for seed in range(2)]
    resized = [Page(image=page.pixels().resize((96, 64), Image.Resampling.BICUBIC), index=page.index) for page in pages]
    scores = [
        [scored.score for scored in Reranker(
            model.model, (model.tokenizer, model.image_processor), "all", settings=RerankSettings(resize_first=first)
        ).rank("How did revenue change?", shown)]
        for first, shown in ((True, pages), (False, resized), (False, pages))
    ]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-7)
    assert scores[0] != pytest.approx(scores[2], abs=1e-7)
