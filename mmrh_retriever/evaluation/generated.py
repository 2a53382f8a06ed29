"""Questions made of pages' own text layers, for who has documents and no labelled questions.

A question takes one to five words that stand near each other on a page, in their order, among up to two words of other
pages, in the frame of a question: ``How is voltage related to plugin and sensor?``. The page is its evidence. Such
questions are easier than people's: they use the page's own words, and never ask for what only a picture shows. Other
pages may answer them too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmrh_retriever.bm25 import words_of
from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.evaluation.labelled import DOMAIN, MixedFolder
from mmrh_retriever.evaluation.mmdocir.annotations import Document
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.files import files_below, is_folder
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS, read_pdf

logger = logging.getLogger(__name__)

FEWEST_WORDS = 20
"""Words that a page's text has at least, without stop words, if it is asked about."""
_FRAMES = (
    "What does the document say about {}?",
    "How is {} related to {}?",
    "What is the {} of {}?",
    "Which {} has the {}?",
    "How many {} are there in {}?",
    "Where is {} described?",
)


def generated_questions(
    documents: str | Path, count: int, *, seed: int = 0, max_pixels: int = DEFAULT_MAX_PIXELS
) -> MMDocIR:
    """About ``count`` questions, spread evenly over the PDFs in a folder and below it that have text.

    A PDF that can't be read is logged and left out.

    Raises:
        DataError: no such folder, no PDF in it with text, or fewer than one question.
    """
    folder = Path(documents)
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder. Give the folder that holds the documents.")
    if count < 1:
        raise DataError(f"At least one question is needed, got {count}.")
    rng = np.random.default_rng(seed)
    words = {}
    for path in files_below(folder, (".pdf",)):
        try:
            found = words_of([page.text or "" for page in read_pdf(path, strict=False)])
        except PageError as error:
            logger.warning("%s is left out: %s", path, error)
            continue
        if any(len(page) >= FEWEST_WORDS for page in found):
            words[path.relative_to(folder).as_posix()] = found
    if not words:
        raise DataError(f"{folder}: no PDF here has a page with {FEWEST_WORDS} words of text to ask about.")
    others = [word for pages in words.values() for page in pages for word in page]
    made = []
    for number, (name, pages) in enumerate(words.items()):
        wanted = count * (number + 1) // len(words) - count * number // len(words)
        asked = _about(pages, others, wanted, rng)
        if asked:
            questions = tuple({"Q": text, "page_id": (index,)} for text, index in asked.items())
            given = {"doc_name": name, "domain": DOMAIN, "line": number + 1, "questions": questions}
            made.append(Document.model_validate(given))
    return MMDocIR.of(made, MixedFolder(folder, max_pixels))


def _about(
    pages: Sequence[Sequence[str]], others: Sequence[str], wanted: int, rng: np.random.Generator
) -> dict[str, int]:
    """Questions about a document's pages, each once, and the index of the page that each is about."""
    asked: dict[str, int] = {}
    full = [index for index, words in enumerate(pages) if len(words) >= FEWEST_WORDS]
    for _ in range(wanted):
        index = int(rng.choice(full))
        asked.setdefault(_question(pages[index], others, rng), index)
    return asked


def _question(page: Sequence[str], others: Sequence[str], rng: np.random.Generator) -> str:
    count = int(rng.integers(1, 6))
    start = int(rng.integers(0, len(page) - 2 * count + 1))
    near = start + np.sort(rng.choice(2 * count, count, replace=False))
    words = [page[index] for index in near]
    for _ in range(int(rng.integers(0, 3))):
        words.insert(int(rng.integers(0, len(words) + 1)), others[int(rng.integers(0, len(others)))])
    frame = _FRAMES[int(rng.integers(0, len(_FRAMES)))]
    if frame.count("{}") > len(words):
        frame = _FRAMES[0]
    cut = (len(words) + 1) // 2
    parts = [words] if frame.count("{}") == 1 else [words[:cut], words[cut:]]
    return frame.format(*map(" ".join, parts))
