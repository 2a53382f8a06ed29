"""How often each token stands in the corpus; `python -m tools.reader.frequencies --help`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from mmrh_retriever.model.token_weights import FREQUENCIES_FILE, TokenFrequencies
from tools.reader.corpus import TextDocument, is_held_out, load_documents
from tools.reader.tokenizer import load_tokenizer

PARAGRAPHS = 120  # of a document at most, so that no large manual's own words count as common


def token_frequencies(tokenizer: PreTrainedTokenizerFast, documents: Sequence[TextDocument]) -> TokenFrequencies:
    """Counts over the documents that are not held out."""
    counts: Counter[int] = Counter()
    for document in documents:
        if not is_held_out(document.name):
            for ids in tokenizer(
                list(document.paragraphs[:PARAGRAPHS]), add_special_tokens=False, split_special_tokens=True
            )["input_ids"]:
                counts.update(ids)
    source = f"{counts.total()} tokens of Debian's free manuals (tools/reader/README.md)"
    return TokenFrequencies(source=source, counts=[counts[token] for token in range(len(tokenizer))])


def write_frequencies(tokenizer: PreTrainedTokenizerFast, documents: Sequence[TextDocument], folder: Path) -> None:
    """Write the file beside a model's weights."""
    (folder / FREQUENCIES_FILE).write_text(token_frequencies(tokenizer, documents).model_dump_json() + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file beside a reader's tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, nargs="+", required=True, help="text and PDF folders")
    parser.add_argument("--cache", type=Path, required=True, help="the corpus as train.py keeps it (corpus.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    chosen = parser.parse_args(arguments)
    write_frequencies(load_tokenizer(chosen.out), load_documents(chosen.documents, chosen.cache), chosen.out)


if __name__ == "__main__":
    main()
