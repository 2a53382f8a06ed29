"""Documents that anybody may have written: a bad one costs itself, never the call."""

from __future__ import annotations

import http.server
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from mmrh_retriever import Page, PageError, ScoredPage, ScoredRegion, SettingsError
from mmrh_retriever.adapters import AdapterSettings, RankedItem, clues_from_metadata, fetching
from tests.ranking_stub import StubReranker, png, real, stub, tiny

QUESTION = "How did revenue change?"
DIGITS = 10**5000

BAD: dict[str, dict[str, Any]] = {
    "path that is a number": {"image_path": 5},
    "path that is bytes": {"image_path": b"page.png"},
    "path with a lone surrogate": {"image_path": "page\ud800.png"},
    "path with NUL": {"image_path": "page\0.png"},
    "endless path": {"image_path": "x" * 100_000},
    "page of 5,000 digits": {"file_path": "any.pdf", "page": DIGITS},
    "page of 5,000 digits as text": {"file_path": "any.pdf", "page": "1" * 5000},
    "page inf": {"file_path": "any.pdf", "page": float("inf")},
    "source of 5,000 digits": {"file_path": "any.pdf", "source": DIGITS},
    "label of 5,000 digits": {"file_path": "any.pdf", "page_label": DIGITS},
    "address of 5,000 digits": {"image_url": DIGITS},
    "address with a lone surrogate": {"image_url": "http://example.org/\ud800"},
    "address with a wrong name": {"image_url": "http://xn--/"},
    "image that is a number": {"image": 5},
    "base64 with a lone surrogate": {"image_base64": "iVBORw0KGgo\ud800"},
    "damaged picture": {"image": png()[:40]},
    "damaged AVIF": {"image": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + b"\0" * 40},
}


def rank(
    items: list[dict[str, Any]], reranker: Any, question: str = QUESTION, text: str | None = None, **settings: Any
) -> list[RankedItem]:
    adapter = AdapterSettings(reranker=reranker, allow_urls=True, url_timeout=1, **settings)

    def clues_of(item: dict[str, Any]) -> Any:
        return clues_from_metadata(item, text=item.get("text", text), doc_id=item.get("id"))

    return adapter.rank_items(question, items, clues_of)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_costs_itself_alone(name: str) -> None:
    items = [{"text": "score=0.2"}, BAD[name], {"text": "score=0.9"}]
    assert [(item.position, item.score) for item in rank(items, stub(), on_error="drop")] == [(2, 0.9), (0, 0.2)]
    last = rank(items, stub(), on_error="last")[-1]
    assert last.position == 1
    assert isinstance(last.error, PageError)
    assert len(str(last.error)) < 1000
    with pytest.raises(PageError):
        rank(items, stub())


def test_lone_surrogates_in_texts_questions_and_names_are_ranked() -> None:
    items = [{"text": "Revenue \ud800grew.", "id": "a\udcff"}, {"text": "It rained."}, {"image": png(), "id": "\ud800"}]
    found = rank(items, real(), question="How\udc80?")
    assert sorted(item.position for item in found) == [0, 1, 2]


@pytest.fixture
def redirecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A site that redirects to whatever stands behind its question mark, byte by byte in hex."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            target = bytes.fromhex(self.path.partition("?")[2])
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    monkeypatch.setattr(fetching, "checked_address", lambda *_: "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://site.example:{server.server_port}/"
        server.shutdown()


def test_a_broken_redirect_is_an_error_about_its_address(redirecting: str) -> None:
    targets = [b"//xn--/", b"http://[", b"http://a:b/", b"\xff\xfe", b"http://\xc3\xa9\xc3", b"//" + b"a" * 9000, b"%"]
    for target in targets:
        with pytest.raises(PageError):
            fetching.fetch(f"{redirecting}?{target.hex()}", max_bytes=100, timeout=5)
    items = [{"image_url": f"{redirecting}?{target.hex()}"} for target in targets]
    assert [item.position for item in rank([*items, {"text": "score=1"}], stub(), on_error="drop")] == [len(targets)]


class Removing(StubReranker):
    """Ranks pages after a file was taken away, and puts it back if ``back`` is set; once."""

    path: Path
    when = "rank"
    back = False

    def taken_away(self, pages: list[Page]) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        self.path.unlink(missing_ok=True)
        try:
            for page in pages:
                if page.image is not None:
                    page.pixels()
        finally:
            if self.back and data:
                self.path.write_bytes(data)

    def rank(self, question: str, pages: Any, **options: Any) -> list[ScoredPage]:
        if self.when == "rank" and self.path.exists():
            self.taken_away(list(pages))
        found = super().rank(question, pages, **options)
        if self.when == "after":
            self.path.unlink()
        return found

    def rank_regions(self, question: str, pages: Any, **options: Any) -> list[ScoredRegion]:
        if self.when == "regions":
            self.taken_away(list(pages))
        return super().rank_regions(question, pages, **options)


@pytest.mark.parametrize("kind", ["png", "pdf"])
@pytest.mark.parametrize(("when", "back"), [("rank", False), ("rank", True), ("after", False), ("regions", False)])
def test_a_file_that_vanishes_between_two_reads(kind: str, when: str, back: bool, tmp_path: Path) -> None:
    path = tmp_path / f"page.{kind}"
    if kind == "png":
        path.write_bytes(png())
    else:
        document = pymupdf.open()
        document.new_page(width=200, height=300).insert_text((20, 40), "a sheet")
        document.save(path)
    reranker = Removing(tiny().model, (tiny().tokenizer, tiny().image_processor), heads="all")
    reranker.path, reranker.when, reranker.back = path, when, back
    items = [{"text": "score=0.5"}, {"image_path": str(path), "page": 0}, {"image": png(3)}]
    found = rank(items, reranker, on_error="drop", with_regions=True)
    gone = set() if when in ("after", "regions") else {1}
    assert {item.position for item in found} == {0, 1, 2} - gone
    assert {item.position for item in found if item.regions} == {2}


def test_the_callers_list_may_change_meanwhile() -> None:
    items = [{"text": "score=0.2"}, {"image": png()}, {"text": "score=0.9"}]

    class Emptying(StubReranker):
        def rank(self, question: str, pages: Any, **options: Any) -> list[ScoredPage]:
            items.clear()
            return super().rank(question, pages, **options)

    reranker = Emptying(tiny().model, (tiny().tokenizer, tiny().image_processor), heads="all")
    assert {item.position for item in rank(items, reranker, with_regions=True)} == {0, 1, 2}


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(threshold: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        AdapterSettings(score_threshold=threshold)
    with pytest.raises(SettingsError, match="finite number"):
        AdapterSettings(reranker=stub()).rank_items(QUESTION, [], lambda clues: clues, score_threshold=threshold)


def test_any_metadata_is_clues_or_a_page_error() -> None:
    """Values of all kinds under all keys that count."""
    rng = random.Random(17)
    keys = ["image", "image_base64", "image_path", "image_url", "file_path", "source", "page", "page_label", "text"]
    values: list[Any] = [
        None, True, 0, -1, 5, DIGITS, -DIGITS, 1.5, float("nan"), float("-inf"), 1e308, "", " ", "\0", "\ud800", "7",
        "a.png", "a.pdf", "x" * 5000, "http://[", "//xn--/", "file:///etc/passwd", "data:image/png;base64,AAAA",
        "data:,", b"", b"%PDF-1.4", b"\xff\xd8\xff", png()[:60], [], [[]], {}, {"page": 1}, (1, 2), object(),
        Path("a.png"),
    ]  # fmt: skip
    for _ in range(400):
        item = {key: rng.choice(values) for key in rng.sample(keys, rng.randint(1, 5))}
        item["text"] = "score=0.1"
        adapter = AdapterSettings(reranker=stub(), on_error="drop")
        clues = lambda item: clues_from_metadata(item, text=item["text"])  # noqa: E731
        assert 1 <= len(adapter.rank_items(QUESTION, [item, {"text": "score=0.5"}], clues)) <= 2
