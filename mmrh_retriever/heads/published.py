"""Which heads a model is scored with: those given, those beside its weights, or those that the paper released.

Source: "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*), and its release of head
scores: six models, four tasks, five context lengths. The shipped file holds scores above 0 as released (five
decimals) and scores below 0 to three decimals, since those heads are never among the best.
"""

from __future__ import annotations

import functools
import importlib.resources
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmrh_retriever import files
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads import file_formats as formats
from mmrh_retriever.heads.hub import HEADS_FILE as HEADS_FILE
from mmrh_retriever.heads.scores import HeadScoresTable
from mmrh_retriever.heads.sets import PAPER_SHARE, HeadSet, name_words

logger = logging.getLogger(__name__)

PUBLISHED_LENGTH = 131_072
"""The context length, in tokens, whose heads the paper uses for retrieval."""
_FILE = "published_heads.json.gz"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model before its heads are chosen.

    ``name`` is its id or folder. The rest is from the text model's configuration: ``n_heads`` are query heads per
    layer, ``global_layers`` the layers that attend to the whole context, which alone can hold retrieval heads
    (definition 8 of the paper). ``heads_file`` is the head set that came with a model from the Hub.
    """

    name: str
    model_type: str
    n_layers: int
    n_heads: int
    hidden_size: int
    global_layers: tuple[int, ...]
    heads_file: Path | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.model_type}, {self.n_layers} layers, {self.n_heads} heads, hidden size {self.hidden_size}"

    @property
    def shape(self) -> tuple[str, int, int, int]:
        """Family and size, by which a copy is recognised; ``model_type`` may have the text model's suffix."""
        return self.model_type.removesuffix("_text"), self.n_layers, self.n_heads, self.hidden_size


@dataclass(frozen=True, slots=True)
class PublishedMatch:
    """Which published model's heads suit a model, and on what evidence.

    ``how`` is ``"id"`` (the published id or name itself), ``"name"`` (a copy with the name in its own) or ``"shape"``
    (family and size agree, the name says nothing: perhaps a fine-tuned or renamed copy, perhaps a sibling). ``note``
    is a sentence for the user, empty for ``"id"``.
    """

    model_id: str
    how: Literal["id", "name", "shape"]
    note: str = ""


def resolve_heads(heads: str | Path | HeadSet | HeadScoresTable, model: ModelFacts) -> HeadSet:
    """The heads to score with, checked against the model.

    ``"published"`` takes the set beside the model's weights, in its folder or on the Hub, else the paper's, united over
    its four tasks at 128K tokens; ``"all"`` every head of every layer that sees the whole context; a path is
    read as a head set, or as scores of which the best 5 % are taken.
    """
    if isinstance(heads, HeadScoresTable):
        found = HeadSet.of_tasks(heads)
    elif isinstance(heads, HeadSet):
        found = heads
    elif not isinstance(heads, (str, Path)):
        raise HeadSetError(f"Expected heads as a HeadSet, a path, 'published' or 'all', got {type(heads).__name__}.")
    elif str(heads) == "all":
        return HeadSet.all_heads(model.n_layers, model.n_heads, model.global_layers, model_id=model.name)
    elif str(heads) != "published":
        if not files.is_file(heads):
            raise DataError(
                f"heads={str(heads)!r} is neither 'published' nor 'all' nor a file. Give one of these, a HeadSet, or "
                "the path of a file that `mmrh detect` wrote."
            )
        found = load_head_set(heads)
    elif files.is_file(beside := Path(model.name) / HEADS_FILE):
        found = HeadSet.load(beside)
    elif model.heads_file is not None:
        found = HeadSet.load(model.heads_file)
    else:
        match = resolve_published(model)
        if match.note:
            logger.warning(match.note)
        found = published_head_set(match.model_id)
    found.validate_for(model.n_layers, model.n_heads, model.global_layers)
    return found


def load_head_set(path: str | Path, *, share: float | None = None, max_layer: int | None = None) -> HeadSet:
    """Heads from a file of either kind: a head set as it is, a scores file by :meth:`HeadSet.of_tasks`.

    ``share`` and ``max_layer`` select from a scores file. From a head set only layers up to ``max_layer`` are kept.

    Raises:
        DataError: the file can't be read as either.
        HeadSetError: heads or scores that are impossible, or a limit that leaves none.
    """
    path = Path(path)
    what = "head set or file of head scores"
    declared = files.format_of(files.read_text(path, what=what), where=str(path), what=what)
    if declared == formats.SET_FORMAT:
        if share is not None:
            raise HeadSetError(f"{path}: holds a head set, from which no share can be taken. Give a scores file.")
        heads = HeadSet.load(path)
        return heads if max_layer is None else heads.up_to_layer(max_layer)
    table = HeadScoresTable.load(path)
    try:
        return HeadSet.of_tasks(table, share=share, max_layer=max_layer)
    except HeadSetError as error:
        raise HeadSetError(f"{path}: {error}") from error


@functools.cache
def published_models() -> Mapping[ModelFacts, HeadScoresTable]:
    """The models with released scores, in the order of the shipped file."""
    packaged = importlib.resources.files("mmrh_retriever").joinpath("data", _FILE)
    with importlib.resources.as_file(packaged) as path:
        return read_published(path)


def read_published(path: Path) -> dict[ModelFacts, HeadScoresTable]:
    """Read a file in the shipped format: models, and their scores of every task and length."""
    content = files.read_json(path, formats.PublishedFile, what="file of published heads")
    found = {}
    for one in content.models:
        layers = tuple(range(one.n_layers)) if one.selectable_layers is None else one.selectable_layers
        facts = ModelFacts(one.model, one.model_type, one.n_layers, one.n_heads, one.hidden_size, layers)
        try:
            found[facts] = HeadScoresTable.from_released(one, source=content.source, scale=content.scale)
        except HeadSetError as error:
            raise HeadSetError(f"{one.model}: {error}") from error
    return found


def resolve_published(model: str | ModelFacts) -> PublishedMatch:
    """Find the published model that a model is, or is a copy of; where none fits, or several do, a HeadSetError.

    Of a bare id or path the name decides: the published id or name itself, in upper or lower case, comes first, then
    one that stands in it, as in ``"unsloth/Qwen3-VL-8B-Instruct-bnb-4bit"`` or the path of a local folder. Facts of
    the configuration, where they are given, have to agree; the name decides between several models that they fit.
    """
    name, got = (model, "no configuration given") if isinstance(model, str) else (model.name, str(model))
    words = name_words(name)
    short = {one: name_words(one.name.split("/")[-1]) for one in published_models()}
    exact = [one for one in short if words in (name_words(one.name), short[one])]
    named = exact or [one for one in short if short[one] in words]
    fitting = named if isinstance(model, str) else [one for one in short if one.shape == model.shape]
    preferred = [one for one in fitting if one in named] or fitting
    if len(preferred) == 1:
        found = preferred[0]
        if found in exact:
            return PublishedMatch(found.name, "id")
        evidence = "bears its name" if found in named else "has the same family and size"
        note = f"The heads of {found.name} are used for {name}, which {evidence}. `mmrh detect {name}` finds its own."
        return PublishedMatch(found.name, "name" if found in named else "shape", note)
    if preferred:
        problem = f"{name} ({got}) fits {' and '.join(one.name for one in preferred)} alike"
    elif named:
        problem = f"{name} is named like {named[0].name}, but is {got}; expected {named[0]}"
    else:
        problem = f"No heads are published for {name} ({got})"
    raise HeadSetError(
        f"{problem}. Published are {', '.join(one.name for one in short)}. Detect heads with `mmrh detect {name}`, or "
        "pass a head set."
    )


def published_head_scores(model_id: str) -> HeadScoresTable:
    """All released scores of one model, found by id or name (see :func:`resolve_published`)."""
    found = resolve_published(model_id).model_id
    return next(scores for facts, scores in published_models().items() if facts.name == found)


def published_head_set(
    model_id: str,
    context_length: int = PUBLISHED_LENGTH,
    tasks: Iterable[str] | None = None,
    share: float = PAPER_SHARE,
    max_layer: int | None = None,
) -> HeadSet:
    """The paper's retrieval heads for a model: the union of its tasks' best heads.

    Each task gives its top ``share`` of all heads; all four tasks by default. For Qwen3-VL-8B-Instruct at 131,072
    tokens that makes 112 heads, the paper's number, ordered by a head's best score over the tasks that chose it.
    Heads with an impossible score under any condition, and layers without global attention, are left out (so the
    Qwen2.5-VL-7B and Gemma 3 sets differ from a plain ranking of the release). ``max_layer`` keeps each task's choice
    to layers up to it.

    Raises:
        HeadSetError: nothing is published for the model, task or length, or too few heads are left.
    """
    table = published_head_scores(model_id)
    return HeadSet.of_tasks(table, tasks, context_length, share=share, max_layer=max_layer)
