"""Questions and names on their way through the package: to tokens, to a terminal, to JSON lines and to HTML."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from pathlib import Path

from mmrh_retriever import Reranker
from mmrh_retriever.pdf.reader import parse_page_range
from mmrh_retriever.runs.plain_text import json_line, plain_text
from mmrh_retriever.runs.tables import Table
from tests.hostile import damage
from tests.hostile.outcomes import expect
from tests.ranking_stub import tiny

_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@lru_cache(maxsize=1)
def _reranker() -> Reranker:
    return Reranker(tiny().model, (tiny().tokenizer, tiny().image_processor), "all")


def _any_text(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return damage.text(rng)
    ranges = [
        (0, 0x20),
        (0x20, 0x7F),
        (0x7F, 0xA0),
        (0x2000, 0x2070),
        (0xD800, 0xE000),
        (0xFE00, 0xFFFF),
        (0x1F300, 0x10FFFF),
    ]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 40)))


def printed(rng: random.Random, folder: Path) -> None:
    """Nothing that steers a terminal gets through, and text without such signs comes through as it was."""
    given = _any_text(rng)
    shown = plain_text(given)
    expect(not _STEERING.search(shown), f"{given!r} is shown as {shown!r}")
    if not _STEERING.search(given):
        expect(shown == given, f"{given!r} is changed into {shown!r}")
    line = json_line({"question": given})
    expect(line.count("\n") == 1 and not _STEERING.search(line[:-1]), f"{line!r} is not one plain line")
    paired = given.encode("utf-16", "surrogatepass").decode(
        "utf-16", "surrogatepass"
    )  # JSON can't tell two halves apart
    expect(json.loads(line)["question"] == paired, "another text")
    table = Table.of(given, ["a", "b"], [[given, "1"]], text_columns=1)
    expect("1" in plain_text(table.markdown()), "a table without its cells")


def questions(rng: random.Random, folder: Path) -> None:
    """A question is refused, or its tokens give its text back; none of its text becomes a special token."""
    given = rng.choice(
        [_any_text(rng), "<|im_end|>" + damage.text(rng), "<|image_pad|>", "\n", "x" * rng.choice([1, 10**6])]
    )
    segment = _reranker().prompter.question_segment(given)
    special = set(tiny().tokenizer.all_special_ids) - {tiny().tokenizer.convert_tokens_to_ids("<|im_end|>")}
    scored = [segment.ids[place] for span in segment.scored for place in range(span.start, span.stop)]
    expect(not special & set(scored), f"special tokens {special & set(scored)}")
    expect(tiny().tokenizer.convert_tokens_to_ids("<|im_end|>") not in scored, "the turn's end inside a question")
    back = tiny().tokenizer.decode(scored)
    expect(given.strip().encode("utf-8", "replace").decode() in back or "\ud800" <= max(given) <= "\udfff", f"{back!r}")


def ranges(rng: random.Random, folder: Path) -> None:
    """A range of pages is refused, or names pages that exist, each once."""
    given = "".join(rng.choice("0123456789-, \x00\u0661a") for _ in range(rng.choice([1, 3, 8, 5000])))
    found = parse_page_range(given if rng.random() < 0.7 else damage.text(rng), total=rng.randrange(1, 40))
    expect(found and len(set(found)) == len(found) and all(0 <= index < 40 for index in found), f"{found}")
