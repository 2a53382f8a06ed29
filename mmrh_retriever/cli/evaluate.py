"""``mmrh evaluate``: measure rankers on annotated documents."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmrh_retriever.cli.options import (
    ModelOptions,
    OutputOptions,
    WindowOptions,
    grouped,
    say,
    say_bundled,
    settings_from,
    take_renamed,
)
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.evaluation.evaluate import Evaluation, Executor, evaluate, read_run
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import RankerSpec
from mmrh_retriever.evaluation.rows import Level
from mmrh_retriever.evaluation.run_settings import settings_of
from mmrh_retriever.evaluation.tables import markdown_tables, plot_comparison, result_tables
from mmrh_retriever.evaluation.trained_rerankers import RankerInput, TrainedKind
from mmrh_retriever.files import write_atomically
from mmrh_retriever.heads.published import published_head_set
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE, Aggregate
from mmrh_retriever.ranking.regions import RegionMethod
from mmrh_retriever.runs.plain_text import json_line
from mmrh_retriever.settings import RerankSettings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Measure rankers on annotated documents.")

SELECTED = "selected"
"""How results call the model with the heads that were asked for."""
BASELINES = ("images-only", "all-heads", "bm25", "embedding", "random")
"""What the model is compared with, in the order of the tables."""
TRAINED: dict[str, TrainedKind] = {"cross-encoder": "cross-encoder", "embedding": "sentence-transformer"}
"""Baselines that take a model's name behind a colon, which sentence-transformers loads."""
ExecutorName = Literal["local", "ray"]
Preset = Literal["paper"]


@dataclass(frozen=True)
class DataOptions:
    """Annotations, and where the pages come from."""

    annotations: Annotated[Path, typer.Option(help="MMDocIR_annotations.jsonl, or a file of the same form.")]
    documents: Annotated[Path | None, typer.Option(help="Folder of the PDFs.")] = None
    pages: Annotated[Path | None, typer.Option(help="MMDocIR_pages.parquet, instead of PDFs.")] = None
    layouts: Annotated[Path | None, typer.Option(help="MMDocIR_layouts.parquet.")] = None
    page_pixels: Annotated[int, typer.Option(min=1, help="Pixels that PDF pages are drawn with.")] = DEFAULT_MAX_PIXELS
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Missing PDFs count as zero.")] = False
    limit: Annotated[int | None, typer.Option(min=1, help="The first N documents only.")] = None

    def __post_init__(self) -> None:
        if (self.documents is None) == (self.pages is None):
            got = "neither" if self.documents is None else "both"
            raise typer.BadParameter(f"give one of --documents and --pages, got {got}", param_hint="--documents")
        if self.documents is not None and self.layouts is not None:
            raise typer.BadParameter("goes with --pages; boxes of PDFs are found in the PDFs", param_hint="--layouts")

    def settings(self, *, layout_images: bool) -> dict[str, Any]:
        """What must be alike when a run is resumed, beside the annotations."""
        if self.documents is not None:
            return {"source": "pdf", "page_pixels": self.page_pixels}
        return {"source": "parquet", "layout_images": layout_images}

    def read(self, *, layout_images: bool) -> MMDocIR:
        """The data; DataError for annotations or pages that can't be read, or that don't fit each other."""
        if self.documents is not None:
            data = MMDocIR.from_pdfs(
                self.annotations, self.documents, max_pixels=self.page_pixels, allow_missing=self.allow_missing
            )
        else:
            data = MMDocIR.from_parquet(
                self.annotations, Path(str(self.pages)), self.layouts, layout_images=layout_images
            )
        return data if self.limit is None else data.first(self.limit)


def _baseline(value: str) -> str:
    kind, _, name = value.partition(":")
    if value in BASELINES or (kind in TRAINED and name):
        return value
    known = ", ".join((*BASELINES, *(f"{kind}:NAME" for kind in TRAINED)))
    raise typer.BadParameter(f"{value!r} is not one of {known}")


@dataclass(frozen=True)
class RankerOptions:
    """What is ranked, and what the model is compared with."""

    preset: Annotated[
        Preset | None, typer.Option(help="The paper's protocol; options given beside it take precedence.")
    ] = None
    level: Annotated[Level, typer.Option(help="Rank pages, or the layout boxes on them.")] = "page"
    aggregate: Annotated[Aggregate, typer.Option(help="Layout level: from visual tokens to a box's score.")] = (
        DEFAULT_AGGREGATE
    )
    region_method: Annotated[
        RegionMethod | None,
        typer.Option(
            show_default="page, with --preset paper crops",
            help="Layout level: from the page pass, or each box as an image (the paper).",
        ),
    ] = None
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            parser=_baseline,
            metavar=f"<{'|'.join(BASELINES)}|cross-encoder:NAME|embedding:NAME>",
            help="Run beside the model; repeatable. NAME: a model of sentence-transformers, hub id or folder.",
        ),
    ] = None
    baseline_input: Annotated[
        RankerInput, typer.Option(help="What named baselines read of a page: its text layer or its image.")
    ] = "text"
    baseline_own_code: Annotated[
        bool, typer.Option("--baseline-own-code", help="Run Python code that named baselines bring. Read it before.")
    ] = False
    baselines_only: Annotated[bool, typer.Option("--baselines-only", help="Leave the model itself out.")] = False
    embedding_model: Annotated[str | None, typer.Option(help="Sentence encoder of the embedding baseline.")] = None
    seed: Annotated[int, typer.Option(help="Seed of the random baseline.")] = 0

    def __post_init__(self) -> None:
        if self.baselines_only and not self.baseline:
            raise typer.BadParameter("leaves nothing to run; name a --baseline", param_hint="--baselines-only")

    @property
    def base(self) -> RerankSettings | None:
        """The settings of the preset, if one was asked for."""
        return None if self.preset is None else RerankSettings.paper(self.level)

    @property
    def method(self) -> RegionMethod:
        """How boxes are scored."""
        return self.region_method or ("page" if self.preset is None else "crops")

    @property
    def layout_images(self) -> bool:
        """Whether boxes are shown as the layouts file has them, and not cut out of their pages."""
        return self.preset is not None and self.level == "layout" and self.method == "crops"

    def rankers(self, heads: str, settings: RerankSettings) -> dict[str, RankerSpec]:
        """The model and its baselines by name, in the order of the tables."""
        boxes: dict[str, Any] = {"aggregate": self.aggregate, "region_method": self.method}
        made = {
            SELECTED: RankerSpec("heads", heads=heads, settings=settings, **boxes),
            "images-only": RankerSpec("heads", heads=heads, settings=settings, **boxes, hybrid=False),
            "all-heads": RankerSpec("heads", heads="all", settings=settings, **boxes),
            "bm25": RankerSpec("bm25"),
            "embedding": RankerSpec("embedding", model=self.embedding_model, device=settings.device),
            **self._trained(settings),
            "random": RankerSpec("random", seed=self.seed),
        }
        wanted = {*(self.baseline or ()), *self._trained(settings), *(() if self.baselines_only else (SELECTED,))}
        return {name: ranker for name, ranker in made.items() if name in wanted}

    def _trained(self, settings: RerankSettings) -> dict[str, RankerSpec]:
        """The baselines that have a model's name, by what tables call them."""
        common: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
        common |= {"reads": self.baseline_input, "own_code": self.baseline_own_code}
        named = [(value, *value.split(":", 1)) for value in self.baseline or () if ":" in value]
        images = " (images)" if self.baseline_input == "image" else ""
        return {f"{value}{images}": RankerSpec(TRAINED[kind], model=name, **common) for value, kind, name in named}


@dataclass(frozen=True)
class ExecutorOptions:
    """What runs the documents."""

    executor: Annotated[ExecutorName, typer.Option(help="Here, or over a Ray cluster.")] = "local"
    engine: Annotated[ExecutorName | None, typer.Option(hidden=True, help="--executor's former name.")] = None
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; one per GPU, or one, by default.")] = None
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster; a local one if left out.")] = None

    def __post_init__(self) -> None:
        take_renamed(self, "engine", "executor")
        if self.executor == "local" and (self.workers is not None or self.ray_address is not None):
            raise typer.BadParameter("--workers and --ray-address go with --executor ray", param_hint="--executor")

    def made(self, data: MMDocIR, rankers: Mapping[str, RankerSpec], level: Level) -> Executor | None:
        """The executor; ``None`` for this process."""
        if self.executor == "local":
            return None
        from mmrh_retriever.evaluation.ray_executor import RayExecutor

        return RayExecutor(data, rankers, level, workers=self.workers, address=self.ray_address)


@app.command()
@grouped
def mmdocir(
    data: DataOptions,
    out: Annotated[Path, typer.Option(help="The run's folder: journal, rows, summary, tables.")],
    ranked: RankerOptions,
    model: ModelOptions,
    window: WindowOptions,
    executor: ExecutorOptions,
    output: OutputOptions,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the comparison to this file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything up to loading the model.")] = False,
) -> None:
    """Page or layout recall on MMDocIR, micro and macro over the domains.

    The paper's table: --preset paper --pages MMDocIR_pages.parquet --layouts MMDocIR_layouts.parquet
    --model Qwen/Qwen3-VL-8B-Instruct
    """
    if ranked.level == "layout" and data.pages is not None and data.layouts is None:
        raise typer.BadParameter("layout level with --pages needs --layouts", param_hint="--layouts")
    rankers = ranked.rankers(model.heads, settings_from(model, window, base=ranked.base))
    if model.model is None and any(ranker.needs_model for ranker in rankers.values()):
        say_bundled()
    dataset = data.read(layout_images=ranked.layout_images)
    about = data.settings(layout_images=ranked.layout_images)
    if dry_run:
        _dry_run(settings_of(dataset, rankers, level=ranked.level, more=about))
        return
    found = evaluate(
        dataset,
        rankers,
        out,
        level=ranked.level,
        executor=executor.made(dataset, rankers, ranked.level),
        resume=resume,
        settings=about,
    )
    write_atomically(out / "tables.md", markdown_tables(found).encode())
    _check_results(found, out)
    if plot is not None:
        plot_comparison(found, plot)
    _show([found], output)


Runs = Annotated[list[Path], typer.Argument(help="Folders of finished runs (--out).")]


@app.command()
@grouped
def tables(runs: Runs, output: OutputOptions) -> None:
    """Show the tables of finished runs again, without running anything."""
    _show([read_run(folder) for folder in runs], output)


@app.command(hidden=True)
@grouped
def report(runs: Runs, output: OutputOptions) -> None:
    """The former name of ``tables``."""
    say("DeprecationWarning: mmrh evaluate report is called mmrh evaluate tables now.")
    _show([read_run(folder) for folder in runs], output)


def _check_results(found: Evaluation, out: Path) -> None:
    """Refuse to show zeros for a ranker that gave no document a result."""
    for name, parts in found.parts.items():
        if all(part.failed for part in parts):
            first = parts[0]
            raise DataError(
                f"{name} has no result for any of the {len(parts)} documents. {first.document}: {first.rows[0].error} "
                f"The other reasons are in {out / 'rows.jsonl'}. Correct them, and run it again with --resume."
            )


def _dry_run(settings: dict[str, Any]) -> None:
    """Say what would be run, and how many heads the model would be given, as far as its name says."""
    for name, spec in settings["rankers"].items():
        known = spec["kind"] == "heads" and spec["heads"] == "published" and "model_fingerprint" not in spec
        if not known or spec["model"] == "bundled":
            continue
        try:
            settings.setdefault("heads", {})[name] = len(published_head_set(spec["model"]))
        except HeadSetError as error:
            say(f"The heads of {name} depend on the model's configuration, which is read with it: {error}")
    sys.stdout.write(json_line(settings))


def _show(runs: list[Evaluation], output: OutputOptions) -> None:
    for found in runs:
        for name, reason in found.failed.items():
            say(f"{name} counts as zero: {reason}")
    rows = (found.as_dict(ranker) for found in runs for ranker in found.summaries)
    output.show(rows, lambda: [table for found in runs for table in result_tables(found)])
