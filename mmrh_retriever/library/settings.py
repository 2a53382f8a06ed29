"""What decides how a library reads its files, and which of their pages the model sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.encoding.page_store import DEFAULT_STORE_DISK
from mmrh_retriever.pdf.backends import PdfBackendName
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.encoded_pages import DEFAULT_MEMORY_BUDGET
from mmrh_retriever.settings import FirstStage, settings_error

DEFAULT_CANDIDATES = 20
"""Pages that a first stage picks for a question."""
DEFAULT_TEXTLESS = 32
"""Pages without text that are looked at for every question beside the candidates."""
DEFAULT_LIBRARY_MEMORY = 256 * 1024**2
"""Bytes of encoded pages that a library with a first stage holds in memory."""


class LibrarySettings(BaseModel):
    """Settings of a :class:`~mmrh_retriever.Library`, but for its files, folder and models. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    first_stage: FirstStage = Field("all", description="How the pages are picked that the model sees.")
    candidates: int = Field(DEFAULT_CANDIDATES, ge=1, description="How many pages the first stage picks.")
    textless: int = Field(
        DEFAULT_TEXTLESS,
        ge=0,
        description="No first stage finds pages without text, so all of them are looked at for every question, beside "
        "the candidates. Where they are more than this, questions are refused.",
    )
    page_pixels: int = Field(DEFAULT_MAX_PIXELS, ge=1, description="Pixels that a page of a PDF is drawn with.")
    pdf_backend: PdfBackendName = Field(
        "auto", description="What reads and draws PDFs: PyMuPDF where it is installed, or the one named."
    )
    layout: bool = Field(False, description="Find the regions of pages, too; a grid where a page's layout is unknown.")
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="What to do with a file or page that can't be read: raise, or go on without it."
    )
    memory: int | None = Field(
        None,
        ge=0,
        description="Bytes of encoded pages in memory; by default 256 MiB, or 4 GiB where all pages are looked at.",
    )
    disk: int = Field(DEFAULT_STORE_DISK, ge=0, description="Bytes of encoded pages that the folder may hold.")

    @property
    def memory_budget(self) -> int:
        """Bytes of encoded pages held in memory."""
        if self.memory is not None:
            return self.memory
        return DEFAULT_MEMORY_BUDGET if self.first_stage == "all" else DEFAULT_LIBRARY_MEMORY

    @classmethod
    def of(cls, settings: LibrarySettings | None, changes: Mapping[str, Any]) -> LibrarySettings:
        """Settings with some of them changed; the defaults if there are none.

        Raises:
            TypeError: an unknown setting.
            SettingsError: one that is of the wrong type or out of its range.
        """
        unknown = sorted(changes.keys() - cls.model_fields.keys())
        if unknown:
            raise TypeError(f"A library has no setting {unknown[0]!r}. Settings are {', '.join(cls.model_fields)}.")
        try:
            return cls(**{**dict(settings or {}), **changes})
        except ValidationError as error:
            raise settings_error(error) from error
