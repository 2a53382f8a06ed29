"""The head scores that the paper's authors released, shipped with this package, and how a model finds its own.

Source: "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*), and its release.
Six models, four tasks, five context lengths. The shipped file holds scores above 0 as released (five
decimals) and scores below 0 to three decimals, since those heads are never among the best.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mmrh_retriever import files
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads import file_formats as formats
from mmrh_retriever.heads.model_names import name_words
from mmrh_retriever.heads.scores import HeadScoresTable
from mmrh_retriever.heads.sets import PAPER_SHARE, HeadSet

PUBLISHED_LENGTH = 131_072
"""The context length, in tokens, whose heads the paper uses for retrieval."""
PUBLISHED_TASKS = ("text", "image", "rendered_text", "identical_image")
_FILE = "published_heads.json.gz"


class PublishedModelEntry(files.FileModel):
    """One model of the shipped file; scores are whole numbers, in units of ``1 / scale`` of the file."""

    model: Annotated[str, Field(min_length=1)]
    model_type: Annotated[str, Field(min_length=1)]
    hidden_size: formats.Count
    n_layers: formats.Count
    n_heads: formats.Count
    selectable_layers: list[int] | None
    scores: dict[str, dict[str, list[list[int]]]]


class PublishedFile(files.FileModel):
    """The shipped file."""

    format: Literal["mmrh-published-heads"]
    version: Literal[1]
    source: Annotated[str, Field(min_length=1)]
    note: str
    scale: formats.Count
    models: Annotated[list[PublishedModelEntry], Field(min_length=1)]


@dataclass(frozen=True, slots=True, eq=False)
class PublishedModel:
    """A model with released scores, and the facts of its configuration by which its copies are recognised.

    ``model_type``, ``n_layers``, ``n_heads`` (query heads per layer) and ``hidden_size`` are those of the text
    model's configuration. ``scores`` holds every task and length; where only some layers attend globally
    (Gemma 3), its ``selectable_layers`` name them (definition 8 of the paper).
    """

    model_id: str
    model_type: str
    n_layers: int
    n_heads: int
    hidden_size: int
    scores: HeadScoresTable

    @property
    def name(self) -> str:
        """The id without its owner."""
        return self.model_id.split("/")[-1]


@dataclass(frozen=True, slots=True, eq=False)
class PublishedMatch:
    """Which published model's heads suit a model, and on what evidence.

    ``how`` is ``"id"`` (the published id or name itself), ``"name"`` (a copy with the name in its own) or
    ``"shape"`` (family and size agree, the name says nothing: perhaps a fine-tuned or renamed copy, perhaps
    a sibling). ``exact`` holds for ``"id"`` alone; in the other cases show the user ``note``.
    """

    model: PublishedModel
    requested: str
    how: Literal["id", "name", "shape"]

    @property
    def model_id(self) -> str:
        """The published model's id."""
        return self.model.model_id

    @property
    def exact(self) -> bool:
        """Whether the model is the published one, and not a copy or a model like it."""
        return self.how == "id"

    @property
    def note(self) -> str:
        """A sentence for the user, empty for an exact match."""
        if self.exact:
            return ""
        evidence = "bears its name" if self.how == "name" else "has the same family and size"
        return (
            f"The heads of {self.model_id} are used for {self.requested}, which {evidence}. "
            f"`mmrh detect {self.requested}` finds its own."
        )


@functools.cache
def published_models() -> tuple[PublishedModel, ...]:
    """The models with released scores, in the order of the shipped file."""
    packaged = importlib.resources.files("mmrh_retriever").joinpath("data", _FILE)
    with importlib.resources.as_file(packaged) as path:
        return read_published(path)


def resolve_published(
    model_id: str,
    model_type: str | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    hidden_size: int | None = None,
) -> PublishedMatch:
    """Find the published model that a model is, or is a copy of.

    The published id or name comes first, in upper or lower case. Otherwise the facts of the model's text
    configuration (layers, query heads, hidden size; a ``model_type`` with or without ``_text``) decide if
    family, layers and heads are all known. Where several models share them, or some are unknown, the
    published name has to stand in ``model_id``, as in ``"unsloth/Qwen3-VL-8B-Instruct-bnb-4bit"`` or the
    path of a local folder.

    Raises:
        HeadSetError: none fits, or several do; lists the published models and says how to detect heads.
    """
    models = published_models()
    facts = {"n_layers": n_layers, "n_heads": n_heads, "hidden_size": hidden_size}
    known = {name: value for name, value in facts.items() if value is not None}

    def fits(model: PublishedModel) -> bool:
        family = model_type is None or model_type.removesuffix("_text") == model.model_type
        return family and all(getattr(model, name) == value for name, value in known.items())

    exact = [model for model in models if name_words(model_id) in (name_words(model.model_id), name_words(model.name))]
    named = exact or [model for model in models if name_words(model.name) in name_words(model_id)]
    decisive = None not in (model_type, n_layers, n_heads)
    fitting = [model for model in models if fits(model) and (decisive or model in named)]
    preferred = [model for model in fitting if model in named] or fitting
    if len(preferred) == 1:
        found = preferred[0]
        return PublishedMatch(found, model_id, "id" if found in exact else "name" if found in named else "shape")
    published = ", ".join(model.model_id for model in models)
    detect = f"Published are {published}. Detect heads with `mmrh detect {model_id}`, or pass a head set."
    got = ", ".join(f"{name} {value}" for name, value in {"model_type": model_type, **known}.items() if value)
    if preferred:
        alike = " and ".join(model.model_id for model in preferred)
        raise HeadSetError(f"{model_id} ({got or 'no configuration given'}) fits {alike} alike. {detect}")
    if named and got:
        raise HeadSetError(
            f"{model_id} is named like {named[0].model_id}, but has {got}; expected model_type "
            f"{named[0].model_type}, {named[0].n_layers} layers, {named[0].n_heads} heads and hidden size "
            f"{named[0].hidden_size}. {detect}"
        )
    raise HeadSetError(f"No heads are published for {model_id}{f' ({got})' if got else ''}. {detect}")


def published_head_scores(model_id: str) -> HeadScoresTable:
    """All released scores of one model, found by id or name (see :func:`resolve_published`).

    Raises:
        HeadSetError: nothing is published for it.
    """
    return resolve_published(model_id).model.scores


def published_head_set(
    model_id: str,
    context_length: int = PUBLISHED_LENGTH,
    tasks: Iterable[str] | None = None,
    share: float = PAPER_SHARE,
    max_layer: int | None = None,
) -> HeadSet:
    """The paper's retrieval heads for a model: the union of its tasks' best heads.

    Each task gives its top ``share`` of all heads; all four tasks by default. For
    Qwen3-VL-8B-Instruct at 131,072 tokens that makes 112 heads, the paper's number. They are ordered by a
    head's best score over the tasks that chose it. Heads with an impossible score under any condition, and
    layers without global attention, are left out (so the Qwen2.5-VL-7B and Gemma 3 sets differ from a
    plain ranking of the release). ``max_layer`` keeps each task's choice to layers up to it.

    Raises:
        HeadSetError: nothing is published for the model, task or length, or too few heads are left.
    """
    table = published_head_scores(model_id)
    return HeadSet.of_tasks(table, tasks, context_length, share=share, max_layer=max_layer)


def read_published(path: str | Path) -> tuple[PublishedModel, ...]:
    """Read a file in the shipped format.

    Raises:
        DataError: missing or malformed.
        HeadSetError: scores that don't fit the size of their model.
    """
    path = Path(path)
    content = files.read_json(path, PublishedFile, what="file of published heads")
    return tuple(_model_of(entry, content.scale, content.source) for entry in content.models)


def _model_of(entry: PublishedModelEntry, scale: int, source: str) -> PublishedModel:
    try:
        scores = HeadScoresTable.from_released(
            entry.scores,
            model_id=entry.model,
            n_layers=entry.n_layers,
            n_heads=entry.n_heads,
            source=source,
            scale=scale,
            selectable_layers=None if entry.selectable_layers is None else tuple(entry.selectable_layers),
        )
    except HeadSetError as error:
        raise HeadSetError(f"{entry.model}: {error}") from error
    return PublishedModel(entry.model, entry.model_type, entry.n_layers, entry.n_heads, entry.hidden_size, scores)
