"""What ``mmrh detect`` and ``mmrh causal`` share: options of probes, and models loaded for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel

from mmrh_retriever.cli.options import LoadingOptions, repeatable, settings_from
from mmrh_retriever.errors import ContextOverflowError, DataError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.loading import BUNDLED, Processors, load_model, model_path
from mmrh_retriever.model.prompts import Prompter
from mmrh_retriever.research.probes.builder import ProbeBuilder
from mmrh_retriever.research.probes.haystacks import Haystack
from mmrh_retriever.research.probes.mm_niah import read_mm_niah
from mmrh_retriever.research.probes.probe import TASKS, CountTokens, Probe, Task
from mmrh_retriever.research.probes.prompts import token_counter

DEFAULT_IMAGE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with what its probes need."""

    model: PreTrainedModel
    processors: Processors
    name: str
    backbone: Backbone
    count: CountTokens


def load_for_probes(model: str, options: LoadingOptions) -> LoadedModel:
    """A model by hub id or folder, or the bundled one by the name ``bundled``. For errors see :func:`load_model`."""
    path, bundled = model_path(model)
    loaded, processors = load_model(path, **settings_from(options).loading())
    backbone = Backbone.of(loaded)
    counter = token_counter(Prompter(backbone, processors.tokenizer, processors.image_processor))
    return LoadedModel(loaded, processors, BUNDLED if bundled else model, backbone, counter)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise typer.BadParameter(f"expected different token counts from 1, such as 8192,16384, got {text!r}")
    return lengths


@dataclass(frozen=True)
class ProbeOptions:
    """How the probes of ``mmrh detect`` and ``mmrh causal`` are made."""

    task: Annotated[list[Any] | None, repeatable(TASKS, "Repeatable; all that fit the model if left out.")] = None
    lengths: Annotated[
        Any, typer.Option(parser=_lengths, metavar="N,N,...", help="Context lengths in tokens, such as 8192,16384.")
    ] = "8192"
    haystack: Annotated[
        list[Path] | None, typer.Option(help="PDF, text and image files or folders to hide needles in; repeatable.")
    ] = None
    mm_niah: Annotated[Path | None, typer.Option(help="MMLongBench's NIAH folder, instead of built probes.")] = None
    mm_niah_images: Annotated[Path | None, typer.Option(help="Where its image paths start.")] = None
    examples: Annotated[int, typer.Option(min=1, help="Questions per task and length.")] = 20
    depths: Annotated[int, typer.Option(min=1, help="Needle depths per question.")] = 6
    image_share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of pictures in the haystack; 0.1 if left out.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the probes.")] = 0
    cloze: Annotated[
        bool, typer.Option("--cloze", help="Ask with the needle's beginning, for models that complete.")
    ] = False

    def settings(self, model: LoadedModel) -> dict[str, Any]:
        """What must be alike when a run is resumed."""
        return {
            **{name: getattr(self, name) for name in ("lengths", "examples", "depths", "seed", "cloze")},
            "tasks": self.tasks_for(model),
            "haystack": [path.name for path in self.haystack or ()],
            "mm_niah": None if self.mm_niah is None else self.mm_niah.name,
            "image_share": self.share_for(model),
        }

    def tasks_for(self, model: LoadedModel) -> tuple[Task, ...]:
        """The tasks asked for; all that the model can take if none are."""
        if self.task:
            return tuple(dict.fromkeys(self.task))
        every: tuple[Task, ...] = ("text", "rendered_text") if self.cloze else TASKS
        return every if model.backbone.takes_images else ("text",)

    def share_for(self, model: LoadedModel) -> float:
        """The image share asked for; 0.1 if none is, and 0 for text-only models."""
        if self.image_share is not None:
            return self.image_share
        return DEFAULT_IMAGE_SHARE if model.backbone.takes_images else 0.0

    def probes(self, model: LoadedModel) -> Iterator[Probe]:
        """The probes, made as they are asked for; ContextOverflowError for a length beyond the model's context."""
        for length in self.lengths:
            if length > model.backbone.context:
                raise ContextOverflowError(
                    f"Contexts of {length} tokens asked of a model made for {model.backbone.context}. Ask for shorter "
                    "ones (--lengths).",
                    tokens=length,
                    allowed=model.backbone.context,
                )
        tasks = self.tasks_for(model)
        if self.mm_niah is not None:
            images = self.mm_niah_images or self.mm_niah
            limit = self.examples * self.depths  # a record is one question at one depth
            yield from read_mm_niah(self.mm_niah, images, tasks=tasks, lengths=self.lengths, limit=limit)
            return
        haystack = Haystack.from_files(self.haystack) if self.haystack else Haystack.generated(self.seed)
        share = self.share_for(model)
        if share and not haystack.images:
            raise DataError(f"The haystack {haystack.name!r} has no pictures. Add images or PDFs, or --image-share 0.")
        builder = ProbeBuilder(model.count, haystack, image_share=share, seed=self.seed)
        for task in tasks:
            for length in self.lengths:
                yield from builder.build(task, length, examples=self.examples, depths=self.depths, cloze=self.cloze)

    def total(self, model: LoadedModel) -> int | None:
        """How many probes there will be, if that is known."""
        if self.mm_niah is not None:
            return None
        return len(self.tasks_for(model)) * len(self.lengths) * self.examples * self.depths
