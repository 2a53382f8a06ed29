"""Text from outside on its way to a terminal: what would steer the terminal or turn the line is shown as an escape."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

_STEERING = {"Cc", "Cs", "Zl", "Zp"}  # controls, lone surrogates, line and paragraph separators
_TURNING = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # of bidirectional text


def plain_text(text: str) -> str:
    r"""A text with control characters, bidirectional marks and lone surrogates as ``\x1b``, ``\u202e``, ``\udc80``.

    Line breaks and tabs stay. Whoever prints it must not read it as markup.
    """
    return "".join(_escape(it) if _is_escaped(it) and it not in "\n\t" else it for it in text)


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; the same characters are escaped as JSON has it, all others stay readable."""
    plain = json.dumps(row, ensure_ascii=False)
    return "".join(json.dumps(it)[1:-1] if _is_escaped(it) else it for it in plain) + "\n"


def _is_escaped(character: str) -> bool:
    return character in _TURNING or unicodedata.category(character) in _STEERING


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
