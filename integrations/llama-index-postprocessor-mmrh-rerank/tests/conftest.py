from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from tests.ranking_stub import StubReranker, stub


@pytest.fixture
def reranker() -> StubReranker:
    return stub()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number in range(3):
        page = document.new_page(width=200, height=300)
        page.insert_text((20, 40), f"sheet {number}")
        page.draw_rect((0, 100, 200, 100 + 60 * number), fill=(0, 0, 0))
    document.set_page_labels([{"startpage": 0, "prefix": "A-", "style": "D"}])
    document.save(tmp_path / "report.pdf")
    return tmp_path / "report.pdf"


class Seen(BaseEventHandler):
    """Keeps the events that reach it."""

    events: list[Any]

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    def handle(self, event: Any, **_: Any) -> None:
        self.events.append(event)


@pytest.fixture
def seen() -> Iterator[list[Any]]:
    handler = Seen(events=[])
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler.events
    root.event_handlers.remove(handler)
