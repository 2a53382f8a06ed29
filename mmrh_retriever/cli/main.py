"""``mmrh``: the commands together. Results on stdout, everything else on stderr.

Exit codes: 0 done, 2 bad arguments, 1 a failure that the message explains.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated, cast

import typer
from rich.logging import RichHandler
from transformers.utils import logging as transformers_logging

import mmrh_retriever
from mmrh_retriever.cli import evaluate
from mmrh_retriever.cli.bench import bench_command
from mmrh_retriever.cli.causal import causal_command
from mmrh_retriever.cli.detect import detect_command
from mmrh_retriever.cli.heads import heads_command
from mmrh_retriever.cli.options import say, stderr
from mmrh_retriever.cli.plan import plan_command
from mmrh_retriever.cli.rank import rank_command
from mmrh_retriever.errors import MMRHError
from mmrh_retriever.runs.plain_text import plain_text

_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)  # click's, which newer typers bring along

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command("rank")(rank_command)
app.command("detect")(detect_command)
app.command("heads")(heads_command)
app.command("causal")(causal_command)
app.add_typer(evaluate.app, name="evaluate")
app.command("bench")(bench_command)
app.command("plan")(plan_command)


def main(arguments: list[str] | None = None) -> None:
    """Run ``mmrh`` on ``sys.argv``, or on ``arguments``; failures that we know become a message and exit code 1."""
    _log_plainly()
    if not stderr.is_terminal:
        transformers_logging.disable_progress_bar()
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except _UsageError as error:
        from typer.rich_utils import rich_format_error

        error.message = plain_text(error.message)
        rich_format_error(error)
        sys.exit(error.exit_code)
    except (MMRHError, OSError, ImportError, typer.Abort) as error:  # an ImportError names the extra to install
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
    warnings.formatwarning = lambda message, category, file, line, *_: plain_text(
        f"{file}:{line}: {category.__name__}: {message}\n"
    )


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
