"""Loaders' ways to name file and page: a record of each, and the real loaders where they are installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from mmrh_retriever.adapters import AdapterSettings, PageClues, PageSource, clues_from_metadata, page_sources
from mmrh_retriever.adapters.notices import warn_once
from mmrh_retriever.errors import PageError
from tests.ranking_stub import StubReranker, stub

QUESTION = "How did revenue change?"
PAGES = 3


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number in range(PAGES):
        document.new_page(width=200, height=300).insert_text((20, 40), f"sheet {number}")
    document.save(tmp_path / "report.pdf")
    return tmp_path / "report.pdf"


def docling(page: int) -> dict[str, Any]:
    """What ``DocMeta.export_json_dict`` of docling-core 2.104 gives for a chunk of one paragraph."""
    where = {"page_no": page, "bbox": {"l": 0.0, "t": 0.0, "r": 1.0, "b": 1.0}, "charspan": [0, 5]}
    item = {"self_ref": "#/texts/0", "children": [], "content_layer": "body", "label": "paragraph", "prov": [where]}
    origin = {"mimetype": "application/pdf", "binary_hash": 1, "filename": "report.pdf"}
    schema = "docling_core.transforms.chunker.DocMeta"
    return {"schema_name": schema, "version": "1.0.0", "doc_items": [item], "origin": origin}


def azure_answer(*pages: int) -> dict[str, Any]:
    """What langchain-community 0.4's AzureAIDocumentIntelligenceLoader writes: ``AnalyzeResult.as_dict()``."""
    return {"apiVersion": "2024-11-30", "modelId": "prebuilt-layout", "content": "words",
            "pages": [{"pageNumber": page, "spans": [], "lines": []} for page in pages]}  # fmt: skip


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (metadata of the second page, in which FILE, FOLDER and NAME are filled in; settings)
    "PyMuPDF, PDFPlumber, pymupdf4llm": ({"source": "FILE", "file_path": "FILE", "total_pages": 3, "page": 1}, {}),
    "PyPDF": ({"source": "FILE", "total_pages": 3, "page": 1, "page_label": "2"}, {}),
    "PDFMiner, PyPDFium2": ({"source": "FILE", "total_pages": 3, "page": 1}, {}),
    # reference.langchain.com/python/langchain-unstructured/document_loaders/UnstructuredLoader
    "Unstructured": (
        {"source": "FILE", "file_directory": "FOLDER", "filename": "NAME", "languages": ["eng"], "page_number": 2,
         "filetype": "application/pdf", "category": "UncategorizedText", "element_id": "d3ce55f220df"}, {},
    ),
    # the same without the loader's source, as Unstructured's own elements and LlamaIndex's reader write it
    "Unstructured's elements": ({"file_directory": "FOLDER", "filename": "NAME", "page_number": 2}, {}),
    # langchain-docling 3.0's MetaExtractor
    "Docling": ({"source": "FILE", "dl_meta": docling(2)}, {}),
    # llama-index-node-parser-docling 0.4 puts the chunk's own metadata beside the reader's
    "Docling in LlamaIndex": ({"file_path": "FILE", **docling(2)}, {}),
    # langchain-azure-ai 1.2, AzureAIContentUnderstandingLoader(output_mode="page")
    "Azure Content Understanding": (
        {"source": "FILE", "mime_type": "application/pdf", "analyzer_id": "prebuilt-documentSearch",
         "output_mode": "page", "kind": "document", "page": 2}, {},
    ),
    # the same, output_mode="segment"
    "Azure segment": (
        {"source": "FILE", "analyzer_id": "a", "output_mode": "segment", "kind": "document",
         "start_page_number": 2, "end_page_number": 2}, {},
    ),
    # langchain-community 0.4, AzureAIDocumentIntelligenceLoader(mode="page") gives the page alone, from 1
    "Azure Document Intelligence": ({"page": 2, "source": "FILE"}, {"page_base": 1}),
    "PDFReader": ({"file_path": "FILE", "file_name": "NAME", "page_label": "2"}, {}),
    "PyMuPDFReader": ({"file_path": "FILE", "total_pages": 3, "source": "2"}, {}),
    # llama-cloud-services 0.6, JobResult.get_text_documents(split_by_page=True); the name is looked for
    "LlamaParse": ({"file_name": "NAME", "page_number": 2}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_page_is_found(name: str, pdf: Path) -> None:
    metadata, settings = FORMS[name]
    filled = {"FILE": str(pdf), "FOLDER": str(pdf.parent), "NAME": pdf.name}
    given = {key: filled.get(value, value) if isinstance(value, str) else value for key, value in metadata.items()}
    page = PageSource(allowed_root=pdf.parent).page(clues_from_metadata(given, text="words", **settings))
    assert (page.image is not None, page.index, page.text) == (True, 1, "sheet 1")


def test_a_chunk_over_two_pages_is_where_it_begins() -> None:
    over_two = docling(2)
    over_two["doc_items"] += docling(3)["doc_items"]
    assert clues_from_metadata({"source": "a.pdf", "dl_meta": over_two}).index == 1


def test_whole_files_are_no_pages_unless_they_have_one(pdf: Path, tmp_path: Path) -> None:
    for whole in ({"start_page_number": 1, "end_page_number": 3}, azure_answer(1, 2, 3), {"total_pages": 3}, {}):
        clues = clues_from_metadata({"source": str(pdf), **whole}, text="words")
        assert clues.index is None
        assert PageSource().page(clues).image is None
    document = pymupdf.open(pdf)
    document.select([0])
    document.save(tmp_path / "one.pdf")
    for whole in (azure_answer(1), {"total_pages": 1}, {}):
        clues = clues_from_metadata({"source": str(tmp_path / "one.pdf"), **whole}, text="words")
        assert PageSource().page(clues).text == "sheet 0"


@pytest.mark.parametrize("key", ["page_number", "start_page_number"])
def test_page_0_where_a_loader_counts_from_1_is_refused(key: str) -> None:
    with pytest.raises(PageError, match=f"page_key='{key}' and page_base=0"):
        clues_from_metadata({key: 0, "end_page_number": 0})


# PDFs on the web


def test_a_pdf_on_the_web_is_fetched_once(pdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(page_sources, "fetch", lambda url, **_: (fetched.append(url), pdf.read_bytes())[1])
    reranker = stub()
    addresses = ["https://example.org/report.PDF?version=2#page=2", "https://example.org/abs/2305.13186"]
    forms = [{"source": it, "page": page, "total_pages": PAGES} for it in addresses for page in (0, 1, 1)]
    items = [clues_from_metadata(it, text="words") for it in forms]
    ranked = AdapterSettings(reranker=reranker, allow_urls=True).rank_items(QUESTION, items, lambda clues: clues)
    assert fetched == addresses
    assert [page.text for page in reranker.calls[0]] == ["sheet 0", "sheet 1"] * 2  # one page is scored once
    assert len(ranked) == 6


def test_other_web_pages_and_schemes_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_sources, "fetch", lambda *_, **__: pytest.fail("fetched"))
    for metadata in (
        {"source": "https://example.org/page.html", "page": 1},
        {"source": "s3://bucket/a.pdf", "page": 1},
    ):
        assert PageSource(allow_urls=True).page(clues_from_metadata(metadata, text="words")).image is None


# Where no page is found


MISSING = [
    ({"source": "https://example.org/a.pdf", "page": 1}, "web address of a PDF.*allow_urls=True"),
    ({"source": "whole.pdf"}, "whole.pdf is a PDF.*page_key="),
    ({"file_name": "elsewhere.pdf", "page_number": 2}, "without a folder, and not in the current folder"),
    ({"page": 2}, "not which file.*file_path"),
    (azure_answer(1, 2), "not which file.*file_path"),
]


@pytest.mark.parametrize(("metadata", "problem"), MISSING)
def test_a_missing_page_is_warned_of_once_per_source(metadata: dict[str, Any], problem: str) -> None:
    settings = AdapterSettings(reranker=stub())
    items = [clues_from_metadata(metadata, text=f"score=0.{number}") for number in (1, 2)]
    with pytest.warns(UserWarning, match=problem) as caught:
        ranked = settings.rank_items(QUESTION, items, lambda clues: clues)
    assert [item.score for item in ranked] == [0.2, 0.1]
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdapterSettings(reranker=stub()).rank_items(QUESTION, items, lambda clues: clues)


@pytest.mark.parametrize(("metadata", "problem"), MISSING)
def test_a_missing_page_is_raised_or_its_document_dropped(metadata: dict[str, Any], problem: str) -> None:
    items = [clues_from_metadata(metadata, text="score=0.1"), PageClues(text="score=0.2")]
    with pytest.raises(PageError, match=problem):
        AdapterSettings(reranker=stub(), on_missing_page="raise").rank_items(QUESTION, items, lambda clues: clues)
    dropping = AdapterSettings(reranker=stub(), on_missing_page="drop")
    assert [item.position for item in dropping.rank_items(QUESTION, items, lambda clues: clues)] == [1]


@pytest.mark.parametrize("metadata", [{}, {"source": "notes.docx", "page": 2}, {"source": "https://example.org/"}])
def test_text_that_names_no_page_is_no_reason_to_warn(metadata: dict[str, Any]) -> None:
    reranker: StubReranker = stub()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdapterSettings(reranker=reranker, on_missing_page="raise").rank_items(
            QUESTION, [metadata], lambda it: clues_from_metadata(it, text="score=0.5")
        )


# The real loaders


def loaded(pdf: Path, package: str, name: str, **options: Any) -> list[dict[str, Any]]:
    """The metadata that a loader writes for the pages of a PDF."""
    module = pytest.importorskip(package, reason=f"{package} is not installed")
    try:
        if package.startswith("langchain"):
            return [it.metadata for it in getattr(module, name)(str(pdf), **options).load()]
        return [it.metadata for it in getattr(module, name)().load_data(pdf, **options)]
    except ImportError as error:
        pytest.skip(f"{name}: {error}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("package", "name", "options"),
    [
        ("langchain_community.document_loaders", "PyMuPDFLoader", {}),
        ("langchain_community.document_loaders", "PyPDFLoader", {}),
        ("langchain_community.document_loaders", "PDFPlumberLoader", {}),
        ("langchain_community.document_loaders", "PDFMinerLoader", {"mode": "page"}),
        ("langchain_community.document_loaders", "PyPDFium2Loader", {}),
        ("llama_index.readers.file", "PDFReader", {}),
        ("llama_index.readers.file", "PyMuPDFReader", {}),
        ("pymupdf4llm", "LlamaMarkdownReader", {}),
    ],
)
def test_real_loaders(pdf: Path, package: str, name: str, options: dict[str, Any]) -> None:
    records = loaded(pdf, package, name, **options)
    base = 0 if package.startswith("langchain") else 1
    source = PageSource(allowed_root=pdf.parent)
    pages = [source.page(clues_from_metadata(it, text="words", page_base=base)) for it in records]
    assert [page.text for page in pages] == [f"sheet {number}" for number in range(PAGES)]
    assert all(page.image is not None for page in pages)


def test_real_chunks_of_docling(pdf: Path) -> None:
    try:
        types, document = (importlib.import_module(f"docling_core.types.doc{it}") for it in ("", ".document"))
        chunkers = importlib.import_module("docling_core.transforms.chunker")
    except ImportError as error:
        pytest.skip(f"docling-core: {error}")
    origin = document.DocumentOrigin(mimetype="application/pdf", binary_hash=1, filename=pdf.name)
    given = types.DoclingDocument(name="report", origin=origin)
    for number in range(1, PAGES + 1):
        given.add_page(page_no=number, size=types.Size(width=200, height=300))
        box = types.BoundingBox(l=0, t=0, r=1, b=1)
        where = types.ProvenanceItem(page_no=number, bbox=box, charspan=(0, 5))
        given.add_text(types.DocItemLabel.PARAGRAPH, f"words {number}", prov=where)
    records = [chunk.meta.export_json_dict() for chunk in chunkers.HierarchicalChunker().chunk(given)]
    for forms in ([{"source": str(pdf), "dl_meta": it} for it in records], records):
        pages = [PageSource(allowed_root=pdf.parent).page(clues_from_metadata(it, text="words")) for it in forms]
        assert [page.text for page in pages] == [f"sheet {number}" for number in range(PAGES)]
