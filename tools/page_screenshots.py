"""Draws the pictures of the server's page that the documentation shows.

``python tools/page_screenshots.py [FOLDER]`` needs the extra ``serve``, playwright, and a Chromium on PATH or in
$CHROMIUM.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from urllib.parse import urlencode

import httpx
from PIL import Image
from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.serving.browser import browser, serving, watched  # noqa: E402 - found from the repository's root

SAMPLE = ROOT / "examples" / "sample_report.pdf"
QUESTION = "What was the net debt in 2023?"
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PICTURES = {
    "page_light.png": {"color_scheme": "light", "viewport": WIDE},
    "page_dark.png": {"color_scheme": "dark", "viewport": WIDE},
    "page_narrow.png": {"color_scheme": "light", "viewport": NARROW, "device_scale_factor": 2},
}


def main() -> None:
    """Ask the sample report, and draw the answer."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with serving(timeout=600) as address, browser() as started:
        sent = httpx.post(f"{address}v1/files", files={"file": (SAMPLE.name, SAMPLE.read_bytes())}, timeout=600)
        where = "#" + urlencode({"question": QUESTION, "files": sent.json()["id"]})
        for name, options in PICTURES.items():
            (folder / name).write_bytes(optimised(drawn(started, address, where, options)))


def drawn(started: Browser, address: str, where: str, options: dict[str, object]) -> bytes:
    """The page as a PNG, once all its pictures are there."""
    with watched(started, address, where, **options) as page:
        page.set_default_timeout(600_000)
        page.locator("#sheet:not([aria-busy]) #picture[src]").wait_for()
        for image in page.locator("#ranks img").all()[:6]:
            if options["viewport"] == WIDE:
                image.and_(page.locator("[src]")).wait_for()
        if options["viewport"] == NARROW:
            page.locator("#ask-form").evaluate("form => form.scrollIntoView()")
        page.wait_for_timeout(500)
        return page.screenshot()


def optimised(content: bytes) -> bytes:
    """The same picture in fewer bytes."""
    memory = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(memory, "PNG", optimize=True)
    return memory.getvalue()


if __name__ == "__main__":
    main()
