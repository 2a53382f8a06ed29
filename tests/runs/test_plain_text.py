"""What comes from outside reaches a terminal as plain text."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from mmrh_retriever.runs.plain_text import json_line, plain_text
from mmrh_retriever.runs.tables import Table, print_tables

HOSTILE = "a\x1b]0;owned\x07\x9b31m\r\u202egnp.exe\u2028b\udc80\x00[/red][draft]"
SHOWN = r"a\x1b]0;owned\x07\x9b31m\x0d\u202egnp.exe\u2028b\udc80\x00[/red][draft]"


def test_what_steers_a_terminal_is_shown() -> None:
    assert plain_text(HOSTILE) == SHOWN
    assert plain_text(SHOWN) == SHOWN
    for text in ("Wie hoch?\n\tÜber 5 %", "数字は？", "का\u200dम می\u200cخواهم 👩\u200d🔬", "a\u00a0b\u202fc"):
        assert plain_text(text) == text


def test_every_character_of_unicode_is_printed_or_shown() -> None:
    for code in range(sys.maxunicode + 1):
        shown = plain_text(chr(code))
        assert shown == chr(code) or shown in (f"\\x{code:02x}", f"\\u{code:04x}")
    for code in (*range(9), 11, 12, 13, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000), 0x202E, 0x2067):
        assert plain_text(chr(code)).isascii()


def test_json_lines_say_the_same_without_what_steers_a_terminal() -> None:
    line = json_line({"document": HOSTILE, "page": 3, "label": "naïve 数"})
    assert json.loads(line) == {"document": HOSTILE, "page": 3, "label": "naïve 数"}
    assert plain_text(line) == line
    assert line.count("\n") == len(line.splitlines()) == 1
    assert "naïve 数" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_are_plain_text(terminal: bool) -> None:
    stream = io.StringIO()
    table = Table.of(HOSTILE, [HOSTILE, "score"], [[HOSTILE, "0.5"]], notes=[HOSTILE])
    print_tables([table], Console(file=stream, width=400, force_terminal=terminal, color_system=None))
    assert stream.getvalue().count(SHOWN) == 4
