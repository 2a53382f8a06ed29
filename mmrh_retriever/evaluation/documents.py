"""One document under rankers: its pages are read once, every question is measured, a failure counts as zero."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrh_retriever.errors import DataError, MMRHError
from mmrh_retriever.evaluation.metrics import PageBox, layout_measures, page_measures
from mmrh_retriever.evaluation.mmdocir.annotations import Document, Question
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import PageRanker, RegionRanker, Scores, listed_regions
from mmrh_retriever.evaluation.rows import Level, Part, RankedBox, Row
from mmrh_retriever.types import Box, Page

logger = logging.getLogger(__name__)

KEPT_BOXES = 50
"""Boxes per question that a row keeps at layout level."""
TEXT_LAYER, SCAN = "text layer", "scan"
"""A document is a scan if fewer than half of its pages have text."""

Rankers = Mapping[str, PageRanker | RegionRanker]


@dataclass(frozen=True, slots=True)
class DocumentJob:
    """A document, and the rankers that it has yet to go through."""

    document: Document
    rankers: tuple[str, ...]


def measure_document(dataset: MMDocIR, job: DocumentJob, rankers: Rankers, level: Level) -> Iterator[Part]:
    """A document under each ranker of its job. Its pages are read once.

    What can't be read or ranked gives rows with an error and zeros, and a line in the log.
    """
    document = job.document
    try:
        pages = dataset.pages(document, regions=level == "layout")
    except MMRHError as error:
        logger.warning("%s counts as zero: %s", document.name, error)
        for name in job.rankers:
            yield failed_part(document, name, level, str(error), source=None)
        return
    source = _source(pages)
    for name in job.rankers:
        begun = time.perf_counter()
        try:
            rows = _rows(document, pages, rankers[name], level, name, source)
        except MMRHError as error:
            logger.warning("%s counts as zero under %s: %s", document.name, name, error)
            yield failed_part(document, name, level, str(error), source=source)
            continue
        seconds = round(time.perf_counter() - begun, 4)
        yield Part(
            ranker=name, document=document.name, line=document.line, level=level, seconds=seconds, rows=list(rows)
        )


def failed_part(document: Document, ranker: str, level: Level, error: str, *, source: str | None) -> Part:
    """A document without result: every measure is zero."""
    rows = [
        _row(document, question, ranker, source, _measures(question, level, scores=[], boxes=[]), error=error)
        for question in document.questions
    ]
    return Part(ranker=ranker, document=document.name, line=document.line, level=level, seconds=0.0, rows=rows)


def _rows(document: Document, pages: list[Page], ranker: Any, level: Level, name: str, source: str) -> Iterable[Row]:
    texts = [question.text for question in document.questions]
    if level == "layout":
        scores = _checked(ranker.rank_regions(texts, pages), len(texts), len(listed_regions(pages)), name)
    else:
        scores = _checked(ranker.rank(texts, pages), len(texts), len(pages), name)
    rows = []
    for question, values in zip(document.questions, scores, strict=True):
        if level == "layout":
            boxes = _best_boxes(question, pages, values)
            measures = _measures(question, level, scores=[], boxes=boxes)
            rows.append(_row(document, question, name, source, measures, boxes=boxes))
        else:
            kept = [None if np.isnan(value) else float(value) for value in values]
            measures = _measures(question, level, scores=values, boxes=[])
            rows.append(_row(document, question, name, source, measures, scores=kept))
    return rows


def _row(
    document: Document, question: Question, ranker: str, source: str | None, measures: dict[str, float], **more: Any
) -> Row:
    return Row(
        ranker=ranker,
        document=document.name,
        question=question.number,
        text=question.text,
        domain=document.domain,
        types=list(question.types),
        source=source,
        gold=list(question.pages),
        measures=measures,
        **more,
    )


def _measures(
    question: Question, level: Level, *, scores: npt.ArrayLike, boxes: Sequence[RankedBox]
) -> dict[str, float]:
    if level == "page":
        return page_measures(scores, question.pages)
    gold = [PageBox(item.page, item.box) for item in question.layouts]
    return layout_measures([PageBox(page, box) for page, box, _ in boxes], gold)


def _best_boxes(question: Question, pages: Sequence[Page], scores: npt.NDArray[np.float64]) -> list[RankedBox]:
    """The best boxes, in the units of the gold boxes of their page. Equals stand in an order drawn by lot."""
    sizes = {item.page: item.page_size for item in question.layouts}
    regions = [(page, region) for page in pages for region in page.regions]
    lots = np.random.default_rng(len(question.text)).permutation(len(regions))
    ranked = [index for index in np.lexsort((lots, -scores)) if not np.isnan(scores[index])]
    found: list[RankedBox] = []
    for index in ranked[:KEPT_BOXES]:
        page, region = regions[index]
        box = _scaled(region.box, page.size, sizes.get(page.index))
        found.append((page.index, box, float(scores[index])))
    return found


def _scaled(box: Box, size: tuple[float, float] | None, wanted: tuple[float, float] | None) -> Box:
    if size is None or wanted is None or size == wanted:
        return box
    across, down = wanted[0] / size[0], wanted[1] / size[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _checked(scores: Scores, questions: int, candidates: int, name: str) -> Scores:
    if scores.shape != (questions, candidates):
        raise DataError(
            f"{name} gave scores of shape {scores.shape} for {questions} questions and {candidates} candidates."
        )
    if np.isinf(scores).any():
        raise DataError(f"{name} gave infinite scores. Expected numbers, NaN for what was not ranked.")
    return scores


def _source(pages: Sequence[Page]) -> str:
    with_text = sum(bool(page.text and page.text.strip()) for page in pages)
    return TEXT_LAYER if 2 * with_text >= len(pages) else SCAN
