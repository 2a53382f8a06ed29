"""The settings that every adapter takes: the model, and how far documents are trusted."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr, ValidationError, field_serializer, field_validator

from mmrh_retriever.adapters.page_sources import DEFAULT_MAX_BYTES, PageSource
from mmrh_retriever.encoding.page_store import DEFAULT_STORE_DISK, PageStore
from mmrh_retriever.errors import SettingsError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.images import MAX_IMAGE_PIXELS
from mmrh_retriever.pdf.backends import PdfBackendName
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.ranking.shared_models import shared_reranker
from mmrh_retriever.settings import LOADING, RerankSettings, TextOrNone, settings_error

DEFAULT_PAGE_MEMORY = 1024**3
"""Bytes of encoded pages that an adapter keeps for later questions."""


class DocumentSettings(RerankSettings):
    """The model that ranks documents, and how far these are trusted.

    Raises:
        SettingsError: a setting that is unknown, of the wrong type or out of its range.
    """

    model_config = ConfigDict(frozen=False, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    heads: str | InstanceOf[HeadSet] = Field(
        "published", description="'published', 'all', the path of a head set, a HeadSet, or its heads' names."
    )
    page_memory: int = Field(
        DEFAULT_PAGE_MEMORY,
        ge=0,
        description="Bytes of encoded pages kept in memory, where pages stand alone or a store is given; 0 keeps none. "
        "1 GiB holds about 100 pages of 2 megapixels of the bundled model in float32, 3 of Qwen3-VL-8B (mmrh plan).",
    )
    store: TextOrNone = Field(None, description="Folder where encoded pages are kept for later processes too.")
    store_disk: int = Field(DEFAULT_STORE_DISK, ge=0, description="Bytes of files that this folder may hold.")
    keep_retrieval_score: bool = Field(True, description="Keep the score that a document came with in its metadata.")

    page_base: Literal[0, 1] = Field(0, description="The number that the first page has in the metadata.")
    page_key: str | None = Field(None, description="The metadata key of the page's number.")
    on_missing_page: Literal["text", "raise", "drop"] = Field(
        "text",
        description="What to do with a document that names a PDF or a page which is not found: score its text and warn "
        "once, raise, leave it out.",
    )
    allow_urls: bool = Field(False, description="Fetch images and PDFs from public web addresses.")
    allowed_root: TextOrNone = Field(None, description="The folder that files must be in; any if None.")
    max_bytes: int = Field(DEFAULT_MAX_BYTES, gt=0, description="The longest file or answer that is read.")
    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, gt=0, le=MAX_IMAGE_PIXELS, description="Larger ones are refused.")
    pdf_pixels: int = Field(DEFAULT_MAX_PIXELS, gt=0, description="Pixels that a page of a PDF is drawn with.")
    pdf_backend: PdfBackendName = Field("auto", description="What reads PDFs: PyMuPDF if installed, or the one named.")
    url_timeout: float = Field(20.0, gt=0, description="Seconds for fetching one image.")

    _held: _Held = PrivateAttr()

    def __init__(self, *, reranker: Reranker | None = None, **settings: Any) -> None:
        if reranker is not None:
            settings |= {name: value for name, value in reranker.settings if name not in (*LOADING, "model_kwargs")}
            settings["model"] = str(reranker.backbone.config._name_or_path or "") or None
            settings["heads"] = reranker.heads
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise settings_error(error) from error
        if reranker is not None and self.store is not None:
            reranker = reranker.with_store(self._page_store())
        self._held = _Held(reranker)

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

        Errors are those of :meth:`~mmrh_retriever.Reranker.from_pretrained`.
        """
        held = self._held
        if held.given is not None:
            return held.given
        settings = RerankSettings.of(None, {name: getattr(self, name) for name in RerankSettings.model_fields})
        made_from = (settings, self.heads, self.page_memory, self.store, self.store_disk)
        if held.reranker is not None and held.made_from == made_from:
            return held.reranker
        made = self.keeping_pages(shared_reranker(heads=self.heads, settings=settings))
        self._held = _Held(made, made_from)
        return made

    def keeping_pages(self, reranker: Reranker) -> Reranker:
        """A reranker that keeps encoded pages as these settings say, if they do."""
        if self.store is None and not (reranker.independent and self.page_memory):
            return reranker
        return reranker.with_store(self._page_store())

    def warm_up(self) -> None:
        """Load the model now, so that the first question doesn't wait for it. Errors are those of ``reranker``."""
        _ = self.reranker

    async def awarm_up(self) -> None:
        """:meth:`warm_up` in a thread; the event loop goes on."""
        await asyncio.to_thread(self.warm_up)

    def _page_store(self) -> PageStore:
        return PageStore(self.page_memory, self.store, disk=self.store_disk)

    @property
    def model_label(self) -> str:
        """What to call the model: its id, its folder's name, or its class."""
        if self.model is not None:
            return Path(self.model).name if Path(self.model).is_dir() else self.model
        return "bundled" if self._held.given is None else type(self._held.given.backbone.model).__name__

    def check_portable(self) -> None:
        """Raise a :class:`SettingsError` if the settings, written down, could not be read back as the same."""
        if self._held.given is not None and self.model is None:
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
            pdf_backend=self.pdf_backend,
        )


class _Held:
    """A reranker that was given, or made from settings. A copy of the adapter shares it, a pickle goes without."""

    def __init__(self, reranker: Reranker | None = None, made_from: object = None) -> None:
        self.reranker = reranker
        self.made_from = made_from
        self.given = reranker if made_from is None else None

    def __eq__(self, other: object) -> bool:
        """Only a reranker that was given makes adapters differ; one that was loaded follows from the settings."""
        return isinstance(other, _Held) and self.given is other.given

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> _Held:
        return self

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return type(self), ()
