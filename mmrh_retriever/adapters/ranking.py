"""What adapters to other frameworks share: their settings, and ranking documents that are not pages yet.

An adapter is a class of its framework and of :class:`AdapterSettings`. It says for each of the framework's
documents what is known of its page (:class:`PageClues`) and turns the ranked items
into the framework's results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PrivateAttr, field_serializer, field_validator

from mmrh_retriever.adapters.page_sources import DEFAULT_MAX_BYTES, PageClues, PageSource
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import ContextOverflowError, MMRHError, PageError, QuestionError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.images import MAX_IMAGE_PIXELS
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.final_round import check_size
from mmrh_retriever.ranking.rankings import page_numbers
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.ranking.shared_models import shared_reranker
from mmrh_retriever.settings import DEFAULT_FINAL_ROUND
from mmrh_retriever.types import Page, Region, ScoredRegion, grid_boxes

RETRIEVAL_SCORE_KEY = "retrieval_score"
"""Metadata: the score that the document came with."""
REGIONS_KEY = "mmrh_regions"
"""Metadata: the page's best regions (see :meth:`RankedItem.region_records`)."""
ERROR_KEY = "mmrh_error"
"""Metadata: why a document was put last without a score."""

DEFAULT_PAGE_MEMORY = 1024**3
"""Bytes of encoded pages that an adapter keeps for later questions."""
GRID_CELLS = 24
"""About how many cells serve as the regions of a page whose layout is unknown."""

_OF_A_RERANKER = ("heads", "token_budget", "independent", "calibrate", "final_heat")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RankedItem:
    """A document's place in the caller's list with its score.

    ``score`` is ``None`` for a document that can't be read and was put last; ``error`` then says why. ``regions``
    holds the page's best regions, best first, where they were asked for.
    """

    position: int
    score: float | None
    error: MMRHError | None = None
    regions: tuple[ScoredRegion, ...] = ()

    def region_records(self) -> list[dict[str, Any]]:
        """The regions as plain data: ``box`` and ``page_size`` in the page's units, ``kind``, ``score``, ``text``.

        ``kind`` is ``"cell"`` for the cells of a grid, which stand in where a page's layout is unknown.
        """
        return [
            {
                "box": [float(side) for side in found.box],
                "page_size": None if found.page.size is None else [float(side) for side in found.page.size],
                "kind": found.kind,
                "score": float(found.score),
                "text": found.region.text,
            }
            for found in self.regions
        ]


class AdapterSettings(BaseModel):
    """Settings that every adapter takes, and the ranking that they describe.

    The model is loaded at first use and shared by all adapters of the process that load it alike. An adapter
    may be given a ``reranker=`` instead; its model and heads then count, and the settings for loading don't.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=(), extra="forbid")

    model: str | None = Field(None, description="Hub id or folder; the model that ships with the package if None.")
    heads: str | InstanceOf[HeadSet] = Field(
        "published", description="'published', 'all', the path of a head set, a HeadSet, or its heads' names."
    )
    device: str | None = Field(None, description="Where the model runs; the first accelerator, else the CPU.")
    dtype: str | None = Field(None, description="The weights' type, such as 'bfloat16'.")
    attn_implementation: str | None = Field(None, description="transformers' attention implementation.")
    max_pixels: int | None = Field(None, gt=0, description="Pixels that the model sees of an image at most.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    cache_dir: str | None = Field(None, description="The hub's cache folder.")
    local_files_only: bool = Field(False, description="Never go to the network for the model.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="More settings for loading the model.")
    token_budget: int | None = Field(None, gt=0, description="Tokens that are read together at most.")
    independent: bool | None = Field(
        None, description="Encode each page as if it stood alone; as the model's config says if not set."
    )
    calibrate: bool = Field(True, description="Subtract the attention of a null question.")
    final_heat: int = Field(
        DEFAULT_FINAL_ROUND,
        description="Best pages of several windows that are compared once more together; 0 compares none.",
    )
    page_memory: int = Field(
        DEFAULT_PAGE_MEMORY,
        ge=0,
        description="Bytes of encoded pages kept for later questions; 0 keeps none. Counts where pages stand alone.",
    )

    score_threshold: float | None = Field(None, description="Documents that score lower are left out.")
    on_error: Literal["raise", "last", "drop"] = Field(
        "raise", description="What to do with a document that can't be read: raise, put it last, leave it out."
    )
    keep_retrieval_score: bool = Field(True, description="Keep the score that a document came with in its metadata.")
    with_regions: bool = Field(False, description="Put the best regions of each page into its document's metadata.")
    regions_per_page: int = Field(3, ge=1, description="How many regions of a page are kept.")

    page_base: Literal[0, 1] = Field(0, description="What the first page's number in the metadata is.")
    page_key: str | None = Field(None, description="The metadata key of the page's number.")
    allow_urls: bool = Field(False, description="Fetch images from public web addresses.")
    allowed_root: str | None = Field(None, description="The folder that files must lie in; any if None.")
    max_bytes: int = Field(DEFAULT_MAX_BYTES, gt=0, description="The longest file or answer that is read.")
    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, gt=0, le=MAX_IMAGE_PIXELS, description="Larger ones are refused.")
    pdf_pixels: int = Field(DEFAULT_MAX_PIXELS, gt=0, description="Pixels that a page of a PDF is drawn with.")
    url_timeout: float = Field(20.0, gt=0, description="Seconds for fetching one image.")

    _held: _Held = PrivateAttr()

    def __init__(self, *, reranker: Reranker | None = None, **settings: Any) -> None:
        if reranker is not None:
            settings["model"] = str(reranker.backbone.config._name_or_path or "") or None
            settings |= {name: getattr(reranker, name) for name in _OF_A_RERANKER}
        super().__init__(**settings)
        self._held = _Held(reranker, given=reranker is not None)

    @field_validator("model", "cache_dir", "allowed_root", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("device", "dtype", mode="before")
    @classmethod
    def _torch_as_text(cls, value: object) -> object:
        return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value

    @field_validator("heads", mode="before")
    @classmethod
    def _parsed_heads(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return HeadSet.parse(value)
        return str(value) if isinstance(value, Path) else value

    @field_validator("final_heat")
    @classmethod
    def _checked_heat(cls, value: int) -> int:
        return check_size(value)

    @field_serializer("heads")
    def _plain_heads(self, value: str | HeadSet) -> str | list[str]:
        return value if isinstance(value, str) else [str(head) for head in value]

    @property
    def reranker(self) -> Reranker:
        """The reranker that scores: the one given, else one on the shared model, which is loaded now.

        Raises:
            UnsupportedModelError: an unknown family.
            HeadSetError: no heads for this model.
            OSError: transformers' own, if files are missing.
        """
        held = self._held
        if held.given and held.reranker is not None:
            return held.reranker
        loading = {
            **self.model_kwargs,
            "device": self.device,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "max_pixels": self.max_pixels,
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
        }
        own = {name: getattr(self, name) for name in _OF_A_RERANKER}
        told = repr((self.model, own, self.page_memory, loading))
        if held.reranker is None or held.told != told:
            made = shared_reranker(self.model, **own, **loading)
            if made.independent and self.page_memory:
                made = made.with_store(PageStore(self.page_memory))
            held = self._held = _Held(made, told=told)
        return made if held.reranker is None else held.reranker

    @property
    def model_label(self) -> str:
        """What to call the model: its id, its folder's name, or its class."""
        if self.model is not None:
            return Path(self.model).name if Path(self.model).is_dir() else self.model
        held = self._held
        return "bundled" if not held.given or held.reranker is None else type(held.reranker.backbone.model).__name__

    def check_portable(self) -> None:
        """Refuse to be written down if what was written could not be read back as the same.

        Raises:
            ValueError: made from a reranker whose model has neither name nor folder.
        """
        if self._held.given and self.model is None:
            raise ValueError(
                f"This {type(self).__name__} was made from a reranker whose model has neither a hub id nor a folder, "
                "so it can't be written down and read back. Save the model, and give its folder as model=."
            )

    def __getstate__(self) -> dict[Any, Any]:
        self.check_portable()
        return super().__getstate__()

    def page_source(self) -> PageSource:
        """How pages are found and how far documents are trusted."""
        return PageSource(
            allow_urls=self.allow_urls,
            allowed_root=self.allowed_root,
            max_bytes=self.max_bytes,
            max_pixels=self.max_image_pixels,
            pdf_pixels=self.pdf_pixels,
            url_timeout=self.url_timeout,
        )

    def rank_items(
        self,
        question: str,
        items: Sequence[Item],
        clues_of: Callable[[Item], PageClues],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[RankedItem]:
        """Rank documents for a question, best first; equals keep the caller's order.

        Documents that lead to the same page are scored once. The items are not changed.

        Args:
            question: text.
            items: the framework's documents.
            clues_of: what one of them says of its page.
            top_n: how many to give at most; all if ``None``.
            score_threshold: instead of the setting.

        Raises:
            QuestionError: an empty question.
            PageError, ContextOverflowError: a document that can't be read, or is too long (``on_error="raise"``).
            ValueError: ``top_n`` below 1.
        """
        check_top_n(top_n)
        if not isinstance(question, str) or not question.strip():
            raise QuestionError(
                "The question is empty; pages are ranked by what its words attend to. Give it as text (a query by "
                "image alone can't be ranked)."
            )
        failed: dict[int, MMRHError] = {}
        source = self.page_source()
        pages: dict[Hashable, Page] = {}
        keys: dict[int, Hashable] = {}
        for position, item in enumerate(items):
            page = self._page_or_error(source, item, clues_of)
            if isinstance(page, Page):
                keys[position] = page_key(page)
                pages.setdefault(keys[position], page)
            else:
                failed[position] = page
        reranker = self.reranker
        ranking, unreadable = self.without_unreadable(
            list(pages.values()), lambda readable: reranker.rank(question, readable)
        )
        scores = {id(scored.page): scored.score for scored in ranking or []}
        ranked = []
        for position, key in keys.items():
            page = pages[key]
            if id(page) in unreadable:
                failed[position] = unreadable[id(page)]
            else:
                ranked.append(RankedItem(position, float(scores[id(page)])))
        chosen = self.choose(ranked, failed, top_n=top_n, score_threshold=score_threshold)
        if not self.with_regions:
            return chosen
        laid = {
            item.position: with_some_regions(source.page(clues_of(items[item.position]), layout=True))
            for item in chosen
            if item.score is not None
        }
        return self.add_regions(chosen, laid, lambda pictured: reranker.rank_regions(question, pictured))

    def choose(
        self,
        ranked: Sequence[RankedItem],
        failed: dict[int, MMRHError],
        *,
        top_n: int | None,
        score_threshold: float | None = None,
    ) -> list[RankedItem]:
        """Order scored items, leave out those below the threshold, put the failed ones last, cut to ``top_n``."""
        threshold = self.score_threshold if score_threshold is None else score_threshold
        best = [item for item in ranked if threshold is None or (item.score is not None and item.score >= threshold)]
        best.sort(key=lambda item: (-(item.score or 0.0), item.position))
        if self.on_error == "last":
            best += [RankedItem(position, None, error) for position, error in sorted(failed.items())]
        return best[:top_n]

    def add_regions(
        self,
        items: Sequence[RankedItem],
        pages: dict[int, Page],
        rank_regions: Callable[[list[Page]], Sequence[ScoredRegion]],
    ) -> list[RankedItem]:
        """Give the items their pages' best regions.

        Args:
            items: ranked items.
            pages: the items' pages, with regions where they have an image, by position.
            rank_regions: gives the regions of pages that have an image, best first.
        """
        unique = {page_key(page): page for page in pages.values()}
        pictured = [page for page in unique.values() if page.image is not None]
        found: dict[Hashable, list[ScoredRegion]] = {}
        for region in rank_regions(pictured) if pictured else []:
            found.setdefault(page_key(region.page), []).append(region)
        result = []
        for item in items:
            page = pages.get(item.position)
            regions = found.get(page_key(page), []) if page is not None else []
            result.append(RankedItem(item.position, item.score, item.error, tuple(regions[: self.regions_per_page])))
        return result

    def without_unreadable(
        self, pages: Sequence[Page], run: Callable[[list[Page]], Result]
    ) -> tuple[Result | None, dict[int, MMRHError]]:
        """Run something over pages; unless ``on_error`` is ``"raise"``, again without those that can't be read.

        Returns:
            What ``run`` gave (``None`` if no page is left), and the errors by the ``id`` of their page.
        """
        if not pages:
            return None, {}
        try:
            return run(list(pages)), {}
        except (PageError, ContextOverflowError) as error:
            found = {} if self.on_error == "raise" else self._culprits(pages, error)
            if not found:
                raise
        result, others = self.without_unreadable([page for page in pages if id(page) not in found], run)
        return result, found | others

    def _page_or_error(self, source: PageSource, item: Item, clues_of: Callable[[Item], PageClues]) -> Page | PageError:
        try:
            return source.page(clues_of(item))
        except PageError as error:
            if self.on_error == "raise":
                raise
            return error

    def _culprits(self, pages: Sequence[Page], error: PageError | ContextOverflowError) -> dict[int, MMRHError]:
        """The pages that can't be laid for the model, or that are too long for a window."""
        laid = {
            id(page): self._length_or_error(page, number)
            for page, number in zip(pages, page_numbers(pages), strict=True)
        }
        found: dict[int, MMRHError] = {key: value for key, value in laid.items() if isinstance(value, PageError)}
        if isinstance(error, ContextOverflowError) and error.tokens in laid.values():  # else it is the question
            allowed = error.allowed
            found |= {key: error for key, value in laid.items() if isinstance(value, int) and value > allowed}
        return found

    def _length_or_error(self, page: Page, number: int) -> int | PageError:
        try:
            return len(self.reranker.prompter.page_segment(page, number))
        except PageError as error:
            return error


class _Held:
    """Keeps a reranker out of copies and pickles: a copy shares it, a pickle goes without."""

    def __init__(self, reranker: Reranker | None = None, *, given: bool = False, told: str | None = None) -> None:
        self.reranker = reranker
        self.given = given
        self.told = told

    def __eq__(self, other: object) -> bool:
        """What was made from the settings does not tell them apart; what was given does."""
        given = (self.given and self.reranker) or None
        return isinstance(other, _Held) and given is ((other.given and other.reranker) or None)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> _Held:
        return self

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return type(self), ()


def check_top_n(top_n: int | None, name: str = "top_n") -> None:
    """Refuse a number of results below 1.

    Raises:
        ValueError: it is.
    """
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise ValueError(f"{name} is a whole number of at least 1 (or None for all), got {top_n!r}.")


def with_some_regions(page: Page) -> Page:
    """A page that has an image but no layout (a scan, a photo) with a grid of about square cells for regions."""
    if page.image is None or page.regions or page.size is None:
        return page
    width, height = page.size
    columns = max(1, round(math.sqrt(GRID_CELLS * width / height)))
    rows = max(1, round(GRID_CELLS / columns))
    boxes = grid_boxes((0.0, 0.0, width, height), rows, columns).tolist()
    return replace(page, regions=tuple(Region((x0, y0, x1, y1), kind="cell") for x0, y0, x1, y1 in boxes))


def page_key(page: Page) -> Hashable:
    """Equal for pages that show the same page of the same file; the page itself if it is in memory."""
    if isinstance(page.image, Path):
        return str(page.image), page.text
    if page.image is not None and "path" in page.metadata:
        return str(page.metadata["path"]), page.index
    return id(page)
