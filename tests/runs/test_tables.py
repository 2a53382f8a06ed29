"""Tables: one Table for a terminal, a pipe and Markdown."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mmrh_retriever.runs.tables import Cell, Table, print_tables

MEANS = Table.of(
    "Page recall",
    ["ranker", "recall@1", "mean of all"],
    [["ours", Cell("64.1", best=True), "70.2"], ["bm25", "58.0", Cell("71.9", best=True)]],
    notes=["177 questions."],
)


def rows_of(text: str, *names: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(names)]


def printed(*tables: Table, terminal: bool = False, width: int = 80) -> str:
    stream = io.StringIO()
    print_tables(tables, Console(file=stream, force_terminal=terminal, width=width))
    return stream.getvalue()


def test_one_table_as_markdown() -> None:
    assert MEANS.markdown() == (
        "Page recall\n\n"
        "| ranker | recall@1 | mean of all |\n"
        "| --- | ---: | ---: |\n"
        "| ours | **64.1** | 70.2 |\n"
        "| bm25 | 58.0 | **71.9** |\n"
        "\n- 177 questions.\n"
    )


def test_one_table_in_a_pipe() -> None:
    text = printed(MEANS)
    assert "\x1b" not in text
    assert [row.split() for row in rows_of(text, "ours", "bm25")] == [
        ["ours", "64.1*", "70.2"],
        ["bm25", "58.0", "71.9*"],
    ]
    assert text.index("Page recall") < text.index("ranker") < text.index("177 questions.")


def test_figures_stand_below_each_other_whether_best_or_not() -> None:
    ours, bm25 = rows_of(printed(MEANS), "ours", "bm25")
    assert ours.index("64.1") == bm25.index("58.0")
    assert ours.index("70.2") == bm25.index("71.9")


def test_the_best_is_bold_on_a_terminal() -> None:
    text = printed(MEANS, terminal=True)
    bold = re.findall(r"\x1b\[1m\s*([^\x1b]*?)\s*\x1b", text)
    assert {"64.1*", "71.9*"} <= set(bold)
    assert not {"58.0", "70.2"} & set(bold)


def test_without_a_best_there_are_no_stars() -> None:
    table = Table.of("", ["ranker", "mrr"], [["ours", "0.5"]])
    assert "*" not in printed(table)
    assert table.markdown() == "| ranker | mrr |\n| --- | ---: |\n| ours | 0.5 |\n"


def test_text_columns_are_words_and_have_no_star() -> None:
    table = Table.of("", ["model", "task", "mass"], [["m", Cell("text", best=True), "0.5"]], text_columns=2)
    assert "text*" not in printed(table)
    assert "| --- | --- | ---: |" in table.markdown()


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/]", "[red]", ":smile:", "C:\\[x]"])
def test_markup_in_texts_is_shown_as_it_is(text: str) -> None:
    table = Table.of(text, [text, "mrr"], [[text, "0.5"]], notes=[text])
    for terminal in (False, True):
        assert printed(table, terminal=terminal).count(text) == 4
    assert table.markdown().count(text) == 4


def test_a_bar_does_not_end_a_markdown_cell() -> None:
    table = Table.of("", ["a|b", "mrr"], [["c|d", Cell("e|f", best=True)]])
    for line in table.markdown().splitlines():
        assert line.replace(r"\|", "").count("|") == 3
    assert r"**e\|f**" in table.markdown()


@pytest.mark.parametrize("width", [40, 80])
def test_a_pipe_gets_a_table_as_wide_as_it_is(width: int) -> None:
    names = [f"measure number {i}" for i in range(30)]
    table = Table.of("", ["ranker", *names], [["a ranker with a long name", *[f"{i}.000" for i in range(30)]]])
    (row,) = rows_of(printed(table, width=width), "a ranker")
    assert row.split()[-30:] == [f"{i}.000" for i in range(30)]


def test_a_narrow_terminal_folds_and_loses_nothing() -> None:
    table = Table.of("", ["name", "value"], [["abcdefghijklmnopqrstuvwxyz", "1234567890"]])
    text = printed(table, terminal=True, width=20)
    assert "…" not in text
    assert all(letter in text for letter in "abcdefghijklmnopqrstuvwxyz1234567890")


def test_long_notes_are_not_broken_in_a_pipe() -> None:
    note = "word " * 60 + "end"
    assert note in printed(Table.of("", ["a"], [["b"]], notes=[note]))


def test_several_tables_and_none() -> None:
    assert printed(MEANS, MEANS).count("Page recall") == 2
    assert printed() == ""
