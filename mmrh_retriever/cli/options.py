"""What commands share: groups of options, how results are shown, and rerankers loaded."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.text import Text

from mmrh_retriever.errors import MMRHError
from mmrh_retriever.runs.plain_text import json_line, plain_text
from mmrh_retriever.runs.tables import Table, print_tables
from mmrh_retriever.settings import DEFAULT_FINAL_ROUND, FirstStage, QuestionWeights, RerankSettings, read_prompt

if TYPE_CHECKING:
    from mmrh_retriever.encoding.page_store import PageStore
    from mmrh_retriever.library.library import LibraryAnswer
    from mmrh_retriever.ranking.reranker import Reranker

stderr = Console(stderr=True)


def say(text: str) -> None:
    """A line on stderr, whatever it holds as plain text."""
    stderr.print(Text(plain_text(text)), soft_wrap=True)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options.

    Each parameter whose type is a dataclass stands for an option group: the dataclass's fields, annotated as typer's
    parameters are, become options of the command.
    """
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(command).items() if is_dataclass(kind)}

    @functools.wraps(command)
    def expanded(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option: given.pop(option) for option in inspect.signature(group).parameters})
        try:
            command(**given)
        except MMRHError as error:
            error.args = (_in_options(str(error), [parameter.name for parameter in parameters]),)
            raise

    parameters = list(_parameters(command))
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _in_options(message: str, names: Iterable[str]) -> str:
    """A message that speaks of arguments in Python, ``pages='9'`` or ``token_budget``, in a command's own options."""

    def option(found: re.Match[str]) -> str:
        name, switch, equals, value = found.groups()
        if not (switch or equals) and "_" not in name:  # a plain word
            return name
        return f"--{name.replace('_', '-')}{'' if value is None else ' '}"

    return re.sub(rf"(?<![\w/.-])({'|'.join(names)})(?:(=True\b)|(=)((?=[\w'\"]))?|\b(?!:))", option, message)


def _parameters(taker: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The arguments and options of a command or of a group."""
    hints: dict[str, Any] = get_type_hints(taker, include_extras=True)
    for name, parameter in inspect.signature(taker).parameters.items():
        if is_dataclass(hints[name]):
            yield from _parameters(hints[name])
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])


def take_renamed(options: object, old: str, new: str) -> None:
    """Give an option the value of its former name, if that was used, and say so on stderr."""
    value = getattr(options, old)
    if value is not None:
        say(f"DeprecationWarning: --{old.replace('_', '-')} is called --{new.replace('_', '-')} now.")
        object.__setattr__(options, new, value)


def repeatable(choices: Sequence[str], text: str) -> Any:
    """An option that may be given several times, each time one of the choices; typer takes no list of literals."""

    def parse(value: str) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return typer.Option(parser=parse, metavar=f"<{'|'.join(choices)}>", help=text)


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise typer.BadParameter(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


# Groups of options


class SettingOptions:
    """Options that are settings of the reranker by the same names."""

    def changes(self) -> dict[str, Any]:
        """As fields of :class:`RerankSettings`, those that were given."""
        given = {name: value for name, value in vars(self).items() if name in RerankSettings.model_fields}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class LoadingOptions(SettingOptions):
    """How a model is loaded."""

    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu ...; the best there is if left out.")] = None
    dtype: Annotated[str | None, typer.Option(help="The weights' type: bfloat16, float16 or float32.")] = None
    attn_implementation: Annotated[
        str | None, typer.Option("--attn-implementation", "--attention", help="sdpa, eager, flash_attention_2 ...")
    ] = None
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels per image, for models of any size.")] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")] = None
    model_args: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_keyword, metavar="KEY=VALUE", help="More for loading the model, values as JSON or text; repeatable."
        ),
    ] = None

    def changes(self) -> dict[str, Any]:
        """As fields of :class:`RerankSettings`."""
        return {**super().changes(), "model_kwargs": dict(self.model_args or ())}


@dataclass(frozen=True)
class ModelOptions(LoadingOptions):
    """A model, its heads, and how it is loaded."""

    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Hub id or folder; the bundled small model if left out.")
    ] = None
    heads: Annotated[str, typer.Option(help="'published', 'all', or the file of a head set or of detected scores.")] = (
        "published"
    )


@dataclass(frozen=True)
class WindowOptions(SettingOptions):
    """How the prompt is worded, how pages are put into windows, and how windows are compared."""

    prompt: Annotated[
        Path | None, typer.Option(help="A JSON file with the wording of the prompt: fields of PromptOptions.")
    ] = None
    window_pages: Annotated[int | None, typer.Option(min=1, help="Pages that are read together at most.")] = None
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens of pages that are read together.")] = None
    final_round: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=str(DEFAULT_FINAL_ROUND),
            help="Best pages of several windows that are compared once more; 0: none.",
        ),
    ] = None
    final_heat: Annotated[int | None, typer.Option(min=0, hidden=True, help="--final-round's former name.")] = None
    independent: Annotated[
        bool | None,
        typer.Option(
            "--independent/--together", help="Encode each page as if it stood alone; the model says by default."
        ),
    ] = None
    hybrid: Annotated[
        bool | None,
        typer.Option(
            "--hybrid/--images-only",
            help="Join attention with BM25 over text layers, or not; the model says by default.",
        ),
    ] = None
    text_weight: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The text layer's part of a hybrid score; half by default.")
    ] = None
    question_weights: Annotated[
        QuestionWeights | None,
        typer.Option(help="Let a question's tokens count alike, or frequent ones less; the model says by default."),
    ] = None
    calibrate: Annotated[
        bool, typer.Option(" /--no-calibration", show_default=False, help="Without the null question.")
    ] = True

    def __post_init__(self) -> None:
        take_renamed(self, "final_heat", "final_round")


@dataclass(frozen=True)
class LibraryOptions:
    """Where pages are kept for the next question, and which of them the model sees."""

    store: Annotated[Path | None, typer.Option(help="Keep encoded pages in this folder for the next question.")] = None
    first_stage: Annotated[
        FirstStage | None,
        typer.Option(help="Pick the pages that the model sees by their text; --store then keeps the texts, too."),
    ] = None
    candidates: Annotated[int | None, typer.Option(min=1, help="How many pages --first-stage picks.")] = None
    textless: Annotated[
        int | None, typer.Option(min=0, help="Pages without text that are looked at beside these; more are refused.")
    ] = None

    def __post_init__(self) -> None:
        for name in ("candidates", "textless"):
            if getattr(self, name) is not None and self.first_stage in (None, "all"):
                raise typer.BadParameter("goes with --first-stage bm25, embedding or hybrid", param_hint=f"--{name}")

    def ask(
        self, files: Sequence[Path], question: str, reranker: Reranker, *, backend: str, **options: Any
    ) -> LibraryAnswer:
        """What a library of files, read by a PDF backend, gives for a question."""
        from mmrh_retriever.library.library import Library
        from mmrh_retriever.library.settings import LibrarySettings

        named = {name: getattr(self, name) for name in ("first_stage", "candidates", "textless")}
        given = {name: value for name, value in named.items() if value is not None}
        settings = LibrarySettings.of(None, {**given, "pdf_backend": backend})
        return Library(files, folder=self.store, reranker=reranker, settings=settings).ask(question, **options)


@dataclass(frozen=True)
class OutputOptions:
    """What stands on stdout: tables for people, JSON lines, or Markdown."""

    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")] = False
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The tables in Markdown on stdout.")] = False

    def __post_init__(self) -> None:
        if self.as_json and self.as_markdown:
            raise typer.BadParameter("give one of --json and --markdown", param_hint="--markdown")

    def show(self, rows: Iterable[Mapping[str, Any]], tables: Callable[[], Sequence[Table]]) -> None:
        """Write results to stdout: the rows as JSON lines, or the tables."""
        if self.as_json:
            for row in rows:
                sys.stdout.write(json_line(row))
        elif self.as_markdown:
            sys.stdout.write(plain_text("\n".join(table.markdown() for table in tables())))
        else:
            print_tables(tables())


# Models


def settings_from(*groups: SettingOptions, base: RerankSettings | None = None) -> RerankSettings:
    """The settings that groups of options name, over those of a base; SettingsError for one out of its range."""
    changes = {name: value for group in groups for name, value in group.changes().items()}
    for group in groups:
        if isinstance(group, WindowOptions) and group.prompt is not None:
            changes["options"] = read_prompt(group.prompt, None if base is None else base.options)
    return RerankSettings.of(base, changes)


def load_reranker(
    model: ModelOptions, *more: SettingOptions, store: PageStore | None = None, **options: Any
) -> Reranker:
    """The reranker that options name, made with further ``options``; says on stderr when it is the bundled model."""
    from mmrh_retriever.model.loading import model_path
    from mmrh_retriever.ranking.reranker import Reranker

    settings = settings_from(model, *more)
    if model_path(model.model)[1]:
        say_bundled()
    with stderr.status("Loading the model ..."):
        return Reranker.from_pretrained(heads=model.heads, settings=settings, store=store, **options)


def say_bundled() -> None:
    """Say on stderr that the bundled model is used, and what it is for."""
    from mmrh_retriever.model.loading import BUNDLED_PURPOSE

    stderr.print(f"Using the small bundled model; name a larger one with --model. {BUNDLED_PURPOSE}", style="dim")


def rounded(entry: Mapping[str, Any], digits: int = 6) -> dict[str, Any]:
    """An entry for ``--json`` with its floats rounded."""
    return {key: round(value, digits) if isinstance(value, float) else value for key, value in entry.items()}
