"""Which page of which file a document stands for, and the page beside it, out of the same PDF."""

from __future__ import annotations

from dataclasses import replace

from mmrh_retriever.adapters.clues import PageClues
from mmrh_retriever.adapters.page_sources import PageSource
from mmrh_retriever.errors import PageError
from mmrh_retriever.ranking.neighbours import PageId
from mmrh_retriever.types import Page


def page_id(source: PageSource, clues: PageClues, page: Page) -> PageId | None:
    """The file and the page index of a document; ``None`` if it does not say both.

    ``page`` is what the clues led to; of a page that was drawn from a PDF it knows the index better than they do.
    """
    if _of_pdf(page):
        origin = page.metadata.get("path", page.metadata.get("url"))
        return None if origin is None else (str(origin), page.index)
    if clues.file is None or clues.index is None:
        return None
    try:
        return str(source.path(clues.file)), clues.index
    except PageError:  # a web address, or a file that may not be read: its name is enough to compare documents
        return str(clues.file), clues.index


def page_beside(source: PageSource, clues: PageClues, page: Page, index: int) -> Page | None:
    """The page with an index, out of the PDF that a document's page is of.

    ``None`` if there is no such page, or no PDF that can be opened within the source's limits.
    """
    wanted = replace(clues, index=index, label=None, text=None)
    if not _of_pdf(page):  # the document's own picture
        wanted = replace(wanted, image=None, image_path=None, image_url=None)
    try:
        found = source.page(wanted)
    except PageError:
        return None
    return found if _of_pdf(found) else None


def _of_pdf(page: Page) -> bool:
    """Whether a page was drawn from a PDF: the reader says how many pages this has."""
    return "total_pages" in page.metadata
