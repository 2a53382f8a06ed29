"""Ways to spoil bytes, JSON and text, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
from typing import Any

TEXTS = [
    "", " ", "\x00", "a\x00b", "\x1b]0;owned\x07", "\x1b[2J\x1b[31m", "\u2028", "a\u2029b", "\u202egnp.exe",
    "\ud800", "\udcff", "\ufeff", "[/red]", "[bold]x[/]", "{number}", "%s%n", "../../etc/passwd", "/dev/zero",
    "a" * 5000, "9" * 5000,
    "-1", "1e999", "NaN", "\u0660\u0661", "\U0001f9e8" * 40, "e\u0301" * 300,
    "<script>alert(1)</script>", "'; --", "\r\n",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, 1e308, -0.0, float("nan"), float("inf"), [], {},
    [[]],    {"": {}}, [None], [1, "a", None], b"bytes", (), object,
]  # fmt: skip


def text(rng: random.Random) -> str:
    """A text that is made to harm, alone or inside a harmless one."""
    chosen = rng.choice(TEXTS)
    return chosen if rng.random() < 0.5 else f"How did {chosen} change?"


def value(rng: random.Random) -> Any:
    """Anything that a field may hold, mostly of a wrong type."""
    return rng.choice(VALUES) if rng.random() < 0.5 else text(rng)


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut short, with flipped bits, zeros, doubled or foreign stretches, or something in front."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        place = rng.randrange(max(1, len(changed)))
        kind = rng.randrange(7)
        if kind == 0:
            del changed[place:]
        elif kind == 1 and changed:
            changed[place % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[place : place + 16] = bytes(rng.randrange(1, 64))
        elif kind == 3:
            changed[place:place] = changed[place : place + rng.randrange(1, 400)]
        elif kind == 4:
            changed[place : place + 4] = rng.randbytes(4)
        elif kind == 5:
            del changed[place : place + rng.randrange(1, 64)]
        else:
            changed[place:place] = rng.randbytes(rng.randrange(1, 32))
    return bytes(changed)


def json_text(rng: random.Random, content: Any) -> str:
    """A JSON text of which one value, at any depth, or the text itself, was spoiled."""
    kind = rng.randrange(6)
    if kind == 0:
        return spoiled(rng, _dumped(content).encode()).decode("utf-8", "surrogateescape")
    if kind == 1:
        return rng.choice(
            ["[" * 100_000, '{"a":' * 50_000, "9" * 100_000, "[1e999]", "\ufeff{}", "null", "", '"\\ud800"']
        )
    return _dumped(_replaced(rng, content))


def _replaced(rng: random.Random, content: Any) -> Any:
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        changed = {**content, key: _replaced(rng, content[key])}
        if rng.random() < 0.1:
            changed.pop(key)
        if rng.random() < 0.1:
            changed[text(rng)] = 1
        return changed
    if isinstance(content, list) and content and rng.random() < 0.8:
        place = rng.randrange(len(content))
        return [*content[:place], _replaced(rng, content[place]), *content[place + rng.randrange(2) :]]
    return value(rng)


def _dumped(content: Any) -> str:
    return json.dumps(content, default=str, ensure_ascii=False)
