"""The facade: rank pages for a question, or encode pages once and ask many questions."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.encoding.page_store import ModelPages, PageStore
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.errors import SettingsError
from mmrh_retriever.heads.published import resolve_heads
from mmrh_retriever.heads.scores import HeadScoresTable
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.model.attention_check import check_attention
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.fingerprints import prompt_fingerprint, unreadable_weights, weights_fingerprint
from mmrh_retriever.model.first_resize import with_first_resize
from mmrh_retriever.model.loading import Processors, load_model, model_path
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.model.token_weights import frequency_weights
from mmrh_retriever.model.vision import DEFAULT_VISION_MEMORY, Vision
from mmrh_retriever.ranking.calibration import Calibration, calibration_for
from mmrh_retriever.ranking.cross_encoder import CrossEncoderView, Pair, pair_scores
from mmrh_retriever.ranking.encoded_pages import DEFAULT_MEMORY_BUDGET, EncodedPages
from mmrh_retriever.ranking.hybrid import TextLayer
from mmrh_retriever.ranking.inputs import as_candidates, as_pages, as_questions, in_thread, with_progress
from mmrh_retriever.ranking.model_defaults import check_room, with_model_defaults
from mmrh_retriever.ranking.rankings import score_windows
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import Crops, RegionMethod, check_regions, ranked_regions
from mmrh_retriever.settings import DEFAULT_TEXT_WEIGHT, DEFAULT_TOKEN_BUDGET, RerankSettings, check_top_n
from mmrh_retriever.types import Candidate, FloatArray, Page, PageLike, ScoredPage, ScoredRegion


class Reranker:
    """Ranks pages by the attention that a model's retrieval heads pay them from a question's tokens.

    Args:
        model: a loaded transformers model of a supported family. Several rerankers may share one.
        processor: its processor, its tokenizer, or ``(tokenizer, image_processor)``.
        heads: ``"published"`` (the set shipped for this model), ``"all"``, a :class:`HeadSet`, or the path of
            a head set or of detected scores.
        settings: how pages are ranked.
        calibration: what gives pages a probability (:mod:`~mmrh_retriever.ranking.calibration`): ``"auto"`` for the
            file beside a local model's weights, if it holds for these heads and settings, a :class:`Calibration`, the
            path of one, or ``None``.
        store: where encoded pages are kept for later calls; several rerankers may share one.
        vision_memory: bytes of vision features kept, so that a page seen again goes through the vision tower once.
        check: compare recorded attention with plain eager attention on a short input, once per model.
        changes: fields of :class:`~mmrh_retriever.RerankSettings`, in place of those of ``settings``:
            ``token_budget``, ``window_pages``, ``independent``, ``calibrate``, ``final_round``, ``resize_first``,
            ``hybrid``, ``text_weight``, ``question_weights`` and ``options``.

    Weights and peft adapters may change between calls: pages and vision features kept before are then not used.
    :class:`EncodedPages` hold for the weights that they were encoded with.

    Raises:
        UnsupportedModelError: a family or attention backend that we can't drive.
        HeadSetError: heads that do not fit the model, or none published for it.
        SettingsError: a setting that is out of its range, or a given calibration that does not hold.
        ContextOverflowError: a token budget without room for a page.
        AttentionCaptureError: the check failed, or the weights hold NaN.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        heads: str | Path | HeadSet | HeadScoresTable = "published",
        *,
        settings: RerankSettings | None = None,
        calibration: Calibration | str | Path | None = "auto",
        store: PageStore | None = None,
        vision_memory: int = DEFAULT_VISION_MEMORY,
        check: bool = True,
        **changes: Any,
    ) -> None:
        processors = Processors.of(processor)
        self.backbone = Backbone.of(model)
        self.settings = given = with_model_defaults(RerankSettings.of(settings, changes), self.backbone)
        image_processor = processors.image_processor
        if given.resize_first:
            image_processor = with_first_resize(image_processor)
        self.prompter = Prompter(
            self.backbone,
            processors.tokenizer,
            image_processor,
            given.options,
            token_weights=frequency_weights(self.backbone.name) if given.question_weights == "frequency" else None,
        )
        check_room(given, self.prompter.prefix_segment())
        self.heads = resolve_heads(heads, self.backbone.facts)
        self._calibrate(calibration)
        self.vision = Vision(self.backbone, vision_memory)
        self._keep_in(store)
        if check:
            check_attention(self.backbone, self.prompter.prefix_segment().ids)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        heads: str | Path | HeadSet | HeadScoresTable = "published",
        settings: RerankSettings | None = None,
        calibration: Calibration | str | Path | None = "auto",
        store: PageStore | None = None,
        vision_memory: int = DEFAULT_VISION_MEMORY,
        check: bool = True,
        **changes: Any,
    ) -> Reranker:
        """Load a model by hub id or folder; without one, the small model that ships with the package.

        ``changes`` takes the fields of :class:`~mmrh_retriever.RerankSettings`, those for loading too: ``device``,
        ``dtype``, ``attn_implementation``, ``max_pixels``, ``revision``, ``cache_dir``, ``local_files_only``.
        ``quantization_config`` and anything else goes to transformers untouched. The image processor is the one that
        Pillow backs, with or without torchvision.

        Raises:
            UnsupportedModelError: an unknown family.
            HeadSetError: no heads for this model.
            SettingsError: a setting that is out of its range.
            OSError: transformers' own, if files are missing.
        """
        given = RerankSettings.of_pretrained(model, settings, changes)
        path, _ = model_path(given.model)
        loaded, processors = load_model(path, **given.loading())
        return cls(
            loaded, processors, heads, settings=given, calibration=calibration, store=store,
            vision_memory=vision_memory, check=check,
        )  # fmt: skip

    def with_heads(self, heads: str | Path | HeadSet | HeadScoresTable) -> Reranker:
        """A reranker on the same model with other heads; vision features and store are shared.

        Its calibration is the one beside the model, if that holds for them.
        """
        other = copy.copy(self)
        other.heads = resolve_heads(heads, self.backbone.facts)
        if other.heads != self.heads:
            other._calibrate("auto")
        return other

    def with_calibration(self, calibration: Calibration | str | Path | None) -> Reranker:
        """A reranker on the same model with another calibration, or none."""
        other = copy.copy(self)
        other._calibrate(calibration)
        return other

    def with_store(self, store: PageStore | None, *, vision_memory: int | None = None) -> Reranker:
        """A reranker on the same model that keeps encoded pages in this store, or in none.

        With ``vision_memory`` it has vision features of its own.
        """
        other = copy.copy(self)
        if vision_memory is not None:
            other.vision = Vision(self.backbone, vision_memory)
        other._keep_in(store)
        return other

    def with_hybrid(self, hybrid: bool | Literal["auto"], text_weight: float = DEFAULT_TEXT_WEIGHT) -> Reranker:
        """A reranker on the same model whose scores join the text layer's, or don't; see :class:`RerankSettings`."""
        other = copy.copy(self)
        changed = RerankSettings.of(self.settings, {"hybrid": hybrid, "text_weight": text_weight})
        other.settings = with_model_defaults(changed, self.backbone)
        return other

    @property
    def independent(self) -> bool:
        """Whether each page is encoded as if it stood alone."""
        return bool(self.settings.independent)

    @property
    def token_budget(self) -> int:
        """The longest window, in tokens."""
        return self.settings.token_budget or DEFAULT_TOKEN_BUDGET

    @property
    def final_heat(self) -> int:
        """Deprecated: ``settings.final_round``."""
        warnings.warn("Reranker.final_heat is called settings.final_round now.", DeprecationWarning, stacklevel=2)
        return self.settings.final_round

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

        The result has one ranking per question; see :meth:`rank`.
        """
        check_top_n(top_n)
        asked = as_questions(questions)
        segments = self.prompter.question_segments(asked)
        candidates = self.candidates(as_pages(pages))
        engine = self.engine()

        def windows() -> Iterator[Window]:
            for window in engine.windows(with_progress(candidates, progress), count=len(candidates)):
                yield window
                window.drop()

        scores = score_windows(
            engine,
            windows(),
            candidates,
            segments,
            null=self.null(),
            final_round=self.settings.final_round,
            with_tokens=with_tokens,
        )
        texts = self.text_layer([one.page for one in candidates])
        return scores.rankings(top_n, texts=texts, asked=asked, calibration=self.calibration)

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

        Pages bring their boxes as ``regions``: ``read_pdf(path, layout=True)`` finds them. Any other list of boxes may
        be given, in the units of ``Page.size``. Pages without regions give none.

        Args:
            question: text.
            pages: as for :meth:`rank`; at least one has regions.
            top_n: how many regions to give; all of them if ``None``.
            aggregate: how the visual tokens under a box become its score (``ranking.region_scores``), unless cropped.
            method: ``"page"`` takes the scores from the page pass; ``"crops"`` runs each box as an image of its own,
                as Li et al. 2026 do, which costs a pass over all boxes.
            progress: show a bar on stderr, if that is a terminal.

        Raises:
            PageError: no page has regions, a region lies off its page, or a page can't be read.
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

        The result has one ranking per question; see :meth:`rank_regions`.
        """
        listed = as_pages(pages)
        check_regions(listed, method)
        check_top_n(top_n)
        if method == "crops":
            crops = Crops(listed)
            rankings = self.rank_many(questions, crops.pages, top_n=top_n, progress=progress)
            return [crops.ranked(ranking) for ranking in rankings]
        rankings = self.rank_many(questions, listed, with_tokens=True, progress=progress)
        return [ranked_regions(ranking, aggregate=aggregate, top_n=top_n) for ranking in rankings]

    def encode(
        self, pages: Iterable[PageLike], *, memory_budget: int = DEFAULT_MEMORY_BUDGET, progress: bool = False
    ) -> EncodedPages:
        """Run the pages once and keep what questions need of them.

        ``memory_budget`` counts bytes of keys and values. Beyond it the windows used longest ago are dropped, and run
        again when they are asked; scores do not change.

        Raises:
            PageError: no pages, or one that can't be read.
            ContextOverflowError: a page too long.
            SettingsError: a negative memory budget.
        """
        return EncodedPages(self, as_pages(pages), memory_budget=memory_budget, progress=progress)

    def predict(self, pairs: Iterable[Pair], *, progress: bool = False) -> FloatArray:
        """Scores of pairs of a question and a document, in their order; see :func:`ranking.cross_encoder.pair_scores`.

        A document is a text, an image, a path or a page. The result is ``(pairs,)`` float32.
        """
        return np.array(pair_scores(self, pairs, progress=progress), dtype=np.float32)

    def as_cross_encoder(self) -> CrossEncoderView:
        """This reranker with the methods of sentence-transformers' ``CrossEncoder``."""
        return CrossEncoderView(self)

    arank = in_thread(rank)
    arank_many = in_thread(rank_many)
    arank_regions = in_thread(rank_regions)
    aencode = in_thread(encode)
    apredict = in_thread(predict)

    def engine(self) -> Engine:
        """An engine for this model and these heads."""
        deepest = max(head.layer for head in self.heads)
        weights = weights_fingerprint(self.backbone.model)
        self.vision.hold_for(weights)
        kept = None
        if self.store is not None:
            kept = ModelPages(self.store, f"{self._fingerprint}-{weights}", self._extent(deepest))
        return Engine(
            self.prompter,
            list(self.heads),
            self.token_budget,
            independent=self.independent,
            window_pages=self.settings.window_pages,
            vision=self.vision,
            kept=kept,
        )

    def text_layer(self, pages: Sequence[Page]) -> TextLayer | None:
        """The pages' text layers, if scores are hybrid and some page has one."""
        return TextLayer.of(pages, self.settings.text_weight) if self.settings.hybrid else None

    def null(self) -> PromptSegment | None:
        """The question that calibrates the others, if any does."""
        return self.prompter.null_segment() if self.settings.calibrate else None

    def candidates(self, pages: Sequence[Page]) -> list[Candidate]:
        """The pages with the numbers on their labels: their own for independent pages in a store, to be found again."""
        return as_candidates(pages, own_numbers=self.independent and self.store is not None)

    @property
    def calibrated_settings(self) -> dict[str, Any]:
        """The settings that a calibration holds for."""
        named = self.settings.model_dump(
            include={"independent", "calibrate", "resize_first", "max_pixels", "question_weights"}
        )
        return {**named, **asdict(self.prompter.options)}

    def _calibrate(self, given: Calibration | str | Path | None) -> None:
        self.calibration, self.uncalibrated = calibration_for(
            given, self.backbone.name, self.heads, self.calibrated_settings
        )

    def _extent(self, deepest: int) -> str:
        """What a window keeps of a page, for a file's name: layers, and of the deepest one the recorded heads."""
        recorded = sorted(head.head for head in self.heads if head.layer == deepest)
        return f"{deepest + 1}-{hashlib.blake2b(bytes(f'{recorded}', 'ascii'), digest_size=4).hexdigest()}"

    def _keep_in(self, store: PageStore | None) -> None:
        self.store = store
        self._fingerprint = ""
        if store is not None:
            self._fingerprint = prompt_fingerprint(self.prompter, independent=self.independent)
            if unreadable := unreadable_weights(self.backbone.model):
                raise SettingsError(
                    f"The numbers of {unreadable[0]} (one of {len(unreadable)} such weights) are on the meta device "
                    "and can't be read, so that pages can't be told from those of other weights. Expected weights in "
                    "memory or offloaded by accelerate: load the whole model, or leave store out."
                )
