"""What ``mmrh detect`` and ``mmrh causal`` share: loading a model by name, and its probes from command line options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from transformers import PreTrainedModel

from mmrh_retriever.errors import ContextOverflowError, DataError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.loading import BUNDLED, Processors, load_model, model_path
from mmrh_retriever.model.prompts import Prompter
from mmrh_retriever.research.probes.builder import ProbeBuilder
from mmrh_retriever.research.probes.haystacks import Haystack
from mmrh_retriever.research.probes.mm_niah import read_mm_niah
from mmrh_retriever.research.probes.probe import TASKS, CountTokens, Probe
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

    @property
    def takes_images(self) -> bool:
        """Whether pictures can be shown to it."""
        return self.backbone.takes_images


def load(model: str, *, device: str | None, dtype: str | None, max_pixels: int | None) -> LoadedModel:
    """A model by hub id or folder, or the bundled one by the name ``bundled``.

    Raises:
        UnsupportedModelError: an unknown family.
        OSError: transformers' own, if files are missing.
    """
    path, bundled = model_path(model)
    options = {"device": device, "dtype": dtype, "max_pixels": max_pixels}
    loaded, processors = load_model(path, local_files_only=bundled, **options)  # type: ignore[arg-type]
    backbone = Backbone.of(loaded)
    counter = token_counter(Prompter(backbone, processors.tokenizer, processors.image_processor))
    return LoadedModel(loaded, processors, BUNDLED if bundled else model, backbone, counter)


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How the probes of a command are made."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    haystack: tuple[Path, ...] = ()
    mm_niah: Path | None = None
    mm_niah_images: Path | None = None
    examples: int = 20
    depths: int = 6
    image_share: float | None = None
    seed: int = 0
    cloze: bool = False

    def settings(self, model: LoadedModel) -> dict[str, Any]:
        """What must be alike when a run is resumed, ready for JSON."""
        return {
            "tasks": list(self.tasks_for(model)),
            "lengths": list(self.lengths),
            "haystack": [path.name for path in self.haystack],
            "mm_niah": None if self.mm_niah is None else self.mm_niah.name,
            "examples": self.examples,
            "depths": self.depths,
            "image_share": self.share_for(model),
            "seed": self.seed,
            "cloze": self.cloze,
        }

    def tasks_for(self, model: LoadedModel) -> tuple[str, ...]:
        """The tasks asked for; all that the model can take if none are."""
        every = ("text", "rendered_text") if self.cloze else TASKS
        return self.tasks or (every if model.takes_images else ("text",))

    def share_for(self, model: LoadedModel) -> float:
        """The image share asked for; 0.1 if none is, and 0 for text-only models."""
        if self.image_share is not None:
            return self.image_share
        return DEFAULT_IMAGE_SHARE if model.takes_images else 0.0

    def probes(self, model: LoadedModel) -> Iterator[Probe]:
        """The probes, made as they are asked for.

        Raises:
            DataError: a haystack or data set that can't be read, or probes that can't be built.
            ContextOverflowError: a length beyond the model's context.
        """
        for length in self.lengths:
            if length > model.backbone.context:
                raise ContextOverflowError(
                    f"Contexts of {length} tokens asked of a model made for {model.backbone.context}. Ask for shorter "
                    "ones (--lengths).",
                    tokens=length,
                    allowed=model.backbone.context,
                )
        if self.mm_niah is not None:
            images = self.mm_niah_images or self.mm_niah
            limit = self.examples * self.depths  # a record is one question at one depth
            tasks = self.tasks_for(model)
            yield from read_mm_niah(self.mm_niah, images, tasks=tasks, lengths=self.lengths, limit=limit)
            return
        haystack = Haystack.from_files(self.haystack) if self.haystack else Haystack.generated(self.seed)
        share = self.share_for(model)
        if share and not haystack.images:
            raise DataError(f"The haystack {haystack.name!r} has no pictures. Add images or PDFs, or --image-share 0.")
        builder = ProbeBuilder(model.count, haystack, image_share=share, seed=self.seed)
        for task in self.tasks_for(model):
            for length in self.lengths:
                yield from builder.build(task, length, examples=self.examples, depths=self.depths, cloze=self.cloze)

    def total(self, model: LoadedModel) -> int | None:
        """How many probes there will be, if that is known."""
        if self.mm_niah is not None:
            return None
        return len(self.tasks_for(model)) * len(self.lengths) * self.examples * self.depths


def parsed_lengths(text: str) -> tuple[int, ...]:
    """``"8192,16384"`` as numbers.

    Raises:
        typer.BadParameter: anything else.
    """
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected token counts such as 8192,16384, got {text!r}") from error
    if not lengths or min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise typer.BadParameter(f"expected different token counts from 1, got {text!r}")
    return lengths


def parsed_tasks(tasks: list[str] | None) -> tuple[str, ...]:
    """Task names, checked.

    Raises:
        typer.BadParameter: an unknown one.
    """
    unknown = [task for task in tasks or [] if task not in TASKS]
    if unknown:
        raise typer.BadParameter(f"unknown task {unknown[0]!r}; expected {', '.join(TASKS)}")
    return tuple(dict.fromkeys(tasks or []))


def rounded(entry: Mapping[str, Any], digits: int = 6) -> dict[str, Any]:
    """An entry for ``--json`` with its floats rounded."""
    return {key: round(value, digits) if isinstance(value, float) else value for key, value in entry.items()}
