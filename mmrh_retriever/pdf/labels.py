"""Printed page labels: a document's rules, read once and within limits, and the label that they give a page."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from mmrh_retriever.pdf.light_import import pymupdf
from mmrh_retriever.pdf.pages import LONGEST_LABEL
from mmrh_retriever.pdf.text import without_surrogates

_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
          (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class _Rule:
    style: str
    first: int
    prefix: str


@dataclass(frozen=True, slots=True)
class PageLabels:
    """The rules of a document: from each of ``starts`` (0-based page indices, ascending) on, the rule beside it."""

    starts: tuple[int, ...] = ()
    rules: tuple[_Rule | None, ...] = ()

    def label(self, index: int) -> str | None:
        """The label of a page, by PDF's rules (ISO 32000-2, 12.4.2), or ``None`` if it has none."""
        found = bisect.bisect_right(self.starts, index) - 1
        rule = self.rules[found] if found >= 0 else None
        if rule is None:
            return None
        number = _number(rule.style, rule.first + index - self.starts[found])
        text = None if number is None else rule.prefix + number
        return text if text and len(text) <= LONGEST_LABEL else None


def read_labels(document: pymupdf.Document) -> PageLabels:
    """The labels of an open document. MuPDF is not thread-safe: the caller holds its lock."""
    mupdf = pymupdf.mupdf
    pdf = document.this if isinstance(document.this, mupdf.PdfDocument) else mupdf.PdfDocument(document.this)
    rules: dict[int, _Rule | None] = {}
    seen: set[int] = set()
    waiting = [mupdf.pdf_dict_getp(mupdf.pdf_trailer(pdf), "Root/PageLabels")]
    while waiting:  # a tree of numbers, which in a damaged file may lead back to itself
        node = waiting.pop()
        number = mupdf.pdf_to_num(node)
        if number and number in seen:
            continue
        seen.add(number)
        kids, numbers = mupdf.pdf_dict_gets(node, "Kids"), mupdf.pdf_dict_gets(node, "Nums")
        waiting += [mupdf.pdf_array_get(kids, i) for i in range(mupdf.pdf_array_len(kids))]
        for i in range(0, mupdf.pdf_array_len(numbers) - 1, 2):
            rules[mupdf.pdf_array_get_int(numbers, i)] = _rule(mupdf.pdf_array_get(numbers, i + 1))
    starts = sorted(rules)
    return PageLabels(tuple(starts), tuple(rules[start] for start in starts))


def _rule(found: pymupdf.mupdf.PdfObj) -> _Rule | None:
    mupdf = pymupdf.mupdf
    prefix = mupdf.pdf_dict_gets(found, "P")
    if mupdf.pdf_to_str_len(prefix) > 4 * LONGEST_LABEL:  # bytes
        return None
    first = mupdf.pdf_to_int_default(mupdf.pdf_dict_gets(found, "St"), 1)
    text = without_surrogates(mupdf.pdf_to_text_string(prefix))
    return _Rule(mupdf.pdf_to_name(mupdf.pdf_dict_gets(found, "S")), first, text)


def _number(style: str, number: int) -> str | None:
    """A page's number as its rule writes it: nothing without a style, ``None`` if it is too long to be printed."""
    if style == "D":
        return str(number)
    if style not in ("R", "r", "A", "a") or number < 1:
        return ""
    longest = LONGEST_LABEL * (1000 if style in "Rr" else len(_LETTERS))
    if number > longest:
        return None
    text = _roman(number) if style in "Rr" else _LETTERS[(number - 1) % 26] * ((number - 1) // 26 + 1)
    return text.upper() if style.isupper() else text


def _roman(number: int) -> str:
    text = ""
    for value, letters in _ROMAN:
        text += letters * (number // value)
        number %= value
    return text
