"""The settings that every adapter takes: the model and how it ranks, and how far documents are trusted.

An adapter is a class of its framework and of :class:`AdapterSettings`. It gives what each of the framework's documents
says of its page (:class:`~mmrh_retriever.adapters.PageClues`), and turns ranked items into the framework's results.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr, field_serializer, field_validator

from mmrh_retriever.adapters.page_sources import DEFAULT_MAX_BYTES, PageSource
from mmrh_retriever.adapters.ranking import DocumentRanker
from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import SettingsError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.images import MAX_IMAGE_PIXELS
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.ranking.shared_models import shared_reranker
from mmrh_retriever.settings import LOADING, RerankSettings

DEFAULT_PAGE_MEMORY = 1024**3
"""Bytes of encoded pages that an adapter keeps for later questions."""


class AdapterSettings(RerankSettings, DocumentRanker):
    """Settings that every adapter takes, and the ranking that they describe.

    The model is loaded at first use and shared by all adapters of the process that load it alike. An adapter may be
    given a ``reranker=`` instead. Its model, heads and settings for ranking then count; the settings for loading don't.
    """

    model_config = ConfigDict(frozen=False, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    heads: str | InstanceOf[HeadSet] = Field(
        "published", description="'published', 'all', the path of a head set, a HeadSet, or its heads' names."
    )
    page_memory: int = Field(
        DEFAULT_PAGE_MEMORY,
        ge=0,
        description="Bytes of encoded pages kept for later questions; 0 keeps none. Counts where pages stand alone.",
    )
    keep_retrieval_score: bool = Field(True, description="Keep the score that a document came with in its metadata.")

    page_base: Literal[0, 1] = Field(0, description="The number that the first page has in the metadata.")
    page_key: str | None = Field(None, description="The metadata key of the page's number.")
    allow_urls: bool = Field(False, description="Fetch images from public web addresses.")
    allowed_root: str | None = Field(None, description="The folder that files must be in; any if None.")
    max_bytes: int = Field(DEFAULT_MAX_BYTES, gt=0, description="The longest file or answer that is read.")
    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, gt=0, le=MAX_IMAGE_PIXELS, description="Larger ones are refused.")
    pdf_pixels: int = Field(DEFAULT_MAX_PIXELS, gt=0, description="Pixels that a page of a PDF is drawn with.")
    url_timeout: float = Field(20.0, gt=0, description="Seconds for fetching one image.")

    _held: _Held = PrivateAttr()

    def __init__(self, *, reranker: Reranker | None = None, **settings: Any) -> None:
        if reranker is not None:
            settings |= {name: value for name, value in reranker.settings if name not in (*LOADING, "model_kwargs")}
            settings["model"] = str(reranker.backbone.config._name_or_path or "") or None
            settings["heads"] = reranker.heads
        super().__init__(**settings)
        self._held = _Held(reranker, given=reranker is not None)

    @field_validator("allowed_root", mode="before")
    @classmethod
    def _root_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("heads", mode="before")
    @classmethod
    def _parsed_heads(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return HeadSet.parse(value)
        return str(value) if isinstance(value, Path) else value

    @field_serializer("heads")
    def _plain_heads(self, value: str | HeadSet) -> str | list[str]:
        return value if isinstance(value, str) else [str(head) for head in value]

    @property
    def final_heat(self) -> int:
        """The old name of ``final_round``."""
        warnings.warn("final_heat is called final_round now.", DeprecationWarning, stacklevel=2)
        return self.final_round

    @property
    def reranker(self) -> Reranker:
        """The reranker that scores: the one given, else one on the shared model, which is loaded now.

        Raises:
            UnsupportedModelError: an unknown family.
            HeadSetError: no heads for this model.
            SettingsError: a setting that was changed to a value out of its range.
            OSError: transformers' own, if files are missing.
        """
        held = self._held
        if held.given and held.reranker is not None:
            return held.reranker
        settings = RerankSettings.of(None, {name: getattr(self, name) for name in RerankSettings.model_fields})
        made_from = (settings, self.heads, self.page_memory)
        if held.reranker is not None and held.made_from == made_from:
            return held.reranker
        made = shared_reranker(heads=self.heads, settings=settings)
        if made.independent and self.page_memory:
            made = made.with_store(PageStore(self.page_memory))
        self._held = _Held(made, made_from=made_from)
        return made

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
            SettingsError: made from a reranker whose model has neither name nor folder.
        """
        if self._held.given and self.model is None:
            raise SettingsError(
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


class _Held:
    """Keeps a reranker out of copies and pickles: a copy shares it, a pickle goes without.

    ``made_from`` are the settings that it was made from, unless it was given.
    """

    def __init__(self, reranker: Reranker | None = None, *, given: bool = False, made_from: object = None) -> None:
        self.reranker = reranker
        self.given = given
        self.made_from = made_from

    def __eq__(self, other: object) -> bool:
        """Only a reranker that was given makes adapters differ; one that was loaded follows from the settings."""
        given = (self.given and self.reranker) or None
        return isinstance(other, _Held) and given is ((other.given and other.reranker) or None)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> _Held:
        return self

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return type(self), ()
