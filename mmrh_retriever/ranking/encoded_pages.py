"""Pages that were run once and are asked many questions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmrh_retriever.encoding.window import Window
from mmrh_retriever.errors import AttentionCaptureError, SettingsError
from mmrh_retriever.model.fingerprints import weights_fingerprint
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.inputs import as_questions, in_thread, with_progress
from mmrh_retriever.ranking.question_attention import Explanation, QuestionAttention, question_attention, token_by_token
from mmrh_retriever.ranking.rankings import score_windows
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import check_regions, ranked_regions
from mmrh_retriever.ranking.scores import Scores
from mmrh_retriever.settings import check_top_n
from mmrh_retriever.types import Page, ScoredPage, ScoredRegion

if TYPE_CHECKING:
    from mmrh_retriever.ranking.reranker import Reranker

DEFAULT_MEMORY_BUDGET = 4 * 1024**3
"""Bytes of keys and values that :class:`EncodedPages` holds before it drops the windows used longest ago."""


class EncodedPages:
    """Pages that were run once. Made by :meth:`Reranker.encode`.

    Raises:
        PageError: a page that can't be read.
        SettingsError: a negative memory budget.
    """

    def __init__(self, reranker: Reranker, pages: Sequence[Page], *, memory_budget: int, progress: bool) -> None:
        if memory_budget < 0:
            raise SettingsError(f"memory_budget is in bytes and not negative, got {memory_budget}.")
        self.reranker = reranker
        self.pages = tuple(pages)
        self.memory_budget = memory_budget
        self._candidates = reranker.candidates(pages)
        self._texts = reranker.text_layer(pages)
        self._engine = reranker.engine()
        self._weights = reranker.vision.weights
        self._lock = reranker.backbone.seam.lock
        self._windows: list[Window] = []
        self._in_use: OrderedDict[int, Window] = OrderedDict()  # windows that hold keys, longest unused first
        for window in self._engine.windows(with_progress(self._candidates, progress), count=len(pages)):
            self._windows.append(window)
            self._used(window)

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, over all windows, that the pages take."""
        return sum(len(window) for window in self._windows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held now."""
        return sum(window.nbytes for window in self._windows)

    def rank(self, question: str, *, top_n: int | None = None, with_tokens: bool = False) -> list[ScoredPage]:
        """Rank the pages for a question; only the question's tokens run. See :meth:`Reranker.rank`."""
        return self.rank_many([question], top_n=top_n, with_tokens=with_tokens)[0]

    def rank_many(
        self, questions: Sequence[str], *, top_n: int | None = None, with_tokens: bool = False
    ) -> list[list[ScoredPage]]:
        """Rank the pages for several questions at once; exact as if each were asked alone."""
        check_top_n(top_n)
        asked = as_questions(questions)
        segments = self.reranker.prompter.question_segments(asked)
        scores = self._scores(segments, with_tokens=with_tokens)
        return scores.rankings(top_n, texts=self._texts, asked=asked, calibration=self.reranker.calibration)

    def rank_regions(
        self, question: str, *, top_n: int | None = None, aggregate: Aggregate = DEFAULT_AGGREGATE
    ) -> list[ScoredRegion]:
        """Rank the pages' layout boxes; only the question's tokens run. See :meth:`Reranker.rank_regions`."""
        check_regions(self.pages, "page")
        check_top_n(top_n)
        return ranked_regions(self.rank(question, with_tokens=True), aggregate=aggregate, top_n=top_n)

    def explain(self, question: str) -> Explanation:
        """Ask once, and give the ranking, the pages' token scores, and the best page by token of the question."""
        segment = token_by_token(self.reranker.prompter.question_segment(question))
        scores = self._scores([segment], with_tokens=True)
        (ranking,) = scores.rankings(texts=self._texts, asked=[question], calibration=self.reranker.calibration)
        best = ranking[0]
        if best.grid is None:
            return Explanation(ranking, None)
        rows = scores.rows[0][best.position]
        return Explanation(
            ranking, question_attention(segment, best, rows, best.grid, self.reranker.prompter.tokenizer)
        )

    def question_attention(self, question: str, scored: ScoredPage) -> QuestionAttention:
        """What each token of a question pays one of these pages, taken from a ranking of them (heat maps by token)."""
        index = scored.position
        if not 0 <= index < len(self.pages) or self.pages[index] is not scored.page:
            raise scored.page.error(
                f"{scored.page.name} is not one of these {len(self.pages)} encoded pages. Rank them with rank() of "
                "this object, and give one of its results."
            )
        prompter = self.reranker.prompter
        segment = token_by_token(prompter.question_segment(question))
        window = next(window for window in self._windows if index in window.indices)
        page = window.pages[window.indices.index(index)]
        with self._lock:
            self._ready(window)
            paid, null = self._engine.ask_with_null(window, [segment], self.reranker.null(), tokens=True)
        if paid.tokens is None:
            raise scored.page.error("The engine gave no attention on single tokens; it was asked for it.")
        tokens = paid.tokens if null is None or null.tokens is None else paid.tokens - null.tokens
        return question_attention(segment, scored, tokens[:, list(page.visual)], page.grid, prompter.tokenizer)

    arank = in_thread(rank)
    arank_many = in_thread(rank_many)
    arank_regions = in_thread(rank_regions)

    def _scores(self, questions: Sequence[PromptSegment], *, with_tokens: bool) -> Scores:
        with self._lock:
            return score_windows(
                self._engine,
                self._ready_windows(),
                self._candidates,
                questions,
                null=self.reranker.null(),
                final_round=self.reranker.settings.final_round,
                with_tokens=with_tokens,
            )

    def _ready_windows(self) -> Iterator[Window]:
        """The windows with their keys. Those that hold them come first: asking in order would drop each just before."""
        for window in sorted(self._windows, key=lambda window: not window.holds_keys):
            yield self._ready(window)

    def _ready(self, window: Window) -> Window:
        """The window with its keys, run again if they were dropped, and with what the null question pays it.

        The null question runs alone, so that a question's scores don't depend on which question was the first.
        """
        if not window.holds_keys:
            if weights_fingerprint(self.reranker.backbone.model) != self._weights:
                raise AttentionCaptureError(
                    "The model's weights or adapters are no longer those that these pages were encoded with, and keys "
                    "that were dropped for memory_budget can't be made again. Encode the pages again."
                )
            (fresh,) = self._engine.windows(page.candidate for page in window.pages)
            window.restore(fresh)
        null = self.reranker.null()
        if null is not None and window.null is None:
            window.remember_null(self._engine.ask(window, [null], tokens=True))
        self._used(window)
        return window

    def _used(self, window: Window) -> None:
        self._in_use[id(window)] = window
        self._in_use.move_to_end(id(window))
        while len(self._in_use) > 1 and self.nbytes > self.memory_budget:
            _, oldest = self._in_use.popitem(last=False)
            oldest.drop()
