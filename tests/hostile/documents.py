"""Documents of other programs: metadata of any kind leads to a page that can be read, or is left out with an error."""

from __future__ import annotations

import io
import os
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pymupdf
from PIL import Image

from mmrh_retriever.adapters import AdapterSettings, PageClues, PageSource, clues_from_metadata
from tests.hostile import damage
from tests.hostile.outcomes import expect
from tests.ranking_stub import StubReranker, stub

KEYS = ["image", "image_base64", "image_path", "image_url", "file_path", "source", "page", "page_label", "total_pages",
        "file_name", "page_number", "bbox", "loc"]  # fmt: skip
URLS = ["http://127.0.0.1:1/a.png", "http://[::1]:1/", "http://192.88.99.1/", "file:///etc/passwd", "http://\x00/",
        "http://" + "a" * 5000, "http://0x7f.1/", "https://169.254.169.254/latest", "data:image/png;base64,AAAA",
        "http://user@localhost:99999/", "http://\ud800/", "HTTP://LOCALHOST/"]  # fmt: skip


@lru_cache(maxsize=1)
def _reranker() -> StubReranker:
    return stub()


def metadata(rng: random.Random, folder: Path) -> None:
    """Spoiled documents are left out; the good ones among them are ranked by their known scores all the same."""
    root = folder / "root"
    root.mkdir()
    good = {f"score=0.{number}": number / 10 for number in rng.sample(range(1, 10), 3)}
    items: list[tuple[str, dict[str, Any]]] = [(text, {}) for text in good]
    files = _files(rng, root)
    (folder / "outside.png").write_bytes(_png())
    for _ in range(rng.randrange(1, 4)):
        keys = rng.sample(KEYS, rng.randrange(1, 5))
        items.insert(
            rng.randrange(len(items) + 1), ("score=0.05", {key: _value(rng, key, files, folder) for key in keys})
        )
    source = {"allow_urls": rng.random() < 0.3, "allowed_root": root, "url_timeout": 0.5}
    settings = AdapterSettings(reranker=_reranker(), on_error=rng.choice(["drop", "last"]), **source)

    def clues(item: tuple[str, dict[str, Any]]) -> PageClues:
        return clues_from_metadata(item[1], text=item[0])

    ranked = settings.rank_items("How?", items, clues)
    positions = [item.position for item in ranked]
    expect(len(set(positions)) == len(positions), f"one document twice: {positions}")
    scores = {items[item.position][0]: item.score for item in ranked if items[item.position][0] in good}
    expect(scores == good, f"good documents scored {scores}, expected {good}")


def rooted(rng: random.Random, folder: Path) -> None:
    """No path, however written, leads out of the allowed folder."""
    root = folder / "root"
    (root / "in").mkdir(parents=True)
    (folder / "secret.png").write_bytes(_png())
    (root / "in" / "a.png").write_bytes(_png())
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "up").symlink_to(folder)
    parts = [
        "..",
        ".",
        "in",
        "up",
        "link.png",
        "secret.png",
        "a.png",
        "",
        "root",
        "~",
        str(folder),
        "\x00",
        "..\\",
        "%2e%2e",
    ]
    path = rng.choice(["in/a.png", "/".join(rng.choices(parts, k=rng.randrange(1, 5))), "up/root/in/a.png"])
    given = path if rng.random() < 0.3 else str(root) + "/" + path
    found = PageSource(allowed_root=root).path(given)
    expect(os.path.realpath(found).startswith(os.path.realpath(root) + os.sep), f"{given} led to {found}")


def _files(rng: random.Random, root: Path) -> list[Path]:
    (root / "a.png").write_bytes(_png())
    (root / "cut.png").write_bytes(_png()[:60])
    made = pymupdf.open()
    made.new_page(width=100, height=100).insert_text((10, 50), "words")
    (root / "a.pdf").write_bytes(made.tobytes())
    (root / "cut.pdf").write_bytes(damage.spoiled(rng, made.tobytes()))
    (root / "link.png").symlink_to(root.parent / "outside.png")
    os.mkfifo(root / "pipe.png")
    return sorted(root.iterdir())


def _value(rng: random.Random, key: str, files: list[Path], folder: Path) -> Any:
    choice = rng.random()
    if choice < 0.3:
        return damage.value(rng)
    if key == "image_url" or choice < 0.4:
        return rng.choice(URLS)
    if key.startswith("page"):
        return rng.choice(
            [0, 1, -1, 10**30, "9" * 5000, "iv", 0.5, True, float("nan"), float("inf"), " 1 ", "\u0661", None]
        )
    return rng.choice([*files, *map(str, files), str(folder / "outside.png"), "../outside.png", folder])


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), 13).save(stream, "PNG")  # scores 0.05 as the stub scores pictures
    return stream.getvalue()
