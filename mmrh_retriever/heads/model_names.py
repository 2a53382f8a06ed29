"""Names of models: whether two of them mean one model or copies of it."""

from __future__ import annotations

import re


def name_words(model_id: str) -> str:
    """A model id or path for comparison: lower case, words joined and enclosed by ``-``."""
    return "-" + re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-") + "-"


def same_model(one: str, other: str) -> bool:
    """Whether two ids name one model or copies of it.

    The last part of one id stands, word by word, in the other: ``Qwen/Qwen3-VL-8B-Instruct`` and
    ``unsloth/Qwen3-VL-8B-Instruct-bnb-4bit``, or a local folder of that name.
    """
    short_one, short_other = (name_words(name.rstrip("/\\").replace("\\", "/").split("/")[-1]) for name in (one, other))
    return short_one in name_words(other) or short_other in name_words(one)
