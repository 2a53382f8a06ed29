"""The facade: rank pages for a question, or encode pages once and ask many questions."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from mmrh_retriever.attention import set_implementation
from mmrh_retriever.backbones import Backbone
from mmrh_retriever.engine import TAIL_ROOM, Attention, Engine, Window
from mmrh_retriever.errors import ContextOverflowError, PageError, QuestionError
from mmrh_retriever.heads import HeadScoresTable, HeadSet
from mmrh_retriever.loading import Processors, as_page, load_model, model_path, resolve_heads
from mmrh_retriever.prompts import Prompter, PromptOptions
from mmrh_retriever.question_attention import QuestionAttention, question_attention
from mmrh_retriever.region_ranking import Crops, RegionMethod, check_regions, checked_count, ranked_regions
from mmrh_retriever.regions import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.scoring import descending, page_scores
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
        token_budget: the longest window in tokens (32,768, or the model's context if that is shorter); longer
            lists of pages are ranked over several windows.
        independent: encode each page as if it stood alone behind the prompt's head. Pages then start alike, cost the
            same whatever stands beside them, and may be more than the model's context holds. Not what the paper does;
            by default only where the model's config says ``mmrh_independent``, as the bundled model's does.
        calibrate: subtract the attention of a null question (Li et al. 2026, arXiv 2605.27243).
        options: wording of the prompt, and which tokens count.
        check: compare recorded attention with plain eager attention on a short input, once a model.

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
    ) -> None:
        processors = Processors.of(processor)
        self.backbone = Backbone.of(model)
        self.calibrate = calibrate
        self.prompter = Prompter(self.backbone, processors.tokenizer, processors.image_processor, options)
        by_config = bool(getattr(self.backbone.config, "mmrh_independent", False))
        self.independent = by_config if independent is None else independent
        self.token_budget = DEFAULT_TOKEN_BUDGET if token_budget is None else token_budget
        least = len(self.prompter.lay_head()) + TAIL_ROOM
        if self.token_budget <= least:
            raise ContextOverflowError(
                f"token_budget={self.token_budget} leaves no room for a page: the prompt's head and the room kept for "
                f"questions take {least} tokens. Raise it.",
                tokens=least,
                allowed=self.token_budget,
            )
        self.heads = resolve_heads(heads, self.backbone)
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
        **loading: Any,
    ) -> Reranker:
        """Load a model by hub id or folder; without one, the small model that ships with the package.

        ``loading`` takes ``device``, ``dtype``, ``attn_implementation``, ``max_pixels``, ``revision``,
        ``cache_dir``, ``local_files_only`` and ``quantization_config`` (see
        :func:`mmrh_retriever.loading.load_model`); anything else goes to transformers untouched.

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
        )

    def with_heads(self, heads: str | Path | HeadSet | HeadScoresTable) -> Reranker:
        """A reranker on the same model with other heads."""
        processors = Processors(self.prompter.tokenizer, self.prompter.image_processor)
        return type(self)(
            self.backbone.model,
            processors,
            heads,
            token_budget=self.token_budget,
            independent=self.independent,
            calibrate=self.calibrate,
            options=self.prompter.options,
            check=False,
        )

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
        laid = [self.prompter.lay_question(question) for question in as_questions(questions)]
        listed = as_pages(pages)
        engine = self._engine()
        windows = engine.windows(_shown(listed, progress), numbers=page_numbers(listed))
        scores = Scores(len(laid), listed, with_tokens=with_tokens)
        null = [self.prompter.lay_null_question()] if self.calibrate else []
        for window in windows:
            attention = engine.ask(window, [*laid, *null], tokens=with_tokens)
            scores.add(window, *_without_null(attention, calibrated=self.calibrate))
            window.cache = None
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
                :func:`mmrh_retriever.regions.region_scores`. Crops don't need it.
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

    def _engine(self) -> Engine:
        return Engine(self.prompter, list(self.heads), self.token_budget, independent=self.independent)

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
        self._numbers = page_numbers(pages)
        self._lock = reranker.backbone.seam.lock
        self._windows: list[Window] = []
        self._null: dict[int, Attention] = {}
        self._in_use: OrderedDict[int, None] = OrderedDict()  # windows that hold a cache, longest unused first
        for window in self._engine.windows(_shown(pages, progress), numbers=self._numbers):
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
        laid = [self.reranker.prompter.lay_question(question) for question in as_questions(questions)]
        scores = Scores(len(laid), list(self.pages), with_tokens=with_tokens)
        with self._lock:
            # windows that hold their keys come first: asking in order would drop each just before it is needed
            for number in sorted(range(len(self._windows)), key=lambda place: self._windows[place].cache is None):
                window = self._ready(number)
                null = self._null_attention(number) if self.reranker.calibrate else None
                if laid:
                    scores.add(window, self._engine.ask(window, laid, tokens=with_tokens), null)
                self._touch(number)
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


class Scores:
    """Collects windows' attention into rankings."""

    def __init__(self, questions: int, pages: list[Page], *, with_tokens: bool) -> None:
        self.pages = pages
        self.with_tokens = with_tokens
        self.values = torch.full((questions, len(pages)), float("nan"), dtype=torch.float64)
        self.tokens: list[dict[int, tuple[Any, Any]]] = [{} for _ in range(questions)]

    def add(self, window: Window, attention: Attention, null: Attention | None) -> None:
        """Take in what the questions paid one window."""
        null_mass = None if null is None else null.mass[0]
        self.values[:, window.members] = page_scores(attention.mass, null_mass)
        if not self.with_tokens or attention.tokens is None:
            return
        for question in range(self.values.shape[0]):
            paid = attention.tokens[question]
            if null is not None and null.tokens is not None:
                paid = paid - null.tokens[0]
            for member, place in zip(window.members, window.places, strict=True):
                self.tokens[question][member] = (paid[list(place.visual)].numpy(), place.grid)

    def rankings(self, top_n: int | None) -> list[list[ScoredPage]]:
        """One ranking a question, best first; equals stay in the caller's order."""
        return [list(self._ranking(question, top_n)) for question in range(self.values.shape[0])]

    def _ranking(self, question: int, top_n: int | None) -> Iterator[ScoredPage]:
        values = self.values[question]
        for rank, place in enumerate(descending(values)[:top_n], start=1):
            token_scores, grid = self.tokens[question].get(place, (None, None))
            yield ScoredPage(
                page=self.pages[place],
                score=float(values[place]),
                rank=rank,
                position=place,
                token_scores=token_scores if grid is not None else None,
                grid=grid,
            )


def as_pages(pages: Iterable[PageLike]) -> list[Page]:
    """The caller's pages as :class:`Page` objects.

    Raises:
        PageError: no pages, a single page where a list is expected, or one that can't be read.
    """
    if isinstance(pages, (str, bytes, Path, Page)) or not isinstance(pages, Iterable):
        raise PageError(
            f"Expected a list of pages, got a single {type(pages).__name__}. Put it in a list; the pages of a PDF file "
            "come from read_pdf(path)."
        )
    found = [as_page(item, place) for place, item in enumerate(pages)]
    if not found:
        raise PageError("There are no pages to rank. Give at least one.")
    return found


def as_questions(questions: Iterable[str]) -> list[str]:
    """The caller's questions as a list.

    Raises:
        QuestionError: a single text where a list is expected.
    """
    if isinstance(questions, str) or not isinstance(questions, Iterable):
        raise QuestionError(f"Expected a list of questions, got a single {type(questions).__name__}. Put it in a list.")
    return list(questions)


def page_numbers(pages: Sequence[Page]) -> list[int]:
    """The numbers that stand on the pages' labels: their own if they are one document's, else 1, 2, 3 ..."""
    own = [page.number for page in pages]
    if len({page.doc_id for page in pages}) == 1 and len(set(own)) == len(own):
        return own
    return list(range(1, len(pages) + 1))


def _without_null(attention: Attention, *, calibrated: bool) -> tuple[Attention, Attention | None]:
    if not calibrated:
        return attention, None
    tokens = attention.tokens
    questions = Attention(attention.mass[:-1], None if tokens is None else tokens[:-1])
    return questions, Attention(attention.mass[-1:], None if tokens is None else tokens[-1:])


def _shown(pages: Sequence[Page], progress: bool) -> Iterable[tuple[int, Page]]:
    bar: Iterable[tuple[int, Page]] = tqdm(
        enumerate(pages),
        total=len(pages),
        desc="pages",
        unit="page",
        disable=None if progress else True,
        leave=False,
    )
    return bar
