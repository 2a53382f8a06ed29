"""What callers give as pages and questions, checked; and the asynchronous twins of methods that take them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from tqdm import tqdm

from mmrh_retriever.errors import PageError, QuestionError
from mmrh_retriever.types import Candidate, Page, PageLike

P = ParamSpec("P")
R = TypeVar("R")


def as_page(item: Any, index: int) -> Page:
    """A page from whatever users have: a Page, a PIL image, the bytes or the path of an image."""
    if isinstance(item, Page):
        return item
    doc_id = Path(item).name if isinstance(item, (str, Path)) else None
    return Page(image=item, index=index if doc_id is None else 0, doc_id=doc_id)


def as_pages(pages: Iterable[PageLike]) -> list[Page]:
    """The caller's pages as :class:`Page` objects."""
    if isinstance(pages, (str, bytes, Path, Page)) or not isinstance(pages, Iterable):
        raise PageError(
            f"Expected a list of pages, got a single {type(pages).__name__}. Put it in a list; the pages of a PDF file "
            "come from read_pdf(path)."
        )
    found = [as_page(item, index) for index, item in enumerate(pages)]
    if not found:
        raise PageError("There are no pages to rank. Give at least one.")
    return found


def as_questions(questions: Iterable[str]) -> list[str]:
    """The caller's questions as a list."""
    if isinstance(questions, str) or not isinstance(questions, Iterable):
        raise QuestionError(f"Expected a list of questions, got a single {type(questions).__name__}. Put it in a list.")
    return list(questions)


def page_numbers(pages: Sequence[Page]) -> list[int]:
    """The numbers on the pages' labels: their own if they are one document's, else 1, 2, 3 ..."""
    own = [page.number for page in pages]
    if len({page.doc_id for page in pages}) == 1 and len(set(own)) == len(own):
        return own
    return list(range(1, len(pages) + 1))


def as_candidates(pages: Sequence[Page], *, own_numbers: bool = False) -> list[Candidate]:
    """The pages with their indices and the numbers on their labels; always their own numbers if asked for."""
    numbers = [page.number for page in pages] if own_numbers else page_numbers(pages)
    return [Candidate(index, number, page) for index, (number, page) in enumerate(zip(numbers, pages, strict=True))]


def with_progress(candidates: Sequence[Candidate], progress: bool) -> Iterable[Candidate]:
    """The candidates, with a bar on stderr if asked for and if that is a terminal."""
    bar: Iterable[Candidate] = tqdm(
        candidates, desc="pages", unit="page", disable=None if progress else True, leave=False
    )
    return bar


def in_thread(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """The asynchronous twin of a method: it runs in a thread, and the event loop goes on."""

    async def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(getattr(self, method.__name__), *args, **kwargs)

    run.__doc__ = f"``{method.__name__}`` in a thread; the event loop goes on."
    return run
