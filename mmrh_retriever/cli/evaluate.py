"""``mmrh evaluate``: measure rankers on annotated documents. Results on stdout, everything else on stderr.

Exit codes: 0 done, 2 bad arguments, 1 a failure that the message explains.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mmrh_retriever.errors import HeadSetError, MMRHError
from mmrh_retriever.evaluation.evaluate import Engine, Evaluation, evaluate, read_run, settings_of
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import RankerSpec
from mmrh_retriever.evaluation.rows import Level, Settings
from mmrh_retriever.evaluation.tables import as_rich, markdown_report, notes, plot_comparison, result_tables
from mmrh_retriever.files import write_atomically
from mmrh_retriever.heads.published import published_head_set
from mmrh_retriever.pdf.reader import DEFAULT_MAX_PIXELS
from mmrh_retriever.ranking.region_scores import DEFAULT_AGGREGATE
from mmrh_retriever.settings import DEFAULT_FINAL_ROUND

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Measure rankers on annotated documents.")

_PIPED_WIDTH = 100
_ROOM = 10_000
SELECTED = "selected"
"""How results call the model with the heads that were asked for."""


class LevelName(str, Enum):
    """What is ranked."""

    page = "page"
    layout = "layout"


class BaselineName(str, Enum):
    """What the model is compared with, in the order of the tables."""

    all_heads = "all-heads"
    bm25 = "bm25"
    embedding = "embedding"
    random = "random"


class AggregateName(str, Enum):
    """How visual tokens under a box become its score."""

    sum = "sum"
    mean = "mean"
    sqrt_area = "sqrt_area"
    peak = "peak"


_AGGREGATE = AggregateName(DEFAULT_AGGREGATE)


class RegionMethodName(str, Enum):
    """Where boxes' scores come from."""

    page = "page"
    crops = "crops"


class EngineName(str, Enum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line and ranker on stdout.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="The tables in Markdown on stdout.")]


@app.callback()
def options() -> None:
    """Measure rankers on annotated documents."""


@app.command()
def mmdocir(
    annotations: Annotated[Path, typer.Option(help="MMDocIR_annotations.jsonl, or a file of the same form.")],
    out: Annotated[Path, typer.Option(help="The run's folder: rows, settings, summary, tables.")],
    documents: Annotated[Path | None, typer.Option(help="Folder of the PDFs.")] = None,
    pages: Annotated[Path | None, typer.Option(help="MMDocIR_pages.parquet, instead of PDFs.")] = None,
    layouts: Annotated[Path | None, typer.Option(help="MMDocIR_layouts.parquet.")] = None,
    level: Annotated[LevelName, typer.Option(help="Rank pages, or the layout boxes on them.")] = LevelName.page,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; the bundled small model if left out.")] = None,
    heads: Annotated[str, typer.Option(help="'published', 'all', or a file of heads or scores.")] = "published",
    baseline: Annotated[list[BaselineName] | None, typer.Option(help="Run beside the model; repeatable.")] = None,
    baselines_only: Annotated[bool, typer.Option("--baselines-only", help="Leave the model itself out.")] = False,
    embedding_model: Annotated[str | None, typer.Option(help="Sentence encoder of the embedding baseline.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N documents only.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens of pages that are read together.")] = None,
    final_heat: Annotated[
        int, typer.Option(min=0, help="Best pages of several windows that are compared once more; 0: none.")
    ] = DEFAULT_FINAL_ROUND,
    independent: Annotated[
        bool | None,
        typer.Option(
            "--independent/--together", help="Encode each page as if it stood alone; the model says by default."
        ),
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels a page, for models of any size.")] = None,
    aggregate: Annotated[
        AggregateName, typer.Option(help="Layout level: from visual tokens to a box's score.")
    ] = _AGGREGATE,
    region_method: Annotated[
        RegionMethodName, typer.Option(help="Layout level: from the page pass, or each box as an image (the paper).")
    ] = RegionMethodName.page,
    page_pixels: Annotated[int, typer.Option(min=1, help="Pixels that PDF pages are drawn with.")] = DEFAULT_MAX_PIXELS,
    no_calibration: Annotated[bool, typer.Option("--no-calibration", help="Without the null question.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Missing PDFs count as zero.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random baseline.")] = 0,
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu ...; the best there is if left out.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16, float32.")] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="sdpa, flash_attention_2, eager ...")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Here, or over a Ray cluster.")] = EngineName.local,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; one a GPU, or one, by default.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster; a local one if left out.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the comparison to this file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything up to loading the model.")] = False,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Page or layout recall on MMDocIR, micro and macro over the domains.

    The paper's table: --pages MMDocIR_pages.parquet --layouts MMDocIR_layouts.parquet
    --model Qwen/Qwen3-VL-8B-Instruct --heads published --token-budget 131072 --final-heat 0
    """
    _check_arguments(
        documents, pages, layouts, level, baseline, baselines_only, engine, workers, ray_address, as_json, as_markdown
    )
    shared = RankerSpec(
        "heads",
        model=model,
        heads=heads,
        calibrate=not no_calibration,
        token_budget=token_budget,
        independent=independent,
        final_heat=final_heat,
        max_pixels=max_pixels,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        revision=revision,
        aggregate=aggregate.value,
        region_method=region_method.value,
    )
    rankers = _rankers(shared, baseline or [], baselines_only, embedding_model, seed)
    try:
        if documents is not None:
            data = MMDocIR.from_pdfs(annotations, documents, max_pixels=page_pixels, allow_missing=allow_missing)
            about: dict[str, Any] = {"source": "pdf", "page_pixels": page_pixels}
        else:
            data = MMDocIR.from_parquet(annotations, Path(str(pages)), layouts)
            about = {"source": "parquet"}
        data = data if limit is None else data.first(limit)
        if dry_run:
            _dry_run(settings_of(data, rankers, level=level.value, more=about))
            return
        found = evaluate(
            data,
            rankers,
            out,
            level=level.value,
            engine=_engine(engine, data, rankers, level.value, workers, ray_address),
            resume=resume,
            settings=about,
        )
        write_atomically(out / "report.md", markdown_report(found).encode())
        if plot is not None:
            plot_comparison(found, plot)
    except (MMRHError, OSError, ImportError) as error:
        _say(f"Error: {type(error).__name__}: {error}")
        raise typer.Exit(1) from error
    _show(found, as_json=as_json, as_markdown=as_markdown)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs (--out).")],
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Show the tables of finished runs again, without running anything."""
    if as_json and as_markdown:
        raise typer.BadParameter("give one of --json and --markdown", param_hint="--markdown")
    try:
        found = [read_run(folder) for folder in runs]
    except MMRHError as error:
        _say(f"Error: {type(error).__name__}: {error}")
        raise typer.Exit(1) from error
    for place, evaluation in enumerate(found):
        if place and not as_json:
            sys.stdout.write("\n")
        _show(evaluation, as_json=as_json, as_markdown=as_markdown)


def _check_arguments(
    documents: Path | None,
    pages: Path | None,
    layouts: Path | None,
    level: LevelName,
    baseline: Sequence[BaselineName] | None,
    baselines_only: bool,
    engine: EngineName,
    workers: int | None,
    ray_address: str | None,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Refuse what can't be meant, with exit code 2."""
    if (documents is None) == (pages is None):
        got = "neither" if documents is None else "both"
        raise typer.BadParameter(f"give one of --documents and --pages, got {got}", param_hint="--documents")
    if documents is not None and layouts is not None:
        raise typer.BadParameter("goes with --pages; boxes of PDFs are found in the PDFs", param_hint="--layouts")
    if level is LevelName.layout and pages is not None and layouts is None:
        raise typer.BadParameter("layout level with --pages needs --layouts", param_hint="--layouts")
    if as_json and as_markdown:
        raise typer.BadParameter("give one of --json and --markdown", param_hint="--markdown")
    if baselines_only and not baseline:
        raise typer.BadParameter("leaves nothing to run; name a --baseline", param_hint="--baselines-only")
    if engine is EngineName.local and (workers is not None or ray_address is not None):
        raise typer.BadParameter("--workers and --ray-address go with --engine ray", param_hint="--engine")


def _rankers(
    shared: RankerSpec, baselines: Sequence[BaselineName], baselines_only: bool, embedding: str | None, seed: int
) -> dict[str, RankerSpec]:
    made = {
        BaselineName.bm25: RankerSpec("bm25"),
        BaselineName.random: RankerSpec("random", seed=seed),
        BaselineName.embedding: RankerSpec("embedding", model=embedding, device=shared.device),
        BaselineName.all_heads: replace(shared, heads="all"),
    }
    found = {} if baselines_only else {SELECTED: shared}
    found |= {name.value: made[name] for name in BaselineName if name in baselines}
    if any(spec.needs_model for spec in found.values()) and shared.model is None:
        _say("Using the small bundled model; name a larger one with --model.")
    return found


def _engine(
    name: EngineName,
    data: MMDocIR,
    rankers: dict[str, RankerSpec],
    level: Level,
    workers: int | None,
    address: str | None,
) -> Engine | None:
    if name is EngineName.local:
        return None
    from mmrh_retriever.evaluation.ray_executor import RayExecutor

    return RayExecutor(data, rankers, level, workers=workers, address=address)


def _dry_run(settings: Settings) -> None:
    """Say what would be run, and how many heads the model would be given, as far as its name tells."""
    plan = settings.model_dump(mode="json")
    for name, spec in settings.rankers.items():
        known = spec["kind"] == "heads" and spec["heads"] == "published" and "model_fingerprint" not in spec
        if not known or spec["model"] == "bundled":
            continue
        try:
            plan.setdefault("heads", {})[name] = len(published_head_set(spec["model"]))
        except HeadSetError as error:
            _say(f"The heads of {name} depend on the model's configuration, which is read with it: {error}")
    sys.stdout.write(json.dumps(plan) + "\n")


def _show(found: Evaluation, *, as_json: bool, as_markdown: bool) -> None:
    for name, reason in found.failed.items():
        _say(f"{name} counts as zero: {reason}")
    if as_json:
        for ranker in found.summaries:
            sys.stdout.write(json.dumps(found.as_dict(ranker)) + "\n")
        return
    if as_markdown:
        sys.stdout.write(markdown_report(found))
        return
    console = Console()
    first, *others = map(as_rich, result_tables(found))
    if not console.is_terminal:  # nobody can widen a file: nothing is cut there
        room = console.options.update(width=_ROOM)
        console.width = max(_PIPED_WIDTH, *(console.measure(table, options=room).maximum for table in (first, *others)))
    console.print(first)
    for line in notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for table in others:
        console.print("", table)


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
