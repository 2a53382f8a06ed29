"""``mmrh``: the commands together. Results on stdout, everything else on stderr.

Exit codes: 0 done, 2 bad arguments, 1 a failure that the message explains, 130 interrupted (Ctrl+C).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup

import mmrh_retriever
from mmrh_retriever.cli.options import say, stderr
from mmrh_retriever.errors import MMRHError
from mmrh_retriever.runs.plain_text import plain_text

_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)  # click's, which newer typers bring along

COMMANDS = {
    "rank": "Rank the pages of files for a question, best first.",
    "detect": "Find a model's retrieval heads: null-calibrated attention from questions to needles, one score per "
    "head.",
    "heads": "Show a model's retrieval heads: sparsity, overlaps, depth, the best heads.",
    "causal": "Accuracy with no heads masked, the selected ones masked, and as many random ones.",
    "evaluate": "Measure rankers on annotated documents.",
    "calibrate": "Learn the probability that a page is evidence, from questions whose pages are there and taken away.",
    "bench": "Measure our speed against the paper's procedure on plain transformers, both in one run.",
    "serve": "Serve reranking over HTTP: documents in Cohere's and Jina's shape, and files that are asked "
    "many questions.",
    "plan": "Say what ranking pages takes: tokens, windows, memory, operations. No weights are loaded or downloaded.",
}
"""The commands in the order of the help, with the first line of each one's own help."""


class Commands(TyperGroup):
    """A group whose commands are imported when they are called, so that its own help comes at once."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that arguments name, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and command_of(str(name)), rest


def command_of(name: str) -> Any:
    """A command of :data:`COMMANDS`, from the module of its name."""
    module = import_module(f"mmrh_retriever.cli.{name}")
    holder = typer.Typer()
    if hasattr(module, "app"):
        holder.add_typer(module.app, name=name)
    else:
        holder.command(name)(getattr(module, f"{name}_command"))
    return typer.main.get_group(holder).commands[name]


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main(arguments: list[str] | None = None) -> None:
    """Run ``mmrh`` on ``sys.argv``, or on ``arguments``; failures that we know become a message and exit code 1."""
    _log_plainly()
    if not stderr.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars, too
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except _UsageError as error:
        from typer.rich_utils import rich_format_error

        error.message = plain_text(error.message)
        rich_format_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (MMRHError, OSError, ImportError) as error:  # an ImportError names the extra to install
        stderr.print("[bold red]Error:[/]", end=" ")
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)


class _PlainRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return plain_text(super().getMessage())


def _log_plainly() -> None:
    """Send what is logged, by other libraries too, and warnings to stderr as plain text."""
    logging.setLogRecordFactory(_PlainRecord)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=stderr)])
    warnings.formatwarning = lambda message, category, *_: plain_text(f"{category.__name__}: {message}\n")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mmrh-retriever {mmrh_retriever.__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Rank the pages of documents by what a vision-language model's retrieval heads look at."""


if __name__ == "__main__":
    main()
