"""Probes: where the needle lies, how long the context is, and that the same seed gives the same probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever.errors import DataError
from mmrh_retriever.probes import TASKS, Evidence, Probe, ProbeBuilder, page_probes
from mmrh_retriever.research.probes.haystacks import DrawnPicture, Haystack, PastedPicture, RenderedText, sentences
from mmrh_retriever.types import Page

IMAGE_TOKENS = 60


def count(page: Page) -> int:
    """A model of one token per word, a newline per item, and sixty tokens per image."""
    return IMAGE_TOKENS if page.image is not None else len(page.text.split()) + 1


def length_of(probe: Probe) -> int:
    asked = [Page(text=part) if isinstance(part, str) else part for part in (*probe.question, *probe.options)]
    return sum(map(count, [*probe.items, *asked]))


def pictures_of(probe: Probe) -> list[Page]:
    """The pictures inside a probe's question."""
    return [part for part in probe.question if isinstance(part, Page)]


def builder(**options: object) -> ProbeBuilder:
    return ProbeBuilder(count, Haystack.generated(5, passages=60, images=12), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_contexts_are_as_long_as_asked_and_never_longer(task: str) -> None:
    for probe in builder(image_share=0.2).build(task, 3000, examples=2, depths=3):
        assert 2700 <= length_of(probe) <= 3000
        assert probe.context_length == 3000


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_probes(task: str) -> None:
    one, other, moved = (
        [probe.fingerprint() for probe in builder(seed=seed).build(task, 2000, examples=2, depths=2)]
        for seed in (1, 1, 2)
    )
    assert one == other
    assert not set(one) & set(moved)
    assert len(set(one)) == 4


def test_a_text_needle_stands_at_its_span_and_depth() -> None:
    for probe in builder(image_share=0.0).build("text", 3000, examples=3, depths=5):
        (evidence,) = probe.evidence
        item = probe.items[evidence.item].text
        assert item is not None
        assert evidence.start is not None
        needle = item[evidence.start : evidence.stop]
        assert probe.answer in needle
        assert needle.strip().endswith(".")
        before = [page.text or "" for page in probe.items[: evidence.item]]
        everything = sum(len(page.text or "") for page in probe.items)
        depth = (sum(map(len, before)) + evidence.start) / everything
        assert depth == pytest.approx(probe.depth, abs=0.05)
        assert probe.answer in probe.choices
        assert len(set(probe.choices)) == 4


@pytest.mark.parametrize("task", ["image", "rendered_text", "identical_image"])
def test_a_needle_of_its_own_is_one_item_at_its_depth(task: str) -> None:
    for probe in builder(image_share=0.1).build(task, 4000, examples=2, depths=6):
        (evidence,) = probe.evidence
        assert evidence.start is None
        assert probe.items[evidence.item].image is not None
        depth = sum(map(count, probe.items[: evidence.item])) / sum(map(count, probe.items))
        assert depth == pytest.approx(probe.depth, abs=0.12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.4, 1.0])
def test_the_haystack_has_the_share_of_pictures_asked_for(share: float) -> None:
    (probe,) = builder(image_share=share).build("text", 12_000, examples=1, depths=1)
    pictures = sum(page.image is not None for page in probe.items)
    units = pictures + max(1, sum(count(page) for page in probe.items if page.image is None) / 500)
    assert pictures / units == pytest.approx(share, abs=0.04)


def test_multiple_choice_options_are_pictures_of_which_one_was_pasted() -> None:
    (probe,) = builder().build("image", 3000, examples=1, depths=1)
    assert len(probe.options) == len(probe.choices) == 4
    pasted = probe.items[probe.evidence[0].item].image
    assert isinstance(pasted, PastedPicture)
    assert pasted.needle is probe.options[probe.choices.index(probe.answer)]
    difference = np.asarray(pasted.load(), dtype=int) - np.asarray(pasted.host.pixels(), dtype=int)
    assert 0.01 < (np.abs(difference).sum(axis=2) > 0).mean() < 0.4


@pytest.mark.parametrize("task", ["text", "rendered_text"])
def test_cloze_probes_ask_with_the_needles_beginning(task: str) -> None:
    plain, cloze = (next(builder().build(task, 2000, examples=1, depths=1, cloze=cloze)) for cloze in (False, True))
    assert (plain.continues, cloze.continues) == (False, True)
    (asked,), (begun,) = plain.question, cloze.question
    assert asked.endswith("?")
    assert not begun.endswith("?")
    assert cloze.answer not in begun
    (span,) = cloze.evidence
    item = cloze.items[span.item]
    needle = item.text[span.start : span.stop] if task == "text" else item.image.text
    assert needle.strip().startswith(f"{begun} {cloze.answer}")
    with pytest.raises(DataError, match="no sentence to complete"):
        list(builder().build("image", 2000, cloze=True))


def test_negatives_show_everything_but_the_needle() -> None:
    shown, absent = builder().build("identical_image", 3000, examples=1, depths=1, negatives=True)
    assert (shown.answer, absent.answer) == ("yes", "no")
    (asked,) = pictures_of(shown)
    assert asked.image == shown.items[shown.evidence[0].item].image
    assert not absent.evidence
    assert all(page.image != asked.image for page in absent.items)


@pytest.mark.parametrize("task", ["image", "identical_image"])
def test_the_needles_pictures_stand_nowhere_else(task: str) -> None:
    build = ProbeBuilder(count, Haystack.generated(5, passages=60, images=7), image_share=0.8)
    for probe in build.build(task, 6000, examples=4, depths=2, negatives=True):
        asked = {id(page.image) for page in (*pictures_of(probe), *probe.options)}
        shown = [id(page.image) in asked for index, page in enumerate(probe.items) if index not in probe.gold]
        assert sum(page.image is not None for page in probe.items) > 5
        assert not any(shown)
    few = ProbeBuilder(count, Haystack.generated(5, passages=60, images=5), image_share=0.8)
    with pytest.raises(DataError, match="all of them in the question"):
        list(few.build("image", 6000))


def test_generated_pictures_depend_on_the_seed_alone() -> None:
    one, again, other = (np.asarray(DrawnPicture(seed).load()) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    rendered = np.asarray(RenderedText("The key is in Lisbon. " * 8).load())
    assert rendered.shape[1] == 512
    assert 0.01 < (rendered < 128).mean() < 0.3
    assert (rendered[:, -9:] > 128).all(), "the text runs over the margin"


def test_haystacks_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("First passage. With two sentences.\n\nSecond passage.")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.png")
    haystack = Haystack.from_files([tmp_path])
    assert haystack.passages == ("First passage. With two sentences.", "Second passage.")
    assert len(haystack.images) == 1
    with pytest.raises(DataError, match="no such file"):
        Haystack.from_files([tmp_path / "missing.txt"])
    with pytest.raises(DataError, match="no text"):
        Haystack.from_files([tmp_path / "b.png"])
    (tmp_path / "c.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match="is made of"):
        Haystack.from_files([tmp_path / "c.bin"])
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"d\.txt: can't be read .*UTF-8"):
        Haystack.from_files([tmp_path / "d.txt"])


def test_text_without_full_stops_is_cut() -> None:
    assert sentences("One two. Three!  Four?") == ["One two.", "Three!", "Four?"]
    assert [len(part.split()) for part in sentences("word " * 150)] == [60, 60, 30]


def test_pages_with_questions_are_probes() -> None:
    pages = [Page(text=f"Page {number}.", doc_id="d", index=number) for number in range(3)]
    one, two = page_probes(pages, [("Which?", 1), ("Who?", [0, 2])], context_length=4096, name="d")
    assert (one.name, one.gold, one.depth, one.labelled) == ("d-0", {1}, 0.5, True)
    assert two.gold == {0, 2}
    with pytest.raises(DataError, match="outside"):
        list(page_probes(pages, [("Which?", 3)], context_length=4096))


@pytest.mark.parametrize(
    ("task", "length", "options", "message"),
    [
        ("texts", 2000, {}, "Unknown task"),
        ("text", 80, {}, "no room"),
        ("text", 2000, {"examples": 0}, "at least one example"),
    ],
)
def test_impossible_probes_are_refused(task: str, length: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(builder().build(task, length, **options))


def test_impossible_haystacks_are_refused() -> None:
    with pytest.raises(DataError, match="lies in 0 to 1"):
        builder(image_share=1.5)
    texts = Haystack(("Some text.",), (), "texts")
    with pytest.raises(DataError, match="no pictures"):
        ProbeBuilder(count, texts, image_share=0.1)
    with pytest.raises(DataError, match="too few"):
        list(ProbeBuilder(count, texts, image_share=0.0).build("image", 900))


def test_probes_check_themselves() -> None:
    items = (Page(text="Some text."),)
    with pytest.raises(DataError, match="start < stop"):
        Evidence(0, 5, 5)
    with pytest.raises(DataError, match="outside"):
        Probe("text", "p", items, ("Q?",), (Evidence(0, 0, 99),), "a", 10)
    with pytest.raises(DataError, match="not among"):
        Probe("text", "p", items, ("Q?",), (), "a", 10, choices=("b", "c"))
    with pytest.raises(DataError, match="needs a context"):
        Probe("text", "p", (), ("Q?",), (), "a", 10)
    with pytest.raises(DataError, match="depth"):
        Probe("text", "p", items, ("Q?",), (), "a", 10, depth=1.5)
