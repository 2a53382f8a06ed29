"""Ranking what can be read of a list of pages: those that can't be are found and set apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mmrh_retriever.errors import ContextOverflowError, MMRHError, PageError
from mmrh_retriever.ranking.inputs import page_numbers
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.types import Page

Result = TypeVar("Result")


def without_unreadable(
    reranker: Reranker, pages: Sequence[Page], run: Callable[[list[Page]], Result]
) -> tuple[Result | None, dict[int, MMRHError]]:
    """What ``run`` gives for pages (``None`` if there are none), and errors by the ``id`` of their page.

    It is run again without pages that can't be read, or that are too long for a window.

    Raises:
        PageError, ContextOverflowError: as ``run`` raised it, where it is about none of the pages.
    """
    if not pages:
        return None, {}
    try:
        return run(list(pages)), {}
    except (PageError, ContextOverflowError) as error:
        found = _culprits(reranker, pages, error)
        if not found:
            raise
    result, others = without_unreadable(reranker, [page for page in pages if id(page) not in found], run)
    return result, found | others


def _culprits(
    reranker: Reranker, pages: Sequence[Page], error: PageError | ContextOverflowError
) -> dict[int, MMRHError]:
    """The pages that can't be put into a prompt, or that are too long for a window."""
    numbered = zip(pages, page_numbers(pages), strict=True)
    lengths = {id(page): _length_or_error(reranker, page, number) for page, number in numbered}
    found: dict[int, MMRHError] = {key: value for key, value in lengths.items() if isinstance(value, PageError)}
    if isinstance(error, PageError) and not found:  # it can be read again
        found = {id(page): error for page in pages if _is_about(error, page)}
    if isinstance(error, ContextOverflowError) and error.tokens in lengths.values():  # else it is the question
        allowed = error.allowed
        found |= {key: error for key, value in lengths.items() if isinstance(value, int) and value > allowed}
    return found


def _length_or_error(reranker: Reranker, page: Page, number: int) -> int | PageError:
    try:
        return len(reranker.prompter.page_segment(page, number))
    except PageError as error:
        return error


def _is_about(error: PageError, page: Page) -> bool:
    source = error.source
    return source is not None and error.page == page.index and source in (page.doc_id, page.metadata.get("path"))
