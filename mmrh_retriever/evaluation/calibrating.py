"""Learning a calibration: questions asked of lists that hold their answer, and of lists that don't.

    data = read_labelled("questions.jsonl", "documents/")
    calibrate(Reranker.from_pretrained("org/model"), data).save("model/mmrh_calibration.json")

Each question is asked four times: of its document, of the document without its evidence pages (so that nothing is the
answer), and the same with a list drawn from the document, of any length down to one page. Needs scikit-learn (extra
``calibrate``); a calibration that was learned needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import DataError, MMRHError
from mmrh_retriever.evaluation.mmdocir.annotations import Document, Question
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.files import is_folder
from mmrh_retriever.ranking.calibration import ATTENTION, HYBRID, Calibration, Logistic, Values, features
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.types import Page, ScoredPage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class AskedList:
    """One question asked of one list of pages, in the list's order.

    ``attention`` is ``(pages,)``, and so is ``text``: BM25, NaN for pages without a text layer; ``None`` if there is
    none at all. ``gold`` says which pages are evidence, ``best`` which is ranked first, ``whole`` whether the list is
    the document, or the document without its evidence pages.
    """

    document: str
    attention: Values
    text: Values | None
    gold: npt.NDArray[np.bool_]
    best: int
    whole: bool = True

    @property
    def has_answer(self) -> bool:
        """Whether some page is evidence."""
        return bool(self.gold.any())

    def by_images(self) -> AskedList:
        """The same list as it is ranked by images alone."""
        return replace(self, text=None, best=int(self.attention.argmax()))


def calibrate(reranker: Reranker, dataset: MMDocIR, *, source: str = "", seed: int = 0) -> Calibration:
    """A calibration for a reranker's model, heads and settings, learned from labelled or generated questions.

    It serves rankings with the text layer and by images alone. ``source`` says what it was learned from. Where the
    reranker's pages are independent, asking a list anew costs the question's tokens; otherwise its pages run again.

    Raises:
        DataError: no document can be ranked, or no page that is evidence or none that is not.
        ImportError: scikit-learn is missing; it names the extra to install.
    """
    return learned(reranker, list(ask(reranker, dataset, seed=seed)), source=source)


def ask(reranker: Reranker, dataset: MMDocIR, *, seed: int = 0, drawn: bool = True) -> Iterator[AskedList]:
    """Ask each question of its document, and of lists with and without its answer; without ``drawn`` of whole ones.

    A document that can't be ranked is logged and left out.
    """
    asking = reranker.with_hybrid(True)
    if asking.independent and asking.store is None:
        asking = asking.with_store(PageStore())
    for number, document in enumerate(tqdm(dataset.documents, desc="documents", disable=None, leave=False)):
        rng = np.random.default_rng([seed, number])
        try:
            yield from _ask_about(asking, document, dataset.pages(document), rng if drawn else None)
        except MMRHError as error:
            logger.warning("%s is left out: %s", document.name, error)


def _ask_about(
    reranker: Reranker, document: Document, pages: Sequence[Page], rng: np.random.Generator | None
) -> Iterator[AskedList]:
    rankings = reranker.rank_many([question.text for question in document.questions], pages)
    for question, ranking in zip(document.questions, rankings, strict=True):
        yield _asked(document, question, ranking)
        others = [page for page in pages if page.index not in question.pages]
        if not others:
            continue
        yield _asked(document, question, reranker.rank(question.text, others))
        if rng is None:
            continue
        length = int(np.exp(rng.uniform(0, np.log(len(others) + 1))))  # 1 to all of them, short ones as often as long
        for listed in _drawn(question, pages, others, length, rng):
            yield _asked(document, question, reranker.rank(question.text, listed), whole=False)


def _drawn(
    question: Question, pages: Sequence[Page], others: Sequence[Page], length: int, rng: np.random.Generator
) -> Iterator[list[Page]]:
    """Two lists of pages in their order: one with an evidence page among others, one of other pages alone."""
    order = [others[index] for index in rng.permutation(len(others))]
    evidence = pages[int(rng.choice(question.pages))]
    yield sorted([evidence, *order[: length - 1]], key=lambda page: page.index)
    yield sorted(order[:length], key=lambda page: page.index)


def _asked(document: Document, question: Question, ranking: Sequence[ScoredPage], *, whole: bool = True) -> AskedList:
    ordered = sorted(ranking, key=lambda scored: scored.position)
    said = [np.nan if one.text_score is None else one.text_score for one in ordered]
    text = np.array(said)
    return AskedList(
        document.name,
        np.array([one.attention_score for one in ordered]),
        None if np.isnan(text).all() else text,
        np.array([one.page.index in question.pages for one in ordered]),
        ranking[0].position,
        whole,
    )


def learned(reranker: Reranker, asked: Sequence[AskedList], *, source: str = "") -> Calibration:
    """The calibration that asked lists teach, for a reranker's model, heads and settings; see :func:`calibrate`."""
    if not asked:
        raise DataError("No document could be ranked, so there is nothing to learn from. The log says why.")
    attention, hybrid = fit(asked)
    name = reranker.backbone.name
    return Calibration(
        model=Path(name).name if is_folder(name) else name,
        heads=[str(head) for head in reranker.heads],
        settings=reranker.calibrated_settings,
        source=source,
        attention=attention,
        hybrid=hybrid,
    )


def fit(asked: Sequence[AskedList]) -> tuple[Logistic, Logistic | None]:
    """The functions for lists by images alone, and for pages with text in hybrid lists (if there are such).

    Every page of every list is an example.
    """
    gold = np.concatenate([one.gold for one in asked])
    attention = _logistic(ATTENTION, np.concatenate([features(one.attention) for one in asked]), gold)
    said = [(one, ~np.isnan(one.text)) for one in asked if one.text is not None]
    if not said:
        return attention, None
    rows = [features(one.attention, one.text)[own] for one, own in said]
    return attention, _logistic(HYBRID, np.concatenate(rows), np.concatenate([one.gold[own] for one, own in said]))


def _logistic(names: Sequence[str], rows: Values, gold: npt.NDArray[np.bool_]) -> Logistic:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            "Learning a calibration needs scikit-learn: pip install 'mmrh-retriever[calibrate]'. Using one needs none."
        ) from error
    if gold.all() or not gold.any():
        raise DataError(
            f"{int(gold.sum())} of {len(gold)} pages are evidence. Expected some that are and some that are not: ask "
            "about documents of several pages."
        )
    spread = rows.std(axis=0)
    spread[spread == 0] = 1.0
    model = LogisticRegression(C=1e4, max_iter=1000).fit(rows / spread, gold)
    weights = model.coef_[0] / spread
    return Logistic(intercept=float(model.intercept_[0]), weights=dict(zip(names, map(float, weights), strict=True)))
