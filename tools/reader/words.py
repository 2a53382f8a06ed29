"""English words by how common they are, counted in the corpus itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def common_words(texts: Iterable[str], most: int = 60_000) -> list[str]:
    """Lower-case alphabetic words of at least two letters (and "a" and "i"), the most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in text.lower().split() if word.isascii() and word.isalpha())
    kept = (word for word, _ in counts.most_common() if len(word) > 1 or word in {"a", "i"})
    return [word for word, _ in zip(kept, range(most), strict=False)]
