"""The first stage: which pages of a library the model is to see for a question.

Pages that have text are picked by it: by BM25, by the vectors of a text encoder, or by both, joined by reciprocal ranks
(Cormack, Clarke and Büttcher 2009). No text finds the pages without text, so all of them are candidates of every
question. That is bounded: where they are more than the library's ``textless``, the question is refused with a message
that says what to do. So no page is left out in silence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from mmrh_retriever.bm25 import TextIndex
from mmrh_retriever.errors import SettingsError
from mmrh_retriever.model.text_embeddings import EmbeddingScorer
from mmrh_retriever.settings import FirstStage, warn_caller
from mmrh_retriever.types import FloatArray, Page

RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion: a page adds ``1 / (60 + rank)`` by each ranking."""


class TextSearch:
    """The pages' text, ready to be asked.

    ``vectors`` has each page's chunks, ``(chunks, width)``, where ``embedder`` made them; both are left out for BM25
    alone.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        kind: FirstStage,
        *,
        vectors: Sequence[FloatArray] = (),
        embedder: EmbeddingScorer | None = None,
    ) -> None:
        self.kind = kind
        self.with_text = [index for index, page in enumerate(pages) if page.text and page.text.strip()]
        self.without_text = sorted({*range(len(pages))} - {*self.with_text})
        self._words = TextIndex([pages[index].text or "" for index in self.with_text]) if kind != "embedding" else None
        self._embedder = embedder
        own = [vectors[index] for index in self.with_text] if embedder is not None else []
        self._owners = np.repeat(np.arange(len(own)), [len(chunks) for chunks in own])
        self._vectors = np.concatenate(own) if own else np.zeros((0, 0), np.float32)

    def choose(self, question: str, candidates: int, textless: int) -> list[int]:
        """The indices of the pages to look at: at most ``candidates`` with text, and all that have none.

        Raises:
            SettingsError: more than ``textless`` pages have no text.
        """
        if len(self.without_text) > textless:
            total = len(self.with_text) + len(self.without_text)
            raise SettingsError(
                f"{len(self.without_text):,} of {total:,} pages have no text, so first_stage={self.kind!r} can't find "
                f"them, and at most textless={textless:,} such pages are looked at for each question. Choose "
                'first_stage="all", or raise textless.'
            )
        best: list[int] = np.argsort(-self._scores(question, candidates), kind="stable")[:candidates].tolist()
        return sorted([self.with_text[number] for number in best] + self.without_text)

    def _scores(self, question: str, candidates: int) -> npt.NDArray[np.float64]:
        """How well each page with text fits a question, ``(pages,)``."""
        found = []
        if self._words is not None:
            words = self._words.scores([question])[0]
            if self.kind == "bm25" and len(words) > candidates and not words.any():
                warn_caller(
                    f"No page has a word of the question {question[:80]!r}; the first {candidates} pages are looked "
                    'at. Ask in the words of the documents, or choose first_stage="hybrid", "embedding" or "all".',
                    UserWarning,
                )
            found.append(words)
        if self._embedder is not None and self.with_text:
            similar = self._vectors @ self._embedder.embed([question])[0].astype(np.float32)
            best = np.full(len(self.with_text), -1.0)
            np.maximum.at(best, self._owners, similar)
            found.append(best)
        if len(found) == 1:
            only: npt.NDArray[np.float64] = found[0]
            return only
        joined = np.zeros(len(self.with_text))
        for scores in found:
            joined += 1 / (RANK_CONSTANT + rankdata(-scores, method="min"))
        return joined
