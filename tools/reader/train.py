"""Train the bundled reader from nothing: `python -m tools.reader.train --out DIR --documents DIR [--resume]`."""

from __future__ import annotations

import argparse
import logging
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pymupdf
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from mmrh_retriever import HeadSet
from mmrh_retriever.model.loading import HEADS_FILE
from mmrh_retriever.model.token_weights import frequency_weights
from tools.reader.choose_heads import choose_heads, groups
from tools.reader.corpus import TextDocument, find_pdfs, is_held_out, load_documents
from tools.reader.examples import ExampleMaker
from tools.reader.export import export
from tools.reader.first_heads import directions, scale_embedding, scale_visual, start_heads
from tools.reader.frequencies import write_frequencies
from tools.reader.language_stage import LanguageSettings, train_language
from tools.reader.model import new_reader
from tools.reader.page_questions import QuestionMaker
from tools.reader.page_scores import EncodedPage, PageScores, encode_documents
from tools.reader.question_stage import HeldOut, QuestionSettings, QuestionTrainer, improve
from tools.reader.shelf import Shelf
from tools.reader.tokenizer import load_tokenizer, train_tokenizer
from tools.reader.vision_stage import PageSource, VisionReader, VisionSettings, train_vision
from tools.reader.words import common_words

logger = logging.getLogger(__name__)

SEED = 20
PARAGRAPHS_PER_DOCUMENT = 1500  # of the longest documents, so that no dictionary drowns the rest
LARGEST_PDF = 2_500_000  # bytes; larger ones take too long to open
SAMPLE_DOCUMENTS = 12  # whose visual tokens say how the text tower's heads start
CONTENT_RANK = 96
QUESTION_DOCUMENTS = 30  # of at most 16 pages, which stage 3 keeps
HELD_OUT_DOCUMENTS = 14
HELD_OUT_LISTS = 28
HELD_OUT_QUESTIONS = 30  # about each list


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on."""

    tokenizer: PreTrainedTokenizerFast
    documents: list[TextDocument]
    held_out_documents: list[TextDocument]
    pdfs: list[Path]
    held_out_pdfs: list[Path]
    words: list[str]

    @property
    def texts(self) -> list[str]:
        """Paragraphs of all documents."""
        return [paragraph for document in self.documents for paragraph in document.paragraphs[:PARAGRAPHS_PER_DOCUMENT]]


def gather(folders: Sequence[Path], work: Path) -> Material:
    """Corpus, words and tokenizer; kept in `work` after the first time."""
    every = load_documents(folders, work / "corpus.jsonl")
    documents = [one for one in every if not is_held_out(one.name)]
    pdfs = [path for path in find_pdfs(folders) if path.stat().st_size < LARGEST_PDF]
    texts = [paragraph for document in documents for paragraph in document.paragraphs[:PARAGRAPHS_PER_DOCUMENT]]
    random.Random(SEED).shuffle(texts)
    if not (work / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(texts[:120_000]).save_pretrained(work / "tokenizer")
    return Material(
        load_tokenizer(work / "tokenizer"),
        documents,
        [one for one in every if is_held_out(one.name)],
        [path for path in pdfs if not is_held_out(path.name)],
        [path for path in pdfs if is_held_out(path.name)],
        common_words(texts),
    )


def run_vision(material: Material, work: Path, seconds: float, *, compiled: bool) -> None:
    """Stage 1: reading."""
    source = PageSource(material.tokenizer, material.texts, material.words, material.pdfs, random.Random(SEED))
    model = VisionReader(material.tokenizer, SEED, compiled=compiled)
    train_vision(model, source, VisionSettings(seconds), work)


def run_language(
    material: Material,
    work: Path,
    seconds: float,
    looking_weight: float,
    evaluate: Callable[[Qwen2_5_VLForConditionalGeneration], str] | None = None,
) -> Qwen2_5_VLForConditionalGeneration:
    """Stage 2: looking, on pages that stage 1's tower reads."""
    model = new_reader(material.tokenizer, SEED)
    saved = torch.load(work / "vision.pt", weights_only=True)["model"]
    model.model.visual.load_state_dict({name[6:]: value for name, value in saved.items() if name.startswith("tower.")})
    text = model.model.language_model
    text.embed_tokens.weight.data.copy_(saved["embedding.weight"])
    scale_embedding(text)
    shelf = Shelf(
        model.model.visual, material.tokenizer, material.documents, material.words, material.pdfs, random.Random(SEED)
    )
    start = work / "start.pt"
    if start.exists():  # the towers as they were when stage 2 began
        model.load_state_dict(torch.load(start, weights_only=True))
    else:
        while len(shelf.documents) < SAMPLE_DOCUMENTS:
            shelf.renew()
        sample = torch.cat([page.tokens for document in shelf.documents for page in document]).float()[::17]
        factor = scale_visual(model.model.visual, sample)
        size = text.layers[0].self_attn.head_dim
        found = directions(material.tokenizer, text.embed_tokens.weight.detach(), sample, CONTENT_RANK, size)
        start_heads(model, found, float(saved["sharpness"].detach().exp()))
        shelf.change(lambda tokens: factor * tokens @ found.turn.T)
        torch.save(model.state_dict(), start)
    settings = LanguageSettings(seconds, looking_weight=looking_weight)
    train_language(model, ExampleMaker(shelf), settings, work, evaluate)
    return model


def run_first_stages(material: Material, work: Path, chosen: argparse.Namespace) -> None:
    """Stages 1 and 2, and the heads: a finished model in the folder that was asked for."""
    common = frozenset(material.words[:150])
    for _ in groups(material.held_out_pdfs, common, SEED):
        pass  # too few held-out pages to choose heads on should end the run now, not after hours of training
    run_vision(material, work, chosen.vision_seconds, compiled=chosen.compile)
    model = run_language(material, work, chosen.language_seconds, chosen.looking_weight)
    size = export(model, material.tokenizer, chosen.out)
    write_frequencies(material.tokenizer, material.documents, chosen.out)
    heads = choose_heads(chosen.out, material.held_out_pdfs, common, SEED)
    logger.info("%.1f MB in %s; heads %s", size / 1e6, chosen.out, ", ".join(map(str, heads)))


def run_questions(material: Material, folder: Path, work: Path, seconds: float) -> bool:
    """Stage 3: the question's side of a finished model, which is written again if it finds more held-out pages."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).float()
    tokenizer = material.tokenizer
    scores = PageScores(model, tokenizer, HeadSet.load(folder / HEADS_FILE), frequency_weights(str(folder)))

    settings = QuestionSettings(seconds)

    def encoded(
        texts: list[TextDocument], pdfs: list[Path], count: int, seed: int
    ) -> tuple[list[list[EncodedPage]], QuestionMaker]:
        shelf = Shelf(model.model.visual, tokenizer, texts, material.words, pdfs, random.Random(seed))
        documents = encode_documents(scores, shelf, count)
        logger.info("questions: %d pages encoded", sum(map(len, documents)))
        return documents, QuestionMaker(ExampleMaker(shelf))

    unseen, maker = encoded(material.held_out_documents, material.held_out_pdfs, HELD_OUT_DOCUMENTS, SEED + 1)
    held_out = HeldOut.of(unseen, maker, HELD_OUT_LISTS, settings.pages, HELD_OUT_QUESTIONS)
    documents, maker = encoded(material.documents, material.pdfs, QUESTION_DOCUMENTS, SEED)
    better = improve(QuestionTrainer(scores, documents, maker, settings), held_out, work)
    if better:
        export(model, tokenizer, folder)
    return better


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages, the finished ones being skipped by their checkpoints, validate and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, help="checkpoints and caches (OUT/../reader-work)")
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=[Path("/usr/share/doc")], help="text and PDF folders"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --work")
    parser.add_argument("--vision-seconds", type=float, default=10_000)
    parser.add_argument("--language-seconds", type=float, default=2400)
    parser.add_argument(
        "--looking-weight", type=float, default=2.0, help="of the helper loss on attention; 0 is without"
    )
    parser.add_argument("--question-seconds", type=float, default=1200)
    parser.add_argument(
        "--start", type=Path, help="folder of a finished model: stage 3 alone is run, with a copy of it in --out"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the tower; needs a C++ compiler")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pymupdf.TOOLS.mupdf_display_errors(False)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(SEED)
    work = chosen.work or chosen.out.parent / "reader-work"
    if any((work / name).exists() for name in ("vision.pt", "questions.pt")) and not chosen.resume:
        parser.error(f"got a work folder with checkpoints, {work}; expected none: pass --resume, or another --work")
    work.mkdir(parents=True, exist_ok=True)

    if chosen.start is None:
        material = gather(chosen.documents, work)
        run_first_stages(material, work, chosen)
    else:
        if not chosen.resume:
            shutil.copytree(chosen.start, chosen.out, dirs_exist_ok=True)
        (work / "tokenizer").mkdir(exist_ok=True)
        shutil.copy(chosen.start / "tokenizer.json", work / "tokenizer")
        material = gather(chosen.documents, work)
    better = run_questions(material, chosen.out, work, chosen.question_seconds)
    logger.info("done: %s; stage 3 %s", chosen.out, "kept" if better else "found no more pages and was left out")


if __name__ == "__main__":
    main()
