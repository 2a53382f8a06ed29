"""``mmrh causal``: mask a model's retrieval heads and see what it can still answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmrh_retriever.cli.options import LoadingOptions, OutputOptions, grouped, rounded
from mmrh_retriever.cli.probes import LoadedModel, ProbeOptions, load_for_probes
from mmrh_retriever.files import write_atomically, write_json
from mmrh_retriever.heads.published import resolve_heads
from mmrh_retriever.research.causal import CausalSettings, causal_journal, causal_rows, keep_rows, save_rows
from mmrh_retriever.research.causal_tables import causal_table, plot_causal, summarise_causal
from mmrh_retriever.research.probes.long_documents import DOCUMENT_PROMPT, read_long_documents
from mmrh_retriever.research.probes.probe import Probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CausalProbeOptions(ProbeOptions):
    """Probes built from a haystack, or questions about documents."""

    seed: Annotated[int, typer.Option(help="Seed of the probes; detect with another.")] = 1
    questions: Annotated[
        Path | None, typer.Option(help="JSON lines of document, question, answer: ask about documents instead.")
    ] = None
    documents: Annotated[Path | None, typer.Option(help="Folder of the PDFs that --questions names.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="The first N of --questions.")] = None
    max_pages: Annotated[int | None, typer.Option(min=1, help="The first N pages of each document.")] = None

    def __post_init__(self) -> None:
        if (self.questions is None) != (self.documents is None):
            raise typer.BadParameter("--questions and --documents go together")

    def probes(self, model: LoadedModel) -> Iterator[Probe]:
        """The probes, made as they are asked for. For errors see the readers of probes."""
        if self.questions is None or self.documents is None:
            return super().probes(model)
        return read_long_documents(
            self.questions, self.documents, model.count, limit=self.limit, max_pages=self.max_pages
        )

    def total(self, model: LoadedModel) -> int | None:
        """How many probes there will be, if that is known."""
        return super().total(model) if self.questions is None else self.limit

    def questions_read(self) -> dict[str, Any] | None:
        """What must be alike when a run over documents is resumed."""
        if self.questions is None:
            return None
        return {"file": self.questions.name, "limit": self.limit, "max_pages": self.max_pages}


@dataclass(frozen=True)
class MaskingOptions:
    """How probes are answered, and what is masked."""

    random_seeds: Annotated[int, typer.Option(min=1, help="Draws of each random control.")] = 5
    random_from: Annotated[
        Literal["others", "all"],
        typer.Option(help="Draw random heads from the others alone, or from all, the selected ones too."),
    ] = "others"
    answering: Annotated[
        Literal["auto", "generate", "choices"],
        typer.Option(help="Freely, by the likelihood of each choice, or as each probe allows."),
    ] = "auto"
    phase: Annotated[
        Literal["both", "all", "decode"], typer.Option(help="Mask while reading and answering, or answering alone.")
    ] = "both"
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest free answer.")] = 32

    def settings(self) -> CausalSettings:
        """As settings of the causal test."""
        return CausalSettings(
            answering=None if self.answering == "auto" else self.answering,
            random_seeds=self.random_seeds,
            random_from=self.random_from,
            phases=("all", "decode") if self.phase == "both" else (self.phase,),
            max_new_tokens=self.max_new_tokens,
        )


@grouped
def causal_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a model, or 'bundled'.")],
    heads: Annotated[str, typer.Option(help="The heads to mask: a head set or scores file, or 'published'.")],
    out: Annotated[Path, typer.Option(help="Folder for answers, rows.jsonl, summary.json, tables.md and causal.png.")],
    probes: CausalProbeOptions,
    masking: MaskingOptions,
    loading: LoadingOptions,
    output: OutputOptions,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
) -> None:
    """Accuracy with no heads masked, the selected ones masked, and as many random ones."""
    loaded = load_for_probes(model, loading)
    selected = resolve_heads(heads, loaded.backbone.facts)
    how = masking.settings()
    prompt = None if probes.questions is None else DOCUMENT_PROMPT
    settings: dict[str, Any] = {
        "model": loaded.name,
        "heads": [str(head) for head in selected],
        "probes": probes.settings(loaded),
        "questions": probes.questions_read(),
        "answering": masking.answering,
        "phases": list(how.phases),
        "random_seeds": how.random_seeds,
        "random_from": how.random_from,
        "max_new_tokens": how.max_new_tokens,
    }
    with causal_journal(out, settings, resume=resume) as journal:
        rows = causal_rows(
            loaded.model,
            loaded.processors,
            probes.probes(loaded),
            selected,
            how,
            prompt=prompt,
            finished=set(journal.done),
            progress=True,
            total=probes.total(loaded),
        )
        summary = summarise_causal(save_rows(keep_rows(rows, journal), out / "rows.jsonl"))
    about = {"model": loaded.name, "heads": heads, "probes_from": probes.settings(loaded)}
    write_json(out / "summary.json", {**about, **summary})
    table = causal_table(summary)
    write_atomically(out / "tables.md", table.markdown().encode())
    try:
        plot_causal(summary, out / "causal.png")
    except ImportError as error:
        logger.warning("No plot: %s", error)
    output.show(map(rounded, summary["overall"]), lambda: [table])
