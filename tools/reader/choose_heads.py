"""Detect the reader's heads on manuals that training never saw, and keep the best beside the weights."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrh_retriever import HeadId, HeadScores, HeadSet, Page
from mmrh_retriever.model.loading import HEADS_FILE, load_model
from mmrh_retriever.research.detection import Detection, detect
from mmrh_retriever.research.probes import Probe, page_probes
from tools.reader.dialogue import as_question, telling_words
from tools.reader.model import working_zoom
from tools.reader.pages import open_pdf

logger = logging.getLogger(__name__)

TASK = "page"
PAGES = 20
GROUPS = 8
NEARLY = 0.8
DEEPEST = 1  # layer; deeper heads found no more pages, and each layer costs every page and question its time
CONTEXT = 32768  # tokens of PAGES pages, about


@dataclass(frozen=True, slots=True)
class Group:
    """Pages of a few documents, and questions with the index of the page that each is about."""

    pages: tuple[Page, ...]
    questions: tuple[tuple[str, int], ...]


def groups(
    pdfs: Sequence[Path],
    common: frozenset[str],
    seed: int,
    count: int = GROUPS,
    questions: int = 10,
    pages_each: int = 10,
) -> Iterator[Group]:
    """`count` groups of PAGES image pages (their text is used for the questions alone).

    Raises:
        ValueError: the manuals have too few pages with text.
    """
    import pymupdf

    rng = random.Random(seed)
    paths = list(pdfs)
    rng.shuffle(paths)
    waiting: list[tuple[Page, list[str]]] = []
    made = 0
    for path in paths:
        try:
            document = open_pdf(path)
        except Exception as error:  # noqa: BLE001  # a broken manual must not end the run
            logger.warning("skipped %s: %s", path, error)
            continue
        with document:
            for number in rng.sample(range(len(document)), min(pages_each, len(document))):
                page = document[number]
                words = [word[4] for word in page.get_text("words")]
                if not 60 <= len(words) <= 1500:
                    continue
                zoom = working_zoom(page.rect.width, page.rect.height)
                pixmap = page.get_pixmap(matrix=pymupdf.Matrix(zoom, zoom), alpha=False)
                waiting.append((Page(image=pixmap.pil_image(), index=len(waiting)), words))
                if len(waiting) == PAGES:
                    yield _group(waiting, rng, common, questions)
                    waiting.clear()
                    made += 1
                    if made == count:
                        return
    raise ValueError(
        f"got {made} groups of {PAGES} pages out of {len(paths)} held-out PDFs; expected {count}: give more --documents"
    )


def _group(pages: list[tuple[Page, list[str]]], rng: random.Random, common: frozenset[str], count: int) -> Group:
    asked: list[tuple[str, int]] = []
    while len(asked) < count:
        gold = rng.randrange(len(pages))
        words = pages[gold][1]
        start = rng.randrange(len(words) - 14)
        question = as_question(words[start : start + rng.randint(8, 14)], rng, common)
        if telling_words(question, common) >= 3:
            asked.append((question, gold))
    return Group(tuple(page for page, _ in pages), tuple(asked))


def probes(found: Sequence[Group]) -> Iterator[Probe]:
    """Every question of every group as one probe for detection."""
    for number, group in enumerate(found):
        yield from page_probes(group.pages, group.questions, context_length=CONTEXT, task=TASK, name=f"group-{number}")


def choose(run: Detection) -> HeadSet:
    """The heads of the first layers that alone find nearly as many pages as the best one, by mean score."""
    return near_the_best(run.table.at(TASK, CONTEXT))


def near_the_best(scores: HeadScores) -> HeadSet:
    """The heads down to layer DEEPEST whose recall@1 is at least NEARLY of the highest there."""
    recall = scores.recall_at_1
    if recall is None:
        raise ValueError("got scores without recall; expected a detection run's own table")
    found = {HeadId(*index): float(share) for index, share in np.ndenumerate(recall)}
    least = NEARLY * max(share for head, share in found.items() if head.layer <= DEEPEST)
    fewer = [head for head, share in found.items() if head.layer > DEEPEST or not share >= least]
    kept = HeadSet.top(scores, count=len(found) - len(fewer), exclude=fewer)
    logger.info(
        "recall@1 %s; of all heads %s", [f"{head} {found[head]:.2f}" for head in kept], recall.round(2).tolist()
    )
    return kept


def choose_heads(folder: Path, pdfs: Sequence[Path], common: frozenset[str], seed: int, count: int = GROUPS) -> HeadSet:
    """Detect on `count` groups of held-out pages; writes the head set into the model's folder, the table beside it."""
    model, processors = load_model(str(folder))
    found = list(groups(pdfs, common, seed, count))
    run = detect(model, processors, probes(found), model_id="mmrh-reader", progress=True)
    run.table.save(folder.parent / "reader_scores.json")
    heads = choose(run)
    heads.save(folder / HEADS_FILE)
    return heads
