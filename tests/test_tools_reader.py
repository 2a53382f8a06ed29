"""The trainer of the bundled reader: labels stand where the ink is, what is laid adds up, nothing depends on luck."""

from __future__ import annotations

import random

import numpy as np
import pytest

pymupdf = pytest.importorskip("pymupdf")
pytest.importorskip("tokenizers")

from tools.reader.dialogue import Layer, ShownPage, as_question  # noqa: E402
from tools.reader.fonts import FIRST_FAMILIES, FontsMissingError, find_fonts  # noqa: E402
from tools.reader.labels import CELL, MERGE, PATCH, crop, patches  # noqa: E402
from tools.reader.pages import CHARACTERS, PageReader, ReadablePage, Typesetting, typeset  # noqa: E402
from tools.reader.tokenizer import SPECIAL_TOKENS, train_tokenizer  # noqa: E402

TEXTS = [
    "The committee reported higher revenue in the second quarter of the year.",
    "Attention heads look up evidence.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 50, vocabulary_size=400)


@pytest.fixture(scope="module")
def fonts() -> list[str]:
    try:
        return find_fonts(FIRST_FAMILIES, upright_only=True)
    except FontsMissingError as error:
        pytest.skip(str(error))


def make_page(tokenizer, fonts: list[str], seed: int = 3) -> ReadablePage:
    how = Typesetting(fonts, (18, 18), None, 0.0)
    with typeset(TEXTS, ["word"], how, random.Random(seed)) as document:
        return PageReader(tokenizer).read(document[0])


@pytest.mark.parametrize("text", ["Revenue of 2019", "Zürich's naïve 漢字 🙂", "<|im_start|> is text", ""])
def test_any_text_encodes(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert all(number >= len(SPECIAL_TOKENS) for number in ids)
    assert bool(ids) == bool(text)


def test_tokenizer_lowers_case_and_splits_digits(tokenizer) -> None:
    plain = Layer(tokenizer).plain
    assert plain("REVENUE") == plain("revenue")
    assert plain("12") == plain("1 2")
    assert tokenizer.decode(plain("The committee")).strip() == "the committee"


def test_special_tokens_come_first(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_labels_stand_on_ink(tokenizer, fonts: list[str]) -> None:
    made = crop(make_page(tokenizer, fonts), 1.0, (0, 0), 8, 8)
    ink = (made.pixels < 128).any(-1).reshape(8, CELL, 8, CELL).any((1, 3)).ravel()
    labelled = np.zeros(64, dtype=bool)
    labelled[made.characters[:, 0]] = True
    assert labelled.sum() > 40
    assert not (labelled & ~ink).any()


def test_labels_follow_the_crop(tokenizer, fonts: list[str]) -> None:
    page = make_page(tokenizer, fonts)
    whole, part = crop(page, 1.0, (0, 0), 16, 8), crop(page, 1.0, (8 * CELL, 0), 8, 8)
    shifted = {
        (row, column, piece) for cell, piece in whole.pieces for row, column in [divmod(cell, 16)] if column >= 8
    }
    assert shifted == {(cell // 8, cell % 8 + 8, piece) for cell, piece in part.pieces}


def test_first_word_is_labelled_letter_by_letter(tokenizer, fonts: list[str]) -> None:
    page = make_page(tokenizer, fonts)
    count = len(page.words[0].strip("."))
    assert "".join(CHARACTERS[number] for number in page.characters.ids[:count]) == page.words[0].strip(".").lower()


def test_rendering_is_deterministic(tokenizer, fonts: list[str]) -> None:
    first, second = (crop(make_page(tokenizer, fonts), 1.1, (5, 9), 8, 8) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.pieces, second.pieces)


def test_patches_are_what_the_stock_processor_feeds(tokenizer, fonts: list[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    model = pytest.importorskip("tools.reader.model")
    pixels = crop(make_page(tokenizer, fonts), 1.0, (0, 0), 8, 8).pixels
    inputs = model.image_processor()(images=[image.fromarray(pixels)], return_tensors="np")
    assert inputs["image_grid_thw"].tolist() == [[1, 8 * MERGE, 8 * MERGE]]
    assert patches(pixels).shape == (64 * MERGE**2, 3 * PATCH**2)
    np.testing.assert_allclose(inputs["pixel_values"], patches(pixels), atol=1e-5)


def test_questions_share_pages_but_not_positions(tokenizer) -> None:
    layer = Layer(tokenizer)
    pages = [ShownPage(4, 2, np.zeros((0, 2), np.int64)), ShownPage(0, 0, None, ("the", "revenue"))]
    laid = layer.lay(pages, [("which quarter", 0), ("what revenue", 1)])
    alone = layer.lay(pages, [("what revenue", 1)])
    (begin, end), (start, stop) = laid.questions[1], alone.questions[0]
    assert np.array_equal(laid.ids[begin:end], alone.ids[start:stop])
    assert np.array_equal(laid.positions[:, begin:end], alone.positions[:, start:stop])
    assert set(laid.segments[begin:end]) == {2}
    assert laid.n_cells == 8
    assert (laid.ids < 0).sum() == 8


def test_questions_keep_content_words() -> None:
    asked = as_question(
        ["the", "revenue", "of", "the", "second", "quarter"], random.Random(1), frozenset({"the", "of"})
    )
    assert {"revenue", "second", "quarter"} & set(asked.split())
