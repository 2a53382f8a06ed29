"""Printed page labels and titles: what PDF's rules say, and rules that nobody wrote in good faith."""

from __future__ import annotations

import tracemalloc

import pymupdf
import pytest

from mmrh_retriever.pdf import labels
from mmrh_retriever.pdf.reader import read_pdf
from tests.pdf.made_pdfs import edited, make_pdf

pytestmark = pytest.mark.usefixtures("backend")
_OF_PDFIUM = {"<</S/D/St (x)>>": [None, None], "7": ["1", "2"]}
"""Where a rule is none, PDFium gives the page's number; it is not asked where numbers are odd."""


def labelled(pages: int, tree: str, *others: str) -> bytes:
    """A PDF with a tree of labels; ``others`` are objects that it may name as ``{0} 0 R`` and so on."""

    def change(document: pymupdf.Document) -> None:
        numbers = [document.get_new_xref() for _ in others]
        for number, text in zip(numbers, others, strict=True):
            document.update_object(number, text.format(*numbers))
        document.xref_set_key(document.pdf_catalog(), "PageLabels", tree.format(*numbers))

    return edited(make_pdf([""] * pages, (20, 20)), change)


def labels_of(data: bytes) -> list[str | None]:
    return [page.label for page in read_pdf(data)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("<</S/D>>", ["1", "2"]),
        ("<</S/D/St 9/P(A-)>>", ["A-9", "A-10"]),
        ("<</S/r/St 3>>", ["iii", "iv"]),
        ("<</S/R/St 1949>>", ["MCMXLIX", "MCML"]),
        ("<</S/A/St 26>>", ["Z", "AA"]),
        ("<</S/a/St 28>>", ["bb", "cc"]),
        ("<</P(Cover)>>", ["Cover", "Cover"]),
        ("<</P<FEFF00C4002D>/S/D>>", ["Ä-1", "Ä-2"]),
        ("<</P(a\\)b)/S/D>>", ["a)b1", "a)b2"]),
        ("<</S/A/St -5>>", [None, None]),
        ("<</S/D/St (x)>>", ["1", "2"]),
        ("7", [None, None]),
    ],
)
def test_rules(rule: str, expected: list[str | None], backend: str) -> None:
    expected = _OF_PDFIUM.get(rule, expected) if backend == "pdfium" else expected
    assert labels_of(labelled(2, f"<</Nums[0 {rule}]>>")) == expected


def test_a_tree_of_rules() -> None:
    leaves = (
        "<</Nums[2 <</S/D>>]/Limits[2 2]>>",
        "<</Kids[{2} 0 R]/Limits[0 1]>>",
        "<</Nums[0 <</S/r>> 1 <</S/A>>]/Limits[0 1]>>",
    )
    assert labels_of(labelled(4, "<</Kids[{1} 0 R {0} 0 R]>>", *leaves)) == ["i", "A", "1", "2"]


def test_a_tree_that_leads_back_to_itself() -> None:
    assert labels_of(labelled(2, "{0} 0 R", "<</Kids[{0} 0 R {0} 0 R {1} 0 R]>>", "<</Nums[0 <</S/D>>]>>")) == [
        "1",
        "2",
    ]


def test_pages_before_the_first_rule_have_no_label(backend: str) -> None:
    first = "1" if backend == "pdfium" else None  # which then gives the page's number
    assert labels_of(labelled(2, "<</Nums[1 <</S/D>>]>>")) == [first, "1"]


@pytest.mark.parametrize("rule", ["<</S/r/St 400000000>>", "<</S/A/St 2147483647>>", "<</S/D/P {0} 0 R>>"])
def test_memory_does_not_grow_with_a_label(rule: str) -> None:
    data = labelled(300, f"<</Nums[0 {rule}]>>", "(" + "x" * 100_000 + ")")
    tracemalloc.start()
    try:
        assert set(labels_of(data)) == {None}
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_rules_are_read_once_for_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled(30, "<</Nums[" + " ".join(f"{i} <</S/D/St {i + 5}>>" for i in range(30)) + "]>>")
    read: list[object] = []
    original = labels._rule
    monkeypatch.setattr(labels, "_rule", lambda rule: read.append(rule) or original(rule))
    assert [page.label for page in read_pdf(data, backend="pymupdf")] == [str(i + 5) for i in range(30)]
    assert len(read) == 30


@pytest.mark.parametrize("title", ["<FEFF0041D800>", "<EFBBBF41FF>", "<EFBBBF41EDA080>"])
def test_titles_and_labels_hold_no_lone_surrogates(title: str) -> None:
    def change(document: pymupdf.Document) -> None:
        document.set_metadata({"title": "x"})
        document.xref_set_key(int(document.xref_get_key(-1, "Info")[1].split()[0]), "Title", title)
        document.xref_set_key(document.pdf_catalog(), "PageLabels", f"<</Nums[0 <</P{title}>>]>>")

    (page,) = read_pdf(edited(make_pdf([""]), change))
    for text in (page.metadata["title"], page.label):
        assert str(text).encode() in ("A\ufffd".encode(), b"A")
