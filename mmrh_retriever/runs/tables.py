"""Tables, whatever they are shown as: a terminal, a pipe, Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from mmrh_retriever.runs.plain_text import plain_text

_PIPED_WIDTH = 100
_UNBOUNDED = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table; ``best`` marks the best figure of its column or row."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column names, rows, and notes below them. The first ``text_columns`` columns hold words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1

    @classmethod
    def of(
        cls,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Cell]],
        *,
        notes: Sequence[str] = (),
        text_columns: int = 1,
    ) -> Table:
        """From texts and cells."""
        cells = tuple(tuple(item if isinstance(item, Cell) else Cell(item) for item in row) for row in rows)
        return cls(title, tuple(columns), cells, tuple(notes), text_columns)

    def markdown(self) -> str:
        """The table in Markdown, its title above and its notes below it; the best figures are bold."""
        cells = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in self.rows]
        rule = ["---" if number < self.text_columns else "---:" for number in range(len(self.columns))]
        escaped = ([text.replace("|", r"\|") for text in line] for line in (self.columns, rule, *cells))
        lines = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
        notes = "\n" + "".join(f"- {note}\n" for note in self.notes) if self.notes else ""
        return (f"{self.title}\n\n" if self.title else "") + lines + notes

    def rich(self) -> RichTable:
        """The table for a terminal; the best figures are bold and have a star, which a pipe keeps."""
        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(self.columns):
            side: Literal["left", "right"] = "left" if number < self.text_columns else "right"
            heading = name if side == "left" else "\n".join(name.rsplit(" ", 1))
            made.add_column(Text(plain_text(heading)), justify=side, overflow="fold", vertical="bottom")
        starred = any(cell.best for row in self.rows for cell in row)
        for row in self.rows:
            made.add_row(*(self._shown(cell, number, starred=starred) for number, cell in enumerate(row)))
        return made

    def _shown(self, cell: Cell, number: int, *, starred: bool) -> Text | Padding:
        text = plain_text(cell.text)
        if number < self.text_columns:
            return Text(text)
        if cell.best:
            return Text(text + "*", "bold")
        return Padding(Text(text), (0, int(starred), 0, 0))  # room for the star, so that figures are aligned


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables with their notes, one below the other; a pipe gets them as wide as they are."""
    console = console or Console()
    made = [table.rich() for table in tables]
    if not console.is_terminal:  # nobody can widen a file: nothing is cut there
        room = console.options.update(width=_UNBOUNDED)
        console.width = max([_PIPED_WIDTH, *(console.measure(table, options=room).maximum for table in made)])
    for number, (table, shown) in enumerate(zip(tables, made, strict=True)):
        if number:
            console.print()
        if table.title:  # rich would wrap a table's own title to the table's width
            console.print(Text(plain_text(table.title), "bold"), soft_wrap=True)
        console.print(shown)
        for note in table.notes:
            console.print(Text(plain_text(note)), soft_wrap=True)
