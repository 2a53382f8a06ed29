"""Stage 3 of the bundled reader's trainer: the package's own score, and nothing of pages changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pymupdf = pytest.importorskip("pymupdf")
pytest.importorskip("tokenizers")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402

from mmrh_retriever import HeadSet, Page, Reranker  # noqa: E402
from mmrh_retriever.model.loading import HEADS_FILE, model_path  # noqa: E402
from mmrh_retriever.model.token_weights import frequency_weights  # noqa: E402
from tools.reader.dialogue import framed  # noqa: E402
from tools.reader.examples import ExampleMaker  # noqa: E402
from tools.reader.fonts import FontsMissingError  # noqa: E402
from tools.reader.labels import MERGE  # noqa: E402
from tools.reader.model import image_processor  # noqa: E402
from tools.reader.page_questions import QuestionMaker, column_head, lines  # noqa: E402
from tools.reader.page_scores import EncodedPage, PageScores  # noqa: E402
from tools.reader.pages import PageReader  # noqa: E402
from tools.reader.question_stage import HeldOut, QuestionSettings, QuestionTrainer, improve  # noqa: E402
from tools.reader.shelf import KeptPage, Shelf  # noqa: E402
from tools.reader.tokenizer import load_tokenizer  # noqa: E402

FOLDER = Path(model_path(None)[0])
TEXTS = (
    "Annual report\nThe committee reported higher revenue in the second quarter.\n"
    "Region employees\nNorth 1240\nSouth 380",
    "Kernel modules\nDrivers are loaded when hardware is found.\nModule size\nnetwork 5120\nstorage 7300",
    "Growing tomatoes\nPlants need water and warm soil during summer.\nMonth rain\nJune 62\nAugust 41",
    "Printing fonts\nLetters are drawn with outlines and hints.\nFamily weight\nserif 400\nmono 700",
)
COMMON = ["the", "of", "and", "in", "are", "is", "when", "with"] + ["filler"] * 200


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


@pytest.fixture
def model() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)


def drawn(text: str) -> Iterator[tuple[pymupdf.Page, Image.Image]]:
    with pymupdf.open() as document:
        page = document.new_page(width=340, height=150)
        for number, line in enumerate(text.split("\n"), start=1):
            for column, part in enumerate(line.split(" ") if len(line.split()) == 2 else [line]):
                page.insert_text((12 + 120 * column, 24 * number), part, fontsize=12)
        yield page, page.get_pixmap(dpi=110).pil_image()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [image for text in TEXTS for _, image in drawn(text)]


def kept_pages(model, tokenizer) -> list[KeptPage]:
    found = []
    for text in TEXTS:
        for page, image in drawn(text):
            inputs = image_processor()(images=[image], return_tensors="pt")
            _, height, width = inputs["image_grid_thw"][0].tolist()
            with torch.no_grad():
                tokens = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
            read = PageReader(tokenizer).read(page, drawn=False)
            columns, rows, marks = width // MERGE, height // MERGE, read.word_marks
            across, down = columns / read.width, rows / read.height
            found.append(
                KeptPage(
                    tokens, columns, rows, read.words, marks.left * across, marks.right * across, marks.middle * down
                )
            )
    return found


def page_scores(model, tokenizer) -> PageScores:
    heads, weights = HeadSet.load(FOLDER / HEADS_FILE), frequency_weights(str(FOLDER))
    return PageScores(model, tokenizer, heads, weights, kept_dtype=torch.float32)


def encoded(scores: PageScores, pages: list[KeptPage]) -> list[EncodedPage]:
    return [scores.encode(page, number) for number, page in enumerate(pages, start=1)]


def question_maker(model, tokenizer, seed: int = 1) -> QuestionMaker:
    try:
        shelf = Shelf(model.model.visual, tokenizer, [], COMMON, [], random.Random(seed))
    except FontsMissingError as error:
        pytest.skip(str(error))
    return QuestionMaker(ExampleMaker(shelf))


def trainer(model, tokenizer, **changes) -> QuestionTrainer:
    scores = page_scores(model, tokenizer)
    pages = encoded(scores, kept_pages(model, tokenizer))
    settings = QuestionSettings(**{"seconds": 1.0, "pages": 4, "questions": 6, **changes})
    return QuestionTrainer(scores, [pages], question_maker(model, tokenizer), settings)


def test_scores_are_the_rerankers_own(model, tokenizer, images: list[Image.Image]) -> None:
    questions = ["how many employees does the North have?", "Drivers", "rain 41 in august / the tomatoes"]
    scores = page_scores(model, tokenizer)
    with torch.no_grad():
        ours = scores(encoded(scores, kept_pages(model, tokenizer)), questions).numpy()
    reranker = Reranker.from_pretrained(dtype=torch.float32, hybrid=False)
    for row, ranking in zip(ours, reranker.rank_many(questions, [Page(image=image) for image in images]), strict=True):
        theirs = sorted(ranking, key=lambda scored: scored.position)
        np.testing.assert_allclose(row, [scored.attention_score for scored in theirs], atol=2e-6)
    assert np.ptp(ours) > 0.05


def test_training_lowers_the_loss_and_leaves_pages_as_they_are(model, tokenizer) -> None:
    with torch.no_grad():  # pieces say less than they did
        model.model.language_model.embed_tokens.weight += 0.08 * torch.randn(
            model.model.language_model.embed_tokens.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    first = {name: value.clone() for name, value in model.state_dict().items()}
    training = trainer(model, tokenizer, embedding_rate=1e-2)
    pages = training._documents[0]
    questions = ["what is the growing of tomatoes", "how many employees does the south have", "letters with outlines"]
    golds = torch.tensor([2, 0, 3])

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(training.scores(pages, questions) / 0.03, golds))

    before = loss()
    assert before > 0.3
    for _ in range(12):
        training.step()
    assert loss() < before
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, first[name])}
    layer = "model.language_model.layers.1.self_attn.q_proj"
    table = "model.language_model.embed_tokens.weight"
    assert changed == {table, "lm_head.weight", f"{layer}.weight", f"{layer}.bias"}
    rows = (model.state_dict()[table] != first[table]).any(1).nonzero().flatten().tolist()
    assert rows
    assert not set(rows) & set(training.scores.writer.page_side)
    queries = (model.state_dict()[f"{layer}.weight"] != first[f"{layer}.weight"]).any(1)
    assert queries[:256].any()
    assert not queries[256:].any()  # of heads that are not selected
    for one, other in zip(encoded(training.scores, kept_pages(model, tokenizer)), pages, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values[0], other.values[0])


def test_training_goes_on_from_its_checkpoint(model, tokenizer, tmp_path: Path) -> None:
    checkpoint = tmp_path / "questions.pt"
    training = trainer(model, tokenizer)
    training.run(checkpoint)
    steps, found = training.state["step"], training.copies()
    assert steps
    again = trainer(Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32), tokenizer)
    again.run(checkpoint)
    assert again.state["step"] == steps
    assert all(torch.equal(value, found[name]) for name, value in again.copies().items())
    more = trainer(model, tokenizer, seconds=training.state["seconds"] + 0.01)
    more.run(checkpoint)
    assert more.state["step"] == steps + 1
    assert not torch.equal(more.copies()["embedding"], found["embedding"])


def test_what_finds_no_more_pages_is_put_back(model, tokenizer, tmp_path: Path) -> None:
    training = trainer(model, tokenizer, embedding_rate=1.0, temperature=-0.03, seconds=0.01)  # looks away
    held_out = HeldOut.of(training._documents, question_maker(model, tokenizer, 5), 2, 4, 8)
    first = training.copies()
    assert not improve(training, held_out, tmp_path)
    assert all(torch.equal(value, first[name]) for name, value in training.copies().items())
    assert torch.load(tmp_path / "questions.pt", weights_only=True)["state"]["step"] == 1


def test_ranks_count_better_pages(model, tokenizer) -> None:
    scores = page_scores(model, tokenizer)
    pages = encoded(scores, kept_pages(model, tokenizer))
    asked = tuple(("tomatoes and warm soil", gold) for gold in range(4))
    held_out = HeldOut(((tuple(pages), asked),))
    ranks = held_out.ranks(scores)
    assert sorted(ranks) == [0, 1, 2, 3]
    assert ranks[2] == 0
    assert held_out.clusters() == [0] * 4


def test_questions_are_about_their_pages(model, tokenizer) -> None:
    pages = kept_pages(model, tokenizer)
    asked = question_maker(model, tokenizer).questions(pages, 60)
    assert {gold for _, gold in asked} == {0, 1, 2, 3}
    telling = [
        len({word.lower().strip(".") for word in pages[gold].words} & set(question.lower().split()))
        for question, gold in asked
    ]
    assert np.mean(np.array(telling) > 0) > 0.9


def test_lines_and_columns_are_found(model, tokenizer) -> None:
    page = kept_pages(model, tokenizer)[0]
    assert [[page.words[index] for index in line] for line in lines(page)][2:] == [
        ["Region", "employees"],
        ["North", "1240"],
        ["South", "380"],
    ]
    head = column_head(page, page.words.index("380"))
    assert head is not None
    assert page.words[head] == "employees"
    assert column_head(page, 0) is None


def test_frames_hold_all_words() -> None:
    words = ["monthly", "rain", "in", "August"]
    for seed in range(40):
        asked = framed(words, random.Random(seed))
        assert set(words) <= set(asked.rstrip(" ?").split())
        assert len(asked.split()) > len(words)
    assert "rain" in framed(["rain"], random.Random(0))
