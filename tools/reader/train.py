"""Train the bundled reader from nothing: `python -m tools.reader.train --out DIR --documents DIR [--resume]`."""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pymupdf
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from tools.reader.corpus import TextDocument, find_pdfs, is_held_out, load_documents
from tools.reader.dialogue import Layer
from tools.reader.export import export, load_reader
from tools.reader.join_stage import JoinSettings, RenderedTokens, train_joined
from tools.reader.language_stage import LanguageSettings, train_language
from tools.reader.model import new_reader
from tools.reader.pages import PageReader
from tools.reader.shown_pages import DocumentPool, ExampleMaker
from tools.reader.tokenizer import load_tokenizer, train_tokenizer
from tools.reader.validate import HeldOut, validate
from tools.reader.vision_stage import PageSource, VisionReader, VisionSettings, train_vision
from tools.reader.words import common_words

logger = logging.getLogger(__name__)

SEED = 20
PARAGRAPHS_A_DOCUMENT = 1500  # of the longest documents, so that no dictionary drowns the rest
LARGEST_PDF = 2_500_000  # bytes; larger ones take too long to open


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on."""

    tokenizer: PreTrainedTokenizerFast
    documents: list[TextDocument]
    pdfs: list[Path]
    held_out_pdfs: list[Path]
    words: list[str]

    @property
    def texts(self) -> list[str]:
        """Paragraphs of all documents."""
        return [paragraph for document in self.documents for paragraph in document.paragraphs[:PARAGRAPHS_A_DOCUMENT]]


def gather(folders: Sequence[Path], work: Path) -> Material:
    """Corpus, words and tokenizer; kept in `work` after the first time."""
    documents = [one for one in load_documents(folders, work / "corpus.jsonl") if not is_held_out(one.name)]
    pdfs = [path for path in find_pdfs(folders) if path.stat().st_size < LARGEST_PDF]
    texts = [paragraph for document in documents for paragraph in document.paragraphs[:PARAGRAPHS_A_DOCUMENT]]
    random.Random(SEED).shuffle(texts)
    if not (work / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(texts[:120_000]).save_pretrained(work / "tokenizer")
    return Material(
        load_tokenizer(work / "tokenizer"),
        documents,
        [path for path in pdfs if not is_held_out(path.name)],
        [path for path in pdfs if is_held_out(path.name)],
        common_words(texts),
    )


def run_vision(material: Material, work: Path, seconds: float, *, compiled: bool) -> None:
    """Stage 1, towards the text tower's embedding, which no stage changes."""
    rng = random.Random(SEED)
    source = PageSource(material.tokenizer, material.texts, material.words, material.pdfs, rng)
    model = VisionReader(material.tokenizer, SEED, compiled=compiled)
    meanings = new_reader(material.tokenizer, SEED).model.language_model.embed_tokens.weight
    train_vision(model, source, VisionSettings(seconds), work, meanings)


def run_language(material: Material, work: Path, seconds: float, looking_weight: float) -> None:
    """Stage 2, on simulated visual tokens."""
    pool = DocumentPool(material.tokenizer, material.documents, material.words, material.pdfs, random.Random(SEED))
    model = new_reader(material.tokenizer, SEED)
    train_language(
        model, ExampleMaker(pool), LanguageSettings(seconds, looking_weight=looking_weight), work, train_embedding=False
    )


def run_join(
    material: Material, work: Path, seconds: float, looking_weight: float
) -> Qwen2_5_VLForConditionalGeneration:
    """Stage 3, on rendered pages."""
    model = load_reader(material.tokenizer, work / "vision.pt", work / "language.pt")
    rng = random.Random(SEED)
    pool = DocumentPool(
        material.tokenizer, material.documents, material.words, material.pdfs, rng, size=150, drawn=True
    )
    settings = JoinSettings(seconds, looking_weight=2 * looking_weight)
    train_joined(model, ExampleMaker(pool), RenderedTokens(model.model.visual, rng), settings, work)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages, the finished ones being skipped by their checkpoints, validate and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, help="checkpoints and caches (OUT/../reader-work)")
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=[Path("/usr/share/doc")], help="text and PDF folders"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --work")
    parser.add_argument("--vision-seconds", type=float, default=6000)
    parser.add_argument("--language-seconds", type=float, default=2400)
    parser.add_argument("--join-seconds", type=float, default=3600)
    parser.add_argument(
        "--looking-weight", type=float, default=1.0, help="of the helper loss on attention; 0 is without"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the tower; needs a C++ compiler")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pymupdf.TOOLS.mupdf_display_errors(False)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(SEED)
    work = chosen.work or chosen.out.parent / "reader-work"
    if (work / "vision.pt").exists() and not chosen.resume:
        parser.error(f"got a work folder with checkpoints, {work}; expected none: pass --resume, or another --work")
    work.mkdir(parents=True, exist_ok=True)

    material = gather(chosen.documents, work)
    run_vision(material, work, chosen.vision_seconds, compiled=chosen.compile)
    run_language(material, work, chosen.language_seconds, chosen.looking_weight)
    model = run_join(material, work, chosen.join_seconds, chosen.looking_weight)

    layer = Layer(material.tokenizer)
    common = frozenset(material.words[:150])
    held_out = HeldOut(material.held_out_pdfs, layer, PageReader(material.tokenizer), common, SEED)
    validate(model, held_out, layer, held_out.cases(24, 10)).save(work / "head_scores.json")
    size = export(model, material.tokenizer, chosen.out)
    logger.info("done: %.1f MB in %s; head scores in %s", size / 1e6, chosen.out, work / "head_scores.json")


if __name__ == "__main__":
    main()
