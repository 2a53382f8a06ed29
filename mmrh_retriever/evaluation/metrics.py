"""How good a ranking is: page recall, any-hit, layout recall, MRR, nDCG and their averages.

Pure functions on scores and boxes; nothing here knows files or models. All measures but uncapped layout recall lie in
[0, 1]; measures raise ``ValueError`` without gold, or for ``k`` below 1.

Page and layout recall are those of MMDocIR (Dong et al. 2025, arXiv 2501.08828) as used by Li et al. 2026
(arXiv 2605.27243): *micro* averages over questions, *macro* averages the domains' means. Where scores are equal,
a measure is its expectation over all orders of the equals, in closed form (McSherry and Najork 2008, "Computing
information retrieval performance measures efficiently in the presence of tied scores"). A ranker that gives ten
pages the same score gets what a random order of them would get, not what the pages' own order happens to give.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmrh_retriever.pdf.boxes import area, overlap, union_area
from mmrh_retriever.types import Box

PAGE_CUTS = (1, 3, 5, 10)
"""Cut-offs of page recall, any-hit and nDCG: those of the paper's tables, and 10 as in the authors' release."""
LAYOUT_CUTS = (1, 5, 10)
"""Cut-offs of layout recall, as in the paper's tables."""
UNSPECIFIED = "unspecified"
"""The evidence type under which questions without one are counted."""


class PageBox(NamedTuple):
    """A rectangle on a page. ``page`` counts from 0; boxes on one page are in the same units."""

    page: int
    box: Box


# Pages


def page_recall(scores: npt.ArrayLike, gold: Collection[int], k: int) -> float:
    """Share of the gold pages that are among the best ``k``: ``|top-k & gold| / |gold|``.

    Args:
        scores: one per page, ``(pages,)``, higher is better; ``NaN`` for a page that was not ranked. No scores
            at all mean a question without result, which counts as zero.
        gold: 0-based indices of the pages that hold the evidence; at least one.
        k: the cut-off, at least 1.
    """
    sizes, hits = _ties(scores, gold, k)
    return min(1.0, float(np.repeat(hits / sizes, sizes)[:k].sum() / len(set(gold))))


def any_hit(scores: npt.ArrayLike, gold: Collection[int], k: int) -> float:
    """1 if any gold page is among the best ``k``, else 0; see :func:`page_recall` for the arguments."""
    sizes, hits = _ties(scores, gold, k)
    missed, left = 1.0, k
    for size, gains in zip(sizes.tolist(), hits.tolist(), strict=True):
        seen = min(size, left)
        # P(none of the hits is among the seen of a group in random order) = C(size - hits, seen) / C(size, seen)
        missed *= math.comb(size - gains, seen) / math.comb(size, seen)
        left -= seen
    return 1.0 - missed


def reciprocal_rank(scores: npt.ArrayLike, gold: Collection[int]) -> float:
    """One over the rank of the best gold page, 0 if none was ranked; see :func:`page_recall` for the arguments."""
    sizes, hits = _ties(scores, gold, 1)
    if not hits.any():
        return 0.0
    found = int(np.flatnonzero(hits)[0])
    first, size, gains = int(sizes[:found].sum()) + 1, int(sizes[found]), int(hits[found])
    # P(the first hit has rank j in the group, from 0) = C(size - j - 1, hits - 1) / C(size, hits)
    chances = (math.comb(size - j - 1, gains - 1) / math.comb(size, gains) for j in range(size - gains + 1))
    return min(1.0, sum(chance / (first + j) for j, chance in enumerate(chances)))


def ndcg(scores: npt.ArrayLike, gold: Collection[int], k: int) -> float:
    """Normalised discounted cumulative gain of the best ``k`` pages, with gain 1 for gold pages.

    ``sum over ranks r <= k of gain_r / log2(r + 1)``, over the same for an ideal order (Jarvelin and Kekalainen
    2002). See :func:`page_recall` for the arguments.
    """
    sizes, hits = _ties(scores, gold, k)
    gains = np.repeat(hits / sizes, sizes)[:k]
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    return min(1.0, float(gains @ discounts[: len(gains)] / discounts[: len(set(gold))].sum()))


def page_measures(scores: npt.ArrayLike, gold: Collection[int], cuts: Sequence[int] = PAGE_CUTS) -> dict[str, float]:
    """Every page measure of one question by name: ``recall@k``, ``hit@k`` and ``ndcg@k`` for each cut-off, ``mrr``."""
    measures = {f"recall@{k}": page_recall(scores, gold, k) for k in cuts}
    measures |= {f"hit@{k}": any_hit(scores, gold, k) for k in cuts}
    measures["mrr"] = reciprocal_rank(scores, gold)
    measures |= {f"ndcg@{k}": ndcg(scores, gold, k) for k in cuts if k > 1}
    return measures


def _ties(scores: npt.ArrayLike, gold: Collection[int], k: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Groups of ranked pages with equal scores, best first: how many pages each has, and how many gold ones."""
    if not gold:
        raise ValueError("A question needs at least one gold page, got none. Leave it out or annotate it.")
    _check_cut(k)
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    ranked = np.flatnonzero(~np.isnan(values))
    _, group = np.unique(-values[ranked], return_inverse=True)
    sizes = np.bincount(group)
    return sizes, np.bincount(group[np.isin(ranked, list(gold))], minlength=len(sizes))


def _check_cut(k: int) -> None:
    if k < 1:
        raise ValueError(f"The cut-off k is at least 1, got {k}.")


# Layout


def layout_recall(ranked: Sequence[PageBox], gold: Sequence[PageBox], k: int) -> float:
    """The official layout recall: gold area that the best ``k`` boxes overlap, over the whole gold area.

    ``sum over gold g, top-k b on the same page of area(g & b) / sum over gold g of area(g)``. Where ranked boxes
    overlap each other, area covered twice counts twice, so that the result may be above 1: neither the code of MMDocIR
    nor that of Li et al. 2026 cuts it off. :func:`layout_coverage` is the strict form. Gold without area gives 0, as
    there. Boxes of one page are in the same units.

    Args:
        ranked: best first; no boxes mean a question without result, which counts as zero.
        gold: the boxes that hold the evidence; at least one.
        k: the cut-off, at least 1.
    """
    _check_gold(gold, k)
    covered = sum(area(overlap(g.box, b.box)) for g in gold for b in ranked[:k] if g.page == b.page)
    return _share(covered, sum(area(item.box) for item in gold))


def layout_coverage(ranked: Sequence[PageBox], gold: Sequence[PageBox], k: int) -> float:
    """Layout recall that counts each spot once, however many ranked or gold boxes lie over it.

    Equals :func:`layout_recall` if neither the ranked nor the gold boxes overlap each other. Arguments and errors
    as there.
    """
    _check_gold(gold, k)
    whole = covered = 0.0
    for page in {item.page for item in gold}:
        wanted = [item.box for item in gold if item.page == page]
        shown = [item.box for item in ranked[:k] if item.page == page]
        whole += union_area(wanted)
        covered += union_area([overlap(g, b) for g in wanted for b in shown])
    return min(1.0, _share(covered, whole))


def layout_measures(
    ranked: Sequence[PageBox], gold: Sequence[PageBox], cuts: Sequence[int] = LAYOUT_CUTS
) -> dict[str, float]:
    """Every layout measure of one question by name, for each cut-off.

    ``recall@k`` is official and may be above 1, ``capped@k`` is the same cut off at 1, ``coverage@k`` is the strict
    form.
    """
    recall = {k: layout_recall(ranked, gold, k) for k in cuts}
    return {
        **{f"recall@{k}": value for k, value in recall.items()},
        **{f"capped@{k}": min(1.0, value) for k, value in recall.items()},
        **{f"coverage@{k}": layout_coverage(ranked, gold, k) for k in cuts},
    }


def _check_gold(gold: Sequence[PageBox], k: int) -> None:
    if not gold:
        raise ValueError("A question needs at least one gold box, got none. Leave it out or annotate it.")
    _check_cut(k)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


# Averages


@dataclass(frozen=True, slots=True)
class Measured:
    """One question's measures, and the groups in whose averages it counts.

    ``types`` are kinds of evidence, ``source`` is the document's kind (such as ``scan``).
    """

    document: str
    domain: str
    values: Mapping[str, float]
    types: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Averages of one run. Inner keys are measures (``recall@1``), outer ones groups.

    ``macro`` averages the means of the domains that occur (ten in all of MMDocIR). A question with several
    evidence types counts under each, one without under ``unspecified``. ``counts`` has the questions per group.
    """

    micro: dict[str, float]
    macro: dict[str, float]
    by_domain: dict[str, dict[str, float]]
    by_type: dict[str, dict[str, float]]
    by_source: dict[str, dict[str, float]]
    counts: dict[str, dict[str, int]]
    questions: int


def summarise(results: Sequence[Measured]) -> Summary:
    """Average questions' measures: over all (micro), over domains' means (macro), and by group.

    Every question must be among ``results``: one without result has zeros, as the measures give for it.

    Raises:
        ValueError: no questions, or questions with different measures.
    """
    if not results:
        raise ValueError("There are no questions to average. Give at least one.")
    kinds = list(dict.fromkeys(tuple(item.values) for item in results))
    if len(kinds) > 1:
        raise ValueError(f"Questions carry different measures: {' and '.join(map(str, kinds[:2]))}.")
    groups = {
        "by_domain": _grouped(results, lambda item: [item.domain]),
        "by_type": _grouped(results, lambda item: dict.fromkeys(item.types) or [UNSPECIFIED]),
        "by_source": _grouped(results, lambda item: [] if item.source is None else [item.source]),
    }
    means = {name: {key: _mean(values) for key, values in group.items()} for name, group in groups.items()}
    return Summary(
        questions=len(results),
        micro=_mean([item.values for item in results]),
        macro=_mean(list(means["by_domain"].values())),
        counts={name: {key: len(values) for key, values in group.items()} for name, group in groups.items()},
        **means,
    )


def _grouped(
    results: Sequence[Measured], keys: Callable[[Measured], Iterable[str]]
) -> dict[str, list[Mapping[str, float]]]:
    found: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for item in results:
        for key in keys(item):
            found[key].append(item.values)
    return dict(sorted(found.items()))


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(item[name] for item in values) / len(values) for name in values[0]}
