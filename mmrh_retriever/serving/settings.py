"""Settings of the server: the model, where it listens, and how much a request may ask for."""

from __future__ import annotations

import ipaddress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.adapters.settings import DocumentSettings
from mmrh_retriever.errors import SettingsError
from mmrh_retriever.settings import TextOrNone, settings_error


class ServerSettings(BaseModel):
    """Everything that decides how a server behaves. Nothing unknown is taken.

    ``documents`` says which model ranks, how pages are kept for later questions (``page_memory``, ``store``), and how
    far documents are trusted (``allow_urls``, ``max_image_pixels``).

    Raises:
        SettingsError: a setting that is unknown, of the wrong type or out of its range; a host that others reach,
            without keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: DocumentSettings = Field(
        default_factory=DocumentSettings, description="The model, its pages, and how far documents are trusted."
    )
    host: str = Field("127.0.0.1", description="The address to listen at; without keys a loopback address.")
    port: int = Field(8000, ge=0, le=65535, description="The port; 0 takes a free one.")
    api_key_file: TextOrNone = Field(None, description="A file with one API key a line; # begins a comment.")
    requests_per_minute: int = Field(600, ge=1, description="Requests that each key may make in a minute.")

    max_body: int = Field(64 * 1024**2, gt=0, description="Bytes of a request's body at most.")
    max_documents: int = Field(1000, gt=0, description="Documents of a request at most.")
    max_pages: int = Field(500, gt=0, description="Pages of a file at most, and of all files of a request.")
    max_question: int = Field(4000, gt=0, description="Characters of a question at most.")
    max_questions: int = Field(64, gt=0, description="Questions of a request at most.")
    max_queue: int = Field(64, gt=0, description="Requests that wait or run at a time; over it the answer is 429.")
    timeout: float = Field(120.0, gt=0, description="Seconds for a request, its body included.")
    pdf_seconds: float = Field(10.0, gt=0, description="Seconds of its process for opening, reading or drawing a PDF.")

    join_ms: float = Field(4.0, ge=0, description="Milliseconds that a question waits for others on the same pages.")
    join_questions: int = Field(32, gt=0, description="Questions on the same pages that run in one pass at most.")

    trace_content: bool = Field(False, description="Put questions and texts into spans (OpenTelemetry), too.")

    files: TextOrNone = Field(
        None, description="Folder (or address, such as s3://bucket/folder) of uploaded files; a temporary one if None."
    )
    files_disk: int = Field(4 * 1024**3, gt=0, description="Bytes of files kept; those used longest ago go first.")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise settings_error(error) from error
        if self.api_key_file is None and not is_loopback(self.host):
            raise SettingsError(
                f"host={self.host!r} can be reached from other machines, and there are no API keys. Give "
                "api_key_file=, or listen at 127.0.0.1."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; of names only ``localhost`` is known to be so."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
