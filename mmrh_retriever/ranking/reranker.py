"""The facade: rank pages for a question, or encode pages once and ask many questions."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmrh_retriever.encoding.engine import TAIL_ROOM, Attention, Engine, Window
from mmrh_retriever.encoding.page_store import ModelPages, PageStore
from mmrh_retriever.errors import ContextOverflowError, PageError
from mmrh_retriever.heads.sets import HeadScoresTable, HeadSet
from mmrh_retriever.model.attention_seam import set_implementation
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.fingerprints import fingerprint
from mmrh_retriever.model.loading import Processors, load_model, model_path, resolve_heads
from mmrh_retriever.model.prompts import LaidPiece, Prompter, PromptOptions
from mmrh_retriever.model.vision import DEFAULT_VISION_MEMORY, Vision
from mmrh_retriever.ranking.final_round import DEFAULT_FINAL_HEAT, Heat, check_size, run_final_heat
from mmrh_retriever.ranking.question_attention import QuestionAttention, question_attention
from mmrh_retriever.ranking.rankings import Scores, as_pages, as_questions, page_numbers, shown, without_null
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import Crops, RegionMethod, check_regions, checked_count, ranked_regions
from mmrh_retriever.types import Page, PageLike, ScoredPage, ScoredRegion

DEFAULT_TOKEN_BUDGET = 32_768
"""Tokens of pages that are read together, if the model's context allows as many."""
DEFAULT_MEMORY_BUDGET = 4 * 1024**3
"""Bytes of keys and values that :class:`EncodedPages` holds before it drops the windows used longest ago."""


class Reranker:
    """Ranks pages by the attention that a model's retrieval heads pay them from a question's tokens.

    Args:
        model: a loaded transformers model of a supported family. Several rerankers may share one.
        processor: its processor, its tokenizer, or ``(tokenizer, image_processor)``.
        heads: ``"published"`` (the set shipped for this model), ``"all"``, a :class:`HeadSet`, or the path of
            a head set or of detected scores.
        token_budget: the longest window in tokens; longer lists of pages are ranked over several windows. By default
            what the model's config says as ``mmrh_token_budget`` (131,072 in the bundled model's), else 32,768, or the
            model's context if that is shorter.
        independent: encode each page as if it stood alone behind the prompt's head. Pages then start alike, cost the
            same whatever stands beside them, and may be more than the model's context holds. Not what the paper does;
            by default only where the model's config says ``mmrh_independent``, as the bundled model's does.
        calibrate: subtract the attention of a null question (Li et al. 2026, arXiv 2605.27243).
        options: wording of the prompt, and which tokens count.
        check: compare recorded attention with plain eager attention on a short input, once a model.
        final_heat: pages for a final heat, 0 for none. Where pages take several windows, the best of each window (so
            many in all, as far as they fit in one window) are compared once more in a window together, and stand before
            the others, by the scores that they got there. Without it, scores of windows are compared as they are,
            though the pages of a window share its attention: pages beside few or poor others then score too high.
        store: where encoded pages are kept for later calls; several rerankers may share one.
        vision_memory: bytes of vision features kept, so that a page seen again goes through the vision tower once.

    A store and the vision memory hold for weights that stay as they are.

    Raises:
        UnsupportedModelError: a family or attention backend that we can't drive.
        HeadSetError: heads that do not fit the model, or none published for it.
        AttentionCaptureError: the check failed, or the weights hold NaN.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        heads: str | Path | HeadSet | HeadScoresTable = "published",
        *,
        token_budget: int | None = None,
        independent: bool | None = None,
        calibrate: bool = True,
        options: PromptOptions | None = None,
        check: bool = True,
        final_heat: int = DEFAULT_FINAL_HEAT,
        store: PageStore | None = None,
        vision_memory: int = DEFAULT_VISION_MEMORY,
    ) -> None:
        processors = Processors.of(processor)
        self.backbone = Backbone.of(model)
        self.calibrate = calibrate
        self.prompter = Prompter(self.backbone, processors.tokenizer, processors.image_processor, options)
        by_config = bool(getattr(self.backbone.config, "mmrh_independent", False))
        self.independent = by_config if independent is None else independent
        by_default: int = getattr(self.backbone.config, "mmrh_token_budget", DEFAULT_TOKEN_BUDGET)
        self.token_budget = by_default if token_budget is None else token_budget
        least = len(self.prompter.lay_head()) + TAIL_ROOM
        if self.token_budget <= least:
            raise ContextOverflowError(
                f"token_budget={self.token_budget} leaves no room for a page: the prompt's head and the room kept for "
                f"questions take {least} tokens. Raise it.",
                tokens=least,
                allowed=self.token_budget,
            )
        self.heads = resolve_heads(heads, self.backbone)
        self.final_heat = check_size(final_heat)
        self.vision = Vision(self.backbone, vision_memory)
        self._keep_in(store)
        if check:
            self._check_attention()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        heads: str | Path | HeadSet | HeadScoresTable = "published",
        token_budget: int | None = None,
        independent: bool | None = None,
        calibrate: bool = True,
        options: PromptOptions | None = None,
        check: bool = True,
        final_heat: int = DEFAULT_FINAL_HEAT,
        store: PageStore | None = None,
        vision_memory: int = DEFAULT_VISION_MEMORY,
        **loading: Any,
    ) -> Reranker:
        """Load a model by hub id or folder; without one, the small model that ships with the package.

        ``loading`` takes ``device``, ``dtype``, ``attn_implementation``, ``max_pixels``, ``revision``,
        ``cache_dir``, ``local_files_only`` and ``quantization_config`` (see
        :func:`mmrh_retriever.model.loading.load_model`); anything else goes to transformers untouched.

        Raises:
            UnsupportedModelError: an unknown family.
            HeadSetError: no heads for this model.
            OSError: transformers' own, if files are missing.
        """
        path, bundled = model_path(model)
        if bundled:
            loading["local_files_only"] = True
        loaded, processors = load_model(path, **loading)
        return cls(
            loaded,
            processors,
            heads,
            token_budget=token_budget,
            independent=independent,
            calibrate=calibrate,
            options=options,
            check=check,
            final_heat=final_heat,
            store=store,
            vision_memory=vision_memory,
        )

    def with_heads(self, heads: str | Path | HeadSet | HeadScoresTable) -> Reranker:
        """A reranker on the same model with other heads; vision features and store are shared."""
        other = copy.copy(self)
        other.heads = resolve_heads(heads, self.backbone)
        return other

    def with_store(self, store: PageStore | None) -> Reranker:
        """A reranker on the same model that keeps encoded pages in this store, or in none."""
        other = copy.copy(self)
        other._keep_in(store)
        return other

    def rank(
        self,
        question: str,
        pages: Iterable[PageLike],
        *,
        top_n: int | None = None,
        with_tokens: bool = False,
        progress: bool = False,
    ) -> list[ScoredPage]:
        """Rank pages for a question, best first.

        Args:
            question: text.
            pages: pages, images, image bytes or paths. Their order is the order in which the model reads them.
            top_n: how many to give; all of them if ``None``.
            with_tokens: also give each page's per-token scores, for heat maps.
            progress: show a bar on stderr, if that is a terminal.

        Raises:
            QuestionError: an empty question.
            PageError: no pages, or one that can't be read.
            ContextOverflowError: a page or question too long.
        """
        return self.rank_many([question], pages, top_n=top_n, with_tokens=with_tokens, progress=progress)[0]

    def rank_many(
        self,
        questions: Sequence[str],
        pages: Iterable[PageLike],
        *,
        top_n: int | None = None,
        with_tokens: bool = False,
        progress: bool = False,
    ) -> list[list[ScoredPage]]:
        """Rank the same pages for several questions: the pages run once, a window at a time.

        The result has one ranking a question; see :meth:`rank`.
        """
        checked_count(top_n)
        laid = self.prompter.lay_questions(as_questions(questions))
        listed = as_pages(pages)
        engine = self._engine()
        windows = engine.windows(shown(listed, progress), numbers=self.page_numbers(listed), count=len(listed))
        scores = Scores(len(laid), listed, with_tokens=with_tokens)
        null = self.null_questions()
        done: list[Window] = []
        for window in windows:
            attention = engine.ask(window, [*laid, *null], tokens=with_tokens)
            scores.add(window, *without_null(attention, calibrated=self.calibrate))
            window.cache = None
            done.append(window)
        if self.final_heat and len(done) > 1 and laid:
            run_final_heat(scores, self.heat(engine, done, listed), laid)
        return scores.rankings(top_n)

    def rank_regions(
        self,
        question: str,
        pages: Iterable[PageLike],
        *,
        top_n: int | None = None,
        aggregate: Aggregate = DEFAULT_AGGREGATE,
        method: RegionMethod = "page",
        progress: bool = False,
    ) -> list[ScoredRegion]:
        """Rank the layout boxes of pages for a question, best first over all pages.

        Pages bring their boxes as ``regions``: ``read_pdf(path, layout=True)`` finds them, and any other list of boxes
        may be given, in the units of ``Page.size``. Pages without regions give none.

        Args:
            question: text.
            pages: as for :meth:`rank`; at least one has regions.
            top_n: how many regions to give; all of them if ``None``.
            aggregate: how the visual tokens under a box become its score, see
                :func:`mmrh_retriever.ranking.region_scores.region_scores`. Crops don't need it.
            method: ``"page"`` takes the scores from the page pass; ``"crops"`` runs each box as an image of its own,
                as Li et al. 2026 do, which costs a pass over all boxes.
            progress: show a bar on stderr, if that is a terminal.

        Raises:
            QuestionError: an empty question.
            PageError: no page has regions, a region lies off its page, or a page can't be read.
            ContextOverflowError: a page or question too long.
        """
        return self.rank_regions_many(
            [question], pages, top_n=top_n, aggregate=aggregate, method=method, progress=progress
        )[0]

    def rank_regions_many(
        self,
        questions: Sequence[str],
        pages: Iterable[PageLike],
        *,
        top_n: int | None = None,
        aggregate: Aggregate = DEFAULT_AGGREGATE,
        method: RegionMethod = "page",
        progress: bool = False,
    ) -> list[list[ScoredRegion]]:
        """Rank the boxes of the same pages for several questions: the pages (or crops) run once.

        The result has one ranking a question; see :meth:`rank_regions`.
        """
        listed = as_pages(pages)
        check_regions(listed, method)
        checked_count(top_n)
        if method == "crops":
            crops = Crops(listed)
            rankings = self.rank_many(questions, crops.pages, top_n=top_n, progress=progress)
            return [crops.ranked(ranking) for ranking in rankings]
        rankings = self.rank_many(questions, listed, with_tokens=True, progress=progress)
        return [ranked_regions(ranking, aggregate=aggregate, top_n=top_n) for ranking in rankings]

    def encode(
        self,
        pages: Iterable[PageLike],
        *,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        progress: bool = False,
    ) -> EncodedPages:
        """Run the pages once and keep what questions need of them.

        Args:
            pages: as for :meth:`rank`.
            memory_budget: bytes of keys and values to hold. Beyond it the windows used longest ago are dropped
                and run again when they are asked; scores do not change.
            progress: show a bar on stderr, if that is a terminal.

        Raises:
            PageError: no pages, or one that can't be read.
            ContextOverflowError: a page too long.
        """
        return EncodedPages(self, as_pages(pages), memory_budget=memory_budget, progress=progress)

    async def arank(self, question: str, pages: Iterable[PageLike], **options: Any) -> list[ScoredPage]:
        """:meth:`rank` in a thread; the event loop goes on."""
        return await asyncio.to_thread(self.rank, question, pages, **options)

    async def arank_many(
        self, questions: Sequence[str], pages: Iterable[PageLike], **options: Any
    ) -> list[list[ScoredPage]]:
        """:meth:`rank_many` in a thread."""
        return await asyncio.to_thread(self.rank_many, questions, pages, **options)

    async def arank_regions(self, question: str, pages: Iterable[PageLike], **options: Any) -> list[ScoredRegion]:
        """:meth:`rank_regions` in a thread."""
        return await asyncio.to_thread(self.rank_regions, question, pages, **options)

    async def aencode(self, pages: Iterable[PageLike], **options: Any) -> EncodedPages:
        """:meth:`encode` in a thread."""
        return await asyncio.to_thread(self.encode, pages, **options)

    def _keep_in(self, store: PageStore | None) -> None:
        self.store = store
        self._fingerprint = "" if store is None else fingerprint(self.prompter, independent=self.independent)

    def _engine(self) -> Engine:
        deepest = max(head.layer for head in self.heads)
        kept = None if self.store is None else ModelPages(self.store, self._fingerprint, deepest + 1)
        return Engine(
            self.prompter,
            list(self.heads),
            self.token_budget,
            independent=self.independent,
            vision=self.vision,
            kept=kept,
        )

    def null_questions(self) -> list[LaidPiece]:
        """The question that calibrates the others, as a list that may be empty."""
        return [self.prompter.lay_null_question()] if self.calibrate else []

    def heat(self, engine: Engine, windows: Sequence[Window], pages: Sequence[Page]) -> Heat:
        """What a final heat over these windows' pages needs to know."""
        return Heat(engine, windows, pages, self.page_numbers(pages), self.final_heat, self.null_questions())

    def page_numbers(self, pages: Sequence[Page]) -> list[int]:
        """The numbers on the pages' labels; independent pages in a store have their own, to be found again."""
        own = self.independent and self.store is not None
        return [page.number for page in pages] if own else page_numbers(pages)

    def _check_attention(self) -> None:
        """Check the seam on a short text, once a model."""
        backbone = self.backbone
        seam = backbone.seam
        with seam.lock, torch.inference_mode():
            if seam.checked:
                return
            ids = torch.tensor([self.prompter.lay_head().ids[:16]], device=backbone.device)

            def run() -> Tensor:
                return backbone.base(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

            def eager() -> Any:
                name = backbone.text_config._attn_implementation
                set_implementation(backbone.decoder, "eager")
                try:
                    return backbone.base(input_ids=ids, use_cache=False, output_attentions=True).attentions
                finally:
                    set_implementation(backbone.decoder, name)

            tolerance = 1e-4 if backbone.model.dtype is torch.float32 else 0.1
            seam.verify(run, eager, tolerance=tolerance)


class EncodedPages:
    """Pages that were run once. Made by :meth:`Reranker.encode`.

    Raises:
        PageError: no pages, or one that can't be read.
    """

    def __init__(self, reranker: Reranker, pages: list[Page], *, memory_budget: int, progress: bool) -> None:
        if memory_budget < 0:
            raise PageError(f"memory_budget is in bytes and not negative, got {memory_budget}.")
        self.reranker = reranker
        self.pages = tuple(pages)
        self.memory_budget = memory_budget
        self._engine = reranker._engine()
        self._numbers = reranker.page_numbers(pages)
        self._lock = reranker.backbone.seam.lock
        self._windows: list[Window] = []
        self._null: dict[int, Attention] = {}
        self._in_use: OrderedDict[int, None] = OrderedDict()  # windows that hold a cache, longest unused first
        for window in self._engine.windows(shown(pages, progress), numbers=self._numbers, count=len(pages)):
            self._windows.append(window)
            self._touch(len(self._windows) - 1)

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, over all windows, that the pages take."""
        return sum(len(window) for window in self._windows)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held now."""
        return sum(window.cache.nbytes for window in self._windows if window.cache is not None)

    def rank(self, question: str, *, top_n: int | None = None, with_tokens: bool = False) -> list[ScoredPage]:
        """Rank the pages for a question; only the question's tokens run. See :meth:`Reranker.rank`."""
        return self.rank_many([question], top_n=top_n, with_tokens=with_tokens)[0]

    def rank_many(
        self, questions: Sequence[str], *, top_n: int | None = None, with_tokens: bool = False
    ) -> list[list[ScoredPage]]:
        """Rank the pages for several questions at once; exact as if each were asked alone."""
        checked_count(top_n)
        laid = self.reranker.prompter.lay_questions(as_questions(questions))
        scores = Scores(len(laid), list(self.pages), with_tokens=with_tokens)
        with self._lock:
            # windows that hold their keys come first: asking in order would drop each just before it is needed
            for number in sorted(range(len(self._windows)), key=lambda place: self._windows[place].cache is None):
                window = self._ready(number)
                null = self._null_attention(number) if self.reranker.calibrate else None
                if laid:
                    scores.add(window, self._engine.ask(window, laid, tokens=with_tokens), null)
                self._touch(number)
            if self.reranker.final_heat and len(self._windows) > 1 and laid:
                run_final_heat(scores, self.reranker.heat(self._engine, self._windows, self.pages), laid)
        return scores.rankings(top_n)

    def rank_regions(
        self, question: str, *, top_n: int | None = None, aggregate: Aggregate = DEFAULT_AGGREGATE
    ) -> list[ScoredRegion]:
        """Rank the pages' layout boxes; only the question's tokens run. See :meth:`Reranker.rank_regions`."""
        check_regions(self.pages, "page")
        checked_count(top_n)
        return ranked_regions(self.rank(question, with_tokens=True), aggregate=aggregate, top_n=top_n)

    def question_attention(self, question: str, scored: ScoredPage) -> QuestionAttention:
        """What each token of a question pays one of these pages, for heat maps by token.

        Args:
            question: text; only its tokens run.
            scored: the page, from a ranking of these pages.

        Raises:
            PageError: a page that is not one of these, or that the model read as text.
        """
        if not 0 <= scored.position < len(self.pages) or self.pages[scored.position] is not scored.page:
            raise PageError(
                f"{scored.page.name} is not one of these {len(self.pages)} encoded pages. Rank them with rank() of "
                "this object, and give one of its results.",
                source=scored.page.doc_id,
                page=scored.page.index,
            )
        with self._lock:
            number = next(i for i, window in enumerate(self._windows) if scored.position in window.members)
            window = self._ready(number)
            null = self._null_attention(number) if self.reranker.calibrate else None
            return question_attention(self._engine, window, question, scored, null)

    async def arank(self, question: str, **options: Any) -> list[ScoredPage]:
        """:meth:`rank` in a thread."""
        return await asyncio.to_thread(self.rank, question, **options)

    async def arank_many(self, questions: Sequence[str], **options: Any) -> list[list[ScoredPage]]:
        """:meth:`rank_many` in a thread."""
        return await asyncio.to_thread(self.rank_many, questions, **options)

    async def arank_regions(self, question: str, **options: Any) -> list[ScoredRegion]:
        """:meth:`rank_regions` in a thread."""
        return await asyncio.to_thread(self.rank_regions, question, **options)

    def _null_attention(self, number: int) -> Attention:
        """The null question's attention on a window: asked once, kept (a number a token)."""
        if number not in self._null:
            null = self.reranker.prompter.lay_null_question()
            self._null[number] = self._engine.ask(self._windows[number], [null], tokens=True)
        return self._null[number]

    def _ready(self, number: int) -> Window:
        """The window with its cache, run again if it was dropped."""
        window = self._windows[number]
        if window.cache is None:
            members = [(place, self.pages[place]) for place in window.members]
            (window,) = self._engine.windows(members, numbers=self._numbers)
            self._windows[number] = window
        self._touch(number)
        return window

    def _touch(self, number: int) -> None:
        self._in_use[number] = None
        self._in_use.move_to_end(number)
        while len(self._in_use) > 1 and self.nbytes > self.memory_budget:
            oldest, _ = self._in_use.popitem(last=False)
            self._windows[oldest].cache = None
