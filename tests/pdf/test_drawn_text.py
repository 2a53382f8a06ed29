"""Text drawn as an image: all of it, at a size that can be read, no higher than it needs."""

from __future__ import annotations

import numpy as np
import pymupdf
import pytest

from mmrh_retriever.errors import PageError
from mmrh_retriever.pdf import backends
from mmrh_retriever.pdf.drawn_text import MOST_LETTERS, drawn_text

pytestmark = pytest.mark.usefixtures("backend")
WORDS = "The annual report shows emissions, staff numbers and water use. "


def test_the_image_is_as_wide_as_a_page_and_as_high_as_its_text() -> None:
    one, ten = drawn_text(WORDS), drawn_text(WORDS * 40)
    assert one is not None
    assert ten is not None
    assert one.width == ten.width == round(612 / 72 * 147)
    assert one.height < 250 < ten.height
    ink = np.asarray(ten.convert("L")) < 128
    rows = np.flatnonzero(ink.any(axis=1))
    margin = 36 / 72 * 147
    assert 0 <= rows[0] - margin < 30
    assert 0 <= ten.height - rows[-1] - margin < 40


def test_lines_are_filled_and_markup_is_text() -> None:
    one_line = drawn_text("Revenue <b>rose</b> & fell. Second line.")
    broken = drawn_text("Revenue <b>rose</b> & fell.\n  Second line.\n\n")
    apart = drawn_text("Revenue <b>rose</b> & fell.\n\nSecond line.")
    assert one_line is not None
    assert broken is not None
    assert apart is not None
    assert one_line.tobytes() == broken.tobytes()
    assert apart.height > one_line.height
    plain = drawn_text("Revenue rose & fell. Second line.")
    assert plain is not None
    assert plain.tobytes() != one_line.tobytes()  # the signs of the markup are there to be seen


@pytest.mark.parametrize(
    "text", ["Wie hoch ist der Umsatz?", "収益はどう変化しましたか", "كيف تغيرت", "a\udcffb \x00 c"]
)
def test_any_script_leaves_ink(text: str, backend: str) -> None:
    if backend == "pdfium" and not text.isascii() and text[0] not in "Wa":
        with pytest.raises(PageError, match=r"lack \d+ of its \d+ letters.*pip install pymupdf"):
            drawn_text(text)
        return
    image = drawn_text(text)
    assert image is not None
    assert (np.asarray(image.convert("L")) < 128).sum() > 100


def test_text_that_would_be_too_small_to_read_is_not_drawn() -> None:
    assert drawn_text(WORDS * 120) is not None
    assert drawn_text(WORDS * 400) is None


def test_text_that_never_fits_is_refused_before_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    narrowest = " ".join(["l" * 99] * (MOST_LETTERS // 100))
    assert len(narrowest) < MOST_LETTERS
    assert drawn_text(narrowest) is None  # drawn, and too long

    def never(_: object) -> str:
        raise AssertionError

    monkeypatch.setattr("mmrh_retriever.pdf.drawn_text.choose_backend", never)
    assert drawn_text("e" + "\u0301" * MOST_LETTERS) is None


def test_mupdf_says_nothing_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    drawn_text(WORDS)
    assert pymupdf.TOOLS.mupdf_warnings() == ""
    assert capfd.readouterr() == ("", "")


def test_a_word_longer_than_a_line_is_cut(backend: str) -> None:
    if backend == "pymupdf":
        pytest.skip("MuPDF does not cut words")
    image = drawn_text("x" * 300)
    assert image is not None
    assert (np.asarray(image.convert("L"))[:, -60:] > 128).all()


def test_both_libraries_draw_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name in ("pymupdf", "pdfium"):
        monkeypatch.setattr(backends, "_preferred", lambda name=name: name)
        drawn.append(drawn_text(f"{WORDS * 12}\n\nWie hoch war der Umsatz in Großstädten, in €?"))
    one, other = drawn
    assert one is not None
    assert other is not None
    assert abs(one.height - other.height) < 10
    ink = [(np.asarray(image.convert("L")) < 128).mean(axis=1) for image in (one, other)]
    same = min(one.height, other.height)
    assert np.corrcoef(ink[0][:same], ink[1][:same])[0, 1] > 0.8  # lines stand where they stood
