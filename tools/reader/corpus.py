"""Free running text and free PDF manuals: where the reader's words and page layouts come from."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 10  # one document in so many is kept for validation and head detection
_MAX_FILE_BYTES = 40_000_000
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]+>", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"</?(p|div|li|h[1-6]|tr|td|pre|br|dt|dd|table|ul|ol)\b[^>]*>", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")
_COMMON = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "in",
        "a",
        "is",
        "that",
        "for",
        "it",
        "as",
        "with",
        "be",
        "on",
        "are",
        "this",
        "by",
        "or",
        "not",
        "an",
        "from",
        "which",
        "can",
    ]
)


@dataclass(frozen=True, slots=True)
class TextDocument:
    """One file's paragraphs, in reading order."""

    name: str
    paragraphs: tuple[str, ...]


def is_held_out(name: str) -> bool:
    """Whether the document of this file name belongs to validation; depends on the name alone."""
    return int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) % HELD_OUT_SHARE == 0


def looks_english(paragraph: str) -> bool:
    """Whether a paragraph reads like English prose rather than code, tables or another language."""
    words = _WORD.findall(paragraph)
    if len(words) < 8 or sum(map(len, words)) < 0.65 * len(paragraph):
        return False
    return sum(word.lower() in _COMMON for word in words) >= 0.12 * len(words)


def _read_plain(path: Path) -> str:
    opener = gzip.open if path.suffix in {".gz", ".dz"} else open
    with opener(path, "rb") as file:
        return file.read(_MAX_FILE_BYTES).decode("utf-8", errors="ignore")


def _paragraphs(path: Path) -> list[str]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".pdf"):
        return _pdf_paragraphs(path)
    text = _read_plain(path)
    if name.endswith((".html", ".htm")):
        text = html.unescape(_TAG.sub(" ", _BLOCK.sub("\n\n", text)))
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]


def _pdf_paragraphs(path: Path) -> list[str]:
    import pymupdf

    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    with pymupdf.open(stream=data, filetype="pdf") as document:
        blocks = [block[4] for page in document for block in page.get_text("blocks") if block[6] == 0]
    return [" ".join(re.sub(r"-\n(?=[a-z])", "", block).split()) for block in blocks]


def find_text_files(roots: Sequence[Path]) -> list[Path]:
    """Every text, HTML, PDF and dictionary file under the folders, sorted."""
    endings = (".txt", ".txt.gz", ".html", ".htm", ".html.gz", ".pdf", ".pdf.gz", ".dict.dz")
    found = [path for root in roots for path in root.rglob("*") if path.is_file() and path.name.endswith(endings)]
    return sorted(path for path in set(found) if path.stat().st_size < _MAX_FILE_BYTES)


def find_pdfs(roots: Sequence[Path]) -> list[Path]:
    """Every PDF under the folders, sorted."""
    return [path for path in find_text_files(roots) if ".pdf" in path.suffixes[-2:]]


def read_documents(roots: Sequence[Path]) -> Iterator[TextDocument]:
    """English prose of every readable file under the folders; a paragraph met twice is given once."""
    seen: set[int] = set()
    for path in find_text_files(roots):
        try:
            paragraphs = _paragraphs(path)
        except Exception as error:  # noqa: BLE001  # a broken manual must not end a training run
            logger.warning("skipped %s: %s", path, error)
            continue
        kept = []
        for paragraph in paragraphs:
            key = hash(paragraph)
            if key not in seen and looks_english(paragraph):
                seen.add(key)
                kept.append(paragraph[:2000])
        if kept:
            yield TextDocument(path.name, tuple(kept))


def load_documents(roots: Sequence[Path], cache: Path) -> list[TextDocument]:
    """As `read_documents`, kept in the JSON-lines file `cache` after the first time."""
    if not cache.exists():
        documents = list(read_documents(roots))
        if not documents:
            raise FileNotFoundError(
                f"no English text under {[str(root) for root in roots]}; expected text, HTML or PDF documentation: "
                "install the packages that tools/reader/README.md names, or pass other --documents"
            )
        with cache.open("w") as file:
            for document in documents:
                file.write(json.dumps([document.name, document.paragraphs]) + "\n")
    with cache.open() as file:
        rows = [json.loads(line) for line in file]
    return [TextDocument(name, tuple(paragraphs)) for name, paragraphs in rows]
