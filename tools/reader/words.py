"""English words by how common they are, counted in the corpus itself, and their forms."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Set


def common_words(texts: Iterable[str], most: int = 60_000) -> list[str]:
    """Lower-case alphabetic words of at least two letters (and "a" and "i"), the most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in text.lower().split() if word.isascii() and word.isalpha())
    kept = (word for word, _ in counts.most_common() if len(word) > 1 or word in {"a", "i"})
    return [word for word, _ in zip(kept, range(most), strict=False)]


def inflected(word: str, known: Set[str], rng: random.Random) -> str:
    """Another known form of a word, such as its plural or its participle; the word itself where none is known."""
    lower = word.lower()
    stems = {lower}
    for ending in ("s", "es", "ed", "d", "ing", "ly", "al", "er", "ion"):
        if lower.endswith(ending) and len(lower) - len(ending) >= 4:
            stem = lower[: -len(ending)]
            stems |= {stem, stem + "e"}
    bases = stems | {stem[:-1] for stem in stems if stem.endswith("e")}
    forms = stems | {
        base + ending for base in bases for ending in ("s", "es", "ed", "ing", "ly", "al", "er", "ion", "ions")
    }
    forms = {form for form in forms & known if len(form) > 3 and form != lower}
    return rng.choice(sorted(forms)) if forms else word
