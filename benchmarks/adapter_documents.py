"""What adapters make of the same pages as text chunks, as loaders' documents, and as image nodes, behind BM25.

    python benchmarks/adapter_documents.py --annotations ANNOTATIONS --documents PDFS --name report.pdf --name scan.pdf

Each PDF is turned into documents of several forms. BM25 over their text picks candidates for each question, and the
adapters' ranking puts them in order, alone and blended with BM25's scores (``fuse="blend"``). A page counts by its best
document; an evidence page that is not among the candidates is not found. Run it on two versions of the package (through
PYTHONPATH) for a table before and after.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrh_retriever import Page
from mmrh_retriever.adapters import AdapterSettings, PageClues, clues_from_metadata
from mmrh_retriever.bm25 import bm25_scores
from mmrh_retriever.mmdocir import MMDocIR
from mmrh_retriever.runs.tables import Table


class Made(NamedTuple):
    """A document as a loader makes it, its page, and what BM25 reads of it (of an image, the text layer)."""

    text: str
    metadata: dict[str, Any]
    page: int
    words: str


def docling(file: Path, page: int) -> dict[str, Any]:
    return {"source": str(file), "dl_meta": {"doc_items": [{"prov": [{"page_no": page + 1}]}]}}


def unstructured(file: Path, page: int) -> dict[str, Any]:
    return {"file_directory": str(file.parent), "filename": file.name, "page_number": page + 1}


CHUNKED: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "text chunks": lambda file, page: {},
    "PyMuPDF's chunks": lambda file, page: {"file_path": str(file), "page": page},
    "Unstructured's chunks": unstructured,
    "Docling's chunks": docling,
}
IMAGES = "image nodes"


def made_from(form: str, file: Path, pages: Sequence[Page], length: int) -> list[Made]:
    """A PDF's pages as documents of a form; chunks are of at most ``length`` characters."""
    if form == IMAGES:
        return [Made("", {"image": page.pixels()}, page.index, page.text or "") for page in pages]
    write = CHUNKED[form]
    return [
        Made(chunk, write(file, page.index), page.index, chunk)
        for page in pages
        for chunk in textwrap.wrap(page.text or "", length)
    ]


def clues(found: tuple[Made, float]) -> PageClues:
    return clues_from_metadata(found[0].metadata, text=found[0].text)


def score(found: tuple[Made, float]) -> float:
    return found[1]


def rank_of_gold(order: Sequence[int], gold: Sequence[int]) -> int:
    """The rank of the first evidence page among the pages of an order, from 1; 10,000 if there is none."""
    pages = list(dict.fromkeys(order))
    return min((pages.index(page) + 1 for page in gold if page in pages), default=10_000)


def measure(data: MMDocIR, folder: Path, settings: AdapterSettings, args: argparse.Namespace) -> list[list[str]]:
    """A row per form: its documents, and of the questions the first and among three by BM25, by us, and by both."""
    rows = []
    blend = settings.model_copy(update={"fuse": "blend"})
    for form in [*CHUNKED, IMAGES]:
        count, before, after, both = 0, [], [], []
        for document in data.documents:
            made = made_from(form, folder / document.name, data.pages(document), args.chunk)
            count += len(made)
            asked = [question.text for question in document.questions]
            for question, scores in zip(document.questions, bm25_scores(asked, [it.words for it in made]), strict=True):
                order = np.argsort(-scores, kind="stable")[: args.candidates]
                best = [(made[index], scores[index]) for index in order]
                before.append(rank_of_gold([it.page for it, _ in best], question.pages))
                for ranker, ranks in ((settings, after), (blend, both)):
                    ranked = ranker.rank_items(question.text, best, clues, retrieval_score_of=score) if best else []
                    ranks.append(rank_of_gold([best[it.position][0].page for it in ranked], question.pages))
        found = [str(sum(rank <= most for rank in ranks)) for ranks in (before, after, both) for most in (1, 3)]
        rows.append([form, str(count), *found])
        print(*rows[-1], f"of {len(before)} questions", file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rank the same pages as documents of several forms, behind BM25.")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True, help="the folder of PDFs")
    parser.add_argument("--name", action="append", help="a PDF's name; repeatable, all if left out")
    parser.add_argument("--candidates", type=int, default=20, help="documents that BM25 picks for a question")
    parser.add_argument("--chunk", type=int, default=800, help="characters of a chunk at most")
    parser.add_argument("--model", help="hub id or folder; the bundled model if left out")
    parser.add_argument("--heads", default="published")
    parser.add_argument("--images-only", action="store_true", help="without the text layer in the model's own score")
    args = parser.parse_args(arguments)
    data = MMDocIR.from_pdfs(args.annotations, args.documents, allow_missing=True)
    kept = tuple(it for it in data.documents if not args.name or it.name in args.name)
    data = MMDocIR(kept, data.source, data.fingerprint)
    hybrid = False if args.images_only else "auto"
    settings = AdapterSettings(model=args.model, heads=args.heads, hybrid=hybrid, page_memory=4 * 1024**3)
    kinds = ("BM25", "reranked", "blended")
    columns = ["form", "documents", *(f"{kind}: {most}" for kind in kinds for most in ("first", "among 3"))]
    questions = sum(len(it.questions) for it in kept)
    title = f"{len(kept)} PDFs, {questions} questions"
    print(Table.of(title, columns, measure(data, args.documents, settings, args), text_columns=1).markdown())


if __name__ == "__main__":
    main()
