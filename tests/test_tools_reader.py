"""The trainer of the bundled reader: labels stand where the ink is, prompts add up, nothing depends on luck."""

from __future__ import annotations

import random

import numpy as np
import pytest

pymupdf = pytest.importorskip("pymupdf")
pytest.importorskip("tokenizers")

from mmrh_retriever import HeadId, HeadScores  # noqa: E402
from tools.reader.dialogue import PromptWriter, ShownPage, as_question  # noqa: E402
from tools.reader.fonts import FIRST_FAMILIES, FontsMissingError, find_fonts  # noqa: E402
from tools.reader.labels import CELL, MERGE, PATCH, WINDOW_CELLS, crop, patches, sheet_windows, trim  # noqa: E402
from tools.reader.pages import CHARACTERS, PageReader, ReadablePage, Typesetting, typeset  # noqa: E402
from tools.reader.tokenizer import SPECIAL_TOKENS, train_tokenizer  # noqa: E402
from tools.reader.words import inflected  # noqa: E402

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
    plain = PromptWriter(tokenizer).plain
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


def test_windows_of_a_sheet_carry_the_labels_of_its_crops(tokenizer, fonts: list[str]) -> None:
    page = make_page(tokenizer, fonts)
    side = WINDOW_CELLS * CELL
    windows = sheet_windows(page, 1.0, (0, 0))
    assert len(windows) == 9
    for number, window in enumerate(windows):
        row, column = divmod(number, 3)
        same = crop(page, 1.0, (column * side, row * side), WINDOW_CELLS, WINDOW_CELLS)
        assert np.array_equal(window.pixels, same.pixels)
        assert {tuple(label) for label in window.pieces} == {tuple(label) for label in same.pieces}


def test_a_trimmed_window_keeps_the_labels_of_its_cells(tokenizer, fonts: list[str]) -> None:
    page = make_page(tokenizer, fonts)
    whole, narrow = crop(page, 1.0, (0, 0), 8, 8), crop(page, 1.0, (0, 0), 3, 8)
    trimmed = trim(whole, 3, 8)
    assert np.array_equal(trimmed.pixels, narrow.pixels)
    assert {tuple(label) for label in trimmed.pieces} == {tuple(label) for label in narrow.pieces}


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
    writer = PromptWriter(tokenizer)
    pages = [ShownPage(4, 2), ShownPage(0, 0, ("the", "revenue"))]
    prompt = writer.write(pages, [("which quarter", 0), ("what revenue", 1)])
    alone = writer.write(pages, [("what revenue", 1)])
    (begin, end), (start, stop) = prompt.questions[1], alone.questions[0]
    assert np.array_equal(prompt.ids[begin:end], alone.ids[start:stop])
    assert np.array_equal(prompt.positions[:, begin:end], alone.positions[:, start:stop])
    assert set(prompt.segments[begin:end]) == {2}
    assert (prompt.ids < 0).sum() == 8


def test_questions_keep_content_words() -> None:
    asked = as_question(
        ["the", "revenue", "of", "the", "second", "quarter"], random.Random(1), frozenset({"the", "of"})
    )
    assert {"revenue", "second", "quarter"} & set(asked.split())


def test_tokens_are_counted_in_what_is_not_held_out(tokenizer) -> None:
    corpus = pytest.importorskip("tools.reader.corpus")
    frequencies = pytest.importorskip("tools.reader.frequencies")
    names = [f"{number}.pdf" for number in range(40)]
    kept = next(name for name in names if not corpus.is_held_out(name))
    held_out = next(name for name in names if corpus.is_held_out(name))
    said, unheard = "the revenue of the year", "emissions"
    documents = [corpus.TextDocument(kept, (said,)), corpus.TextDocument(held_out, (unheard,))]
    found = frequencies.token_frequencies(tokenizer, documents)
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert sum(found.counts) == len(ids)
    assert len(found.counts) == len(tokenizer)
    assert all(found.counts[token] == ids.count(token) for token in ids)
    assert found.counts[ids[0]] >= 2


def test_words_take_other_known_forms() -> None:
    known = frozenset({"report", "reports", "reported", "increase", "increasing", "option", "of"})
    rng = random.Random(1)
    assert {inflected("Reports", known, rng) for _ in range(20)} == {"report", "reported"}
    assert inflected("increase", known, rng) == "increasing"
    assert inflected("option", known, rng) == "option"
    assert inflected("of", known, rng) == "of"


def test_the_first_heads_look_for_what_pieces_say(tokenizer) -> None:
    torch = pytest.importorskip("torch")
    model = pytest.importorskip("tools.reader.model")
    first_heads = pytest.importorskip("tools.reader.first_heads")
    reader = model.new_reader(tokenizer)
    text = reader.model.language_model
    first_heads.scale_embedding(text)
    embedding = text.embed_tokens.weight.detach()
    generator = torch.Generator().manual_seed(0)
    said = torch.randint(len(embedding), (60,), generator=generator)
    found = first_heads.directions(tokenizer, embedding, embedding[said], 48, 128)
    first_heads.start_heads(reader, found, 40.0)
    visual = embedding[said] @ found.turn.T
    asked = torch.tensor([int(said[7])])
    states = torch.cat([visual, embedding[asked]])[None]
    out = text.set_attn_implementation("eager") or text(
        inputs_embeds=states,
        position_ids=torch.cat([torch.zeros(60), torch.ones(1)]).long().expand(3, 1, 61),
        output_attentions=True,
    )
    looked = out.attentions[0][0, first_heads.MATCHING_HEADS[1], -1]
    assert int(looked.argmax()) in {cell for cell in range(60) if said[cell] == said[7]}


def test_the_independent_pass_is_the_stock_towers(tokenizer) -> None:
    torch = pytest.importorskip("torch")
    model = pytest.importorskip("tools.reader.model")
    fast = pytest.importorskip("tools.reader.fast_independent")
    reader = model.new_reader(tokenizer)
    text = reader.model.language_model
    prompt = PromptWriter(tokenizer).write([ShownPage(4, 2)], [("which quarter had higher revenue", 0)])
    visual = torch.randn(8, model.WIDTH, generator=torch.Generator().manual_seed(0))
    ids = torch.from_numpy(np.maximum(prompt.ids, 0))
    embedded = text.embed_tokens(ids).masked_scatter(torch.from_numpy(prompt.ids < 0)[:, None], visual)
    positions = torch.from_numpy(prompt.positions)
    with torch.no_grad():
        indices = fast.TokenIndices.of(prompt)
        with torch.autocast("cpu", torch.bfloat16):
            states, masses = fast.independent_states(text, embedded, positions, indices)
        stock = text.set_attn_implementation("eager") or text(
            inputs_embeds=embedded[None], position_ids=positions[:, None], output_attentions=True
        )
    begin, end = prompt.questions[0]
    start, stop = prompt.pages[0]
    rows = stock.attentions[0][0, :, begin:end, start:stop].sum(-1).mean(-1)
    torch.testing.assert_close(masses[0][0, :, 0], rows, atol=0.02, rtol=0.05)
    own = torch.from_numpy(np.flatnonzero(prompt.segments == 1))
    torch.testing.assert_close(states[0, : len(own)].float(), stock.last_hidden_state[0, own], atol=0.1, rtol=0.1)


def test_heads_are_chosen_near_the_best_of_the_first_layers() -> None:
    choose_heads = pytest.importorskip("tools.reader.choose_heads")
    recall = np.full((4, 4), 0.1)
    recall[0, 1], recall[1, 2], recall[1, 3] = 0.45, 0.5, 0.3
    recall[3, 3] = 0.9  # deeper than heads are taken from
    values = np.zeros((4, 4))
    values[1, 2], values[0, 1], values[3, 3] = 0.2, 0.3, 0.9
    scores = HeadScores(values, "reader", choose_heads.TASK, choose_heads.CONTEXT, recall_at_1=recall)
    assert list(choose_heads.near_the_best(scores)) == [HeadId(0, 1), HeadId(1, 2)]
    with pytest.raises(ValueError, match="0 groups of 20 pages out of 0 held-out PDFs"):
        next(choose_heads.groups([], frozenset(), 0))


def test_examples_stay_within_their_memory(tokenizer) -> None:
    examples = pytest.importorskip("tools.reader.examples")

    class NoShelf:
        words = ("the",)

    NoShelf.tokenizer = tokenizer
    maker = examples.ExampleMaker(NoShelf())
    asked = [("which quarter had higher revenue", 0)] * 9
    longest = len(maker.writer.plain(asked[0][0]))
    cells = examples.LARGEST // (4 * longest)
    assert len(maker.affordable(asked, cells)) == 4
    assert maker.affordable(asked, 1) == asked
    assert maker.affordable([], cells) == []
