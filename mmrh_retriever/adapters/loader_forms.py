"""Where loaders write a document's file and page: one function for each thing, over the forms of all loaders.

Read from the real output, or the documented form, of LangChain's PyMuPDF, PyPDF, PDFMiner, PDFPlumber and pymupdf4llm
loaders, LlamaIndex's PDFReader and PyMuPDFReader, Unstructured, Docling, LlamaParse, and Azure's Document Intelligence
and Content Understanding. ``tests/adapters/test_loader_forms.py`` holds one record of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrh_retriever.errors import PageError

_SHOWN = 40  # characters of a wrong page number in messages


def page_index(metadata: Mapping[str, Any], page_base: int, page_key: str | None) -> int | None:
    """The page counted from 0; ``None`` if no loader's form says it.

    Raises:
        PageError: a page number that is not a number, or is before the first page.
    """
    if page_key is not None:
        return _index(metadata, page_key, page_base)
    if metadata.get("page") is not None:
        azure = "analyzer_id" in metadata and metadata.get("output_mode") == "page"
        return _index(metadata, "page", 1 if azure else page_base)
    source = "" if metadata.get("file_path") is None else as_text(metadata.get("source"))
    if re.fullmatch(r"\d{1,9}", source, re.ASCII):
        return _index(metadata, "source", 1)
    if metadata.get("page_number") is not None:
        return _index(metadata, "page_number", 1)
    first = metadata.get("start_page_number")  # Azure Content Understanding
    if first is not None and first == metadata.get("end_page_number"):
        return _index(metadata, "start_page_number", 1)
    if (docling := _docling_page(metadata)) is not None:
        return docling
    return 0 if total_pages(metadata) == 1 else None


def files_named(metadata: Mapping[str, Any]) -> list[str | Path]:
    """Paths and web addresses of the file that was read, the surest first."""
    folder, name = metadata.get("file_directory"), metadata.get("filename")  # Unstructured
    joined = Path(folder, name) if isinstance(folder, str) and isinstance(name, str) else None
    given = (metadata.get("file_path"), metadata.get("source"), joined)
    return [file for file in given if isinstance(file, (str, Path)) and str(file)]


def bare_name(metadata: Mapping[str, Any]) -> str | None:
    """The name of the file that was read, without its folder."""
    origin = _docling(metadata).get("origin")
    named = origin.get("filename") if isinstance(origin, Mapping) else None
    given = (metadata.get("file_name"), metadata.get("filename"), named)
    return next((Path(name).name for name in given if isinstance(name, str) and name), None)


def total_pages(metadata: Mapping[str, Any]) -> int | None:
    """How many pages the file has that was read."""
    total, pages = metadata.get("total_pages"), metadata.get("pages")
    if isinstance(total, int) and not isinstance(total, bool):
        return total
    # Azure Document Intelligence writes down its whole answer
    listed = isinstance(pages, list) and all(isinstance(page, Mapping) and "pageNumber" in page for page in pages)
    return len(pages) if listed and pages else None


def _docling(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Docling says of a chunk: under one key in LangChain, beside the rest in LlamaIndex."""
    found = metadata.get("dl_meta", metadata)
    return found if isinstance(found, Mapping) else {}


def _docling_page(metadata: Mapping[str, Any]) -> int | None:
    """The page on which a chunk begins."""
    items = _docling(metadata).get("doc_items")
    for item in items if isinstance(items, list) else ():
        for where in (item.get("prov") if isinstance(item, Mapping) else None) or ():
            if isinstance(where, Mapping) and where.get("page_no") is not None:
                return _index(where, "page_no", 1)
    return None


def _index(metadata: Mapping[str, Any], key: str, base: int) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    number = as_text(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,9}", number, re.ASCII):
        got = number if len(number) <= _SHOWN else f"{number[:_SHOWN]}..."
        raise PageError(f"The page number in metadata[{key!r}] is {got!r}. Expected a whole number.")
    if int(number) < base:
        advice = "page_base=0" if key == "page" else f"page_key={key!r} and page_base=0"
        counted = f"pages are counted from {base} here. Set {advice} if the first page is 0."
        raise PageError(f"metadata[{key!r}] is {value!r}, but {counted}")
    return int(number) - base


def as_text(value: object) -> str:
    """A value as text; :class:`PageError` for one that can't be written, such as a number of thousands of digits."""
    try:
        return str(value)
    except (ValueError, RecursionError) as error:
        raise PageError(f"A value of the metadata can't be written as text ({error}). Remove it.") from error
