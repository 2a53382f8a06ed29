"""One document under rankers: its pages are read once, every question is measured, a failure counts as zero."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrh_retriever.errors import DataError, MMRHError
from mmrh_retriever.evaluation.metrics import PageBox, layout_measures, page_measures
from mmrh_retriever.evaluation.mmdocir.annotations import Document, Question
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import Rankers, Scores, listed_regions
from mmrh_retriever.evaluation.rows import Level, Part, RankedBox, Row
from mmrh_retriever.types import Box, Page

logger = logging.getLogger(__name__)

KEPT_BOXES = 50
"""Boxes per question that a row keeps at layout level."""


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
            yield failed_part(document, name, level, str(error))
        return
    with_text = sum(bool(page.text and page.text.strip()) for page in pages)
    # a document is a scan if fewer than half of its pages have text
    source = "text layer" if 2 * with_text >= len(pages) else "scan"
    for name in job.rankers:
        begun = time.perf_counter()
        try:
            results = _ranked(document, pages, name, rankers[name], level)
        except MMRHError as error:
            logger.warning("%s counts as zero under %s: %s", document.name, name, error)
            yield failed_part(document, name, level, str(error), source)
        else:
            yield _part(document, name, level, source, results, round(time.perf_counter() - begun, 4))


def failed_part(document: Document, ranker: str, level: Level, error: str, source: str | None = None) -> Part:
    """A document without result: every measure is zero."""
    return _part(document, ranker, level, source, [{"error": error}] * len(document.questions), 0.0)


def _part(
    document: Document, ranker: str, level: Level, source: str | None, results: Sequence[dict[str, Any]], seconds: float
) -> Part:
    """A row per question. ``results`` are what it holds beside the annotations and measures: scores, boxes or error."""
    rows = [
        Row(
            ranker=ranker,
            document=document.name,
            question=question.number,
            text=question.text,
            domain=document.domain,
            types=list(question.types),
            source=source,
            gold=list(question.pages),
            measures=_measures(question, level, result),
            **result,
        )
        for question, result in zip(document.questions, results, strict=True)
    ]
    return Part(ranker=ranker, document=document.name, line=document.line, level=level, seconds=seconds, rows=rows)


def _measures(question: Question, level: Level, result: Mapping[str, Any]) -> dict[str, float]:
    if level == "page":
        return page_measures(np.array(result.get("scores", []), dtype=np.float64), question.pages)  # None becomes NaN
    gold = [PageBox(item.page, item.box) for item in question.layouts]
    return layout_measures([PageBox(page, box) for page, box, _ in result.get("boxes", [])], gold)


def _ranked(document: Document, pages: list[Page], name: str, ranker: Any, level: Level) -> list[dict[str, Any]]:
    """The scores of each question's pages, or its best boxes."""
    texts = [question.text for question in document.questions]
    if level == "page":
        scores = _checked(ranker.rank(texts, pages), (len(texts), len(pages)), name)
        return [{"scores": [None if np.isnan(value) else float(value) for value in row]} for row in scores]
    scores = _checked(ranker.rank_regions(texts, pages), (len(texts), len(listed_regions(pages))), name)
    rows = zip(document.questions, scores, strict=True)
    return [{"boxes": _best_boxes(question, pages, row)} for question, row in rows]


def _best_boxes(question: Question, pages: Sequence[Page], scores: Scores) -> list[RankedBox]:
    """The best boxes, in the units of the gold boxes of their page. Equals stand in an order drawn by lot."""
    sizes = {item.page: item.page_size for item in question.layouts}
    regions = [(page, region) for page in pages for region in page.regions]
    lots = np.random.default_rng(len(question.text)).permutation(len(regions))
    ranked = [index for index in np.lexsort((lots, -scores)) if not np.isnan(scores[index])]
    found: list[RankedBox] = []
    for index in ranked[:KEPT_BOXES]:
        page, region = regions[index]
        found.append((page.index, _scaled(region.box, page.size, sizes.get(page.index)), float(scores[index])))
    return found


def _scaled(box: Box, size: tuple[float, float] | None, wanted: tuple[float, float] | None) -> Box:
    if size is None or wanted is None or size == wanted:
        return box
    across, down = wanted[0] / size[0], wanted[1] / size[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _checked(scores: Scores, shape: tuple[int, int], name: str) -> Scores:
    if scores.shape != shape:
        raise DataError(
            f"{name} gave scores of shape {scores.shape} for {shape[0]} questions and {shape[1]} candidates."
        )
    if np.isinf(scores).any():
        raise DataError(f"{name} gave infinite scores. Expected numbers, NaN for what was not ranked.")
    return scores
