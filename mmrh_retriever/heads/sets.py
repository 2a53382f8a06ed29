"""Sets of attention heads: chosen by their measured scores, united, compared, or drawn at random as a control.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from mmrh_retriever import files
from mmrh_retriever.errors import HeadSetError
from mmrh_retriever.heads import file_formats as formats
from mmrh_retriever.heads.hub import OnTheHub
from mmrh_retriever.heads.scores import HeadId, HeadScores, HeadScoresTable, listed

__all__ = ["PAPER_SHARE", "HeadId", "HeadScores", "HeadScoresTable", "HeadSet"]

PAPER_SHARE = 0.05
"""The paper's share of all heads of a model that count as its retrieval heads."""
_IN_FILES = ("scores", "n_layers", "n_heads", "tasks", "context_length", "source")


@dataclass(frozen=True, slots=True)
class HeadSet(OnTheHub):
    """Heads of one model, best first; immutable and hashable.

    ``scores``, where there are any, belong to ``heads`` one by one and never rise. ``n_layers`` and ``n_heads``
    are the model's. The heads were detected on ``tasks`` at ``context_length`` tokens; ``source`` is their origin.

    Raises:
        HeadSetError: no heads, a head twice, heads outside the model, scores that do not fit.
    """

    heads: tuple[HeadId, ...]
    scores: tuple[float, ...] | None = None
    model_id: str | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    tasks: tuple[str, ...] = ()
    context_length: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        heads = tuple(HeadId(int(layer), int(head)) for layer, head in self.heads)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not heads:
            raise HeadSetError("A head set needs at least one head, got none.")
        if len(set(heads)) < len(heads):
            twice = sorted({head for head in heads if heads.count(head) > 1})
            raise HeadSetError(f"Each head may stand in a set once; twice or more: {listed(twice)}.")
        _check_range(heads, self.n_layers, self.n_heads)
        if self.scores is not None:
            scores = tuple(float(score) for score in self.scores)
            object.__setattr__(self, "scores", scores)
            if len(scores) != len(heads) or not all(map(math.isfinite, scores)):
                raise HeadSetError(
                    f"Expected a finite score for each of {len(heads)} heads, got {len(scores)} scores, "
                    f"{sum(map(math.isfinite, scores))} of them finite."
                )
            if any(later > earlier for earlier, later in itertools.pairwise(scores)):
                raise HeadSetError("The scores of a head set must not rise: give the best head first.")

    @classmethod
    def parse(cls, text: str | Iterable[str], *, n_layers: int | None = None, n_heads: int | None = None) -> HeadSet:
        """A set from ``"21-10, 20-3"`` or a list of such names, in the order given.

        Raises:
            HeadSetError: a name that is not a head, and everything the class itself refuses.
        """
        names = re.split(r"[\s,;]+", text.strip()) if isinstance(text, str) else text
        return cls(tuple(HeadId.parse(name) for name in names), n_layers=n_layers, n_heads=n_heads)

    @classmethod
    def all_heads(
        cls, n_layers: int, n_heads: int, layers: Iterable[int] | None = None, *, model_id: str | None = None
    ) -> HeadSet:
        """Every head of a model, or every head of some of its layers."""
        chosen = range(n_layers) if layers is None else sorted(set(layers))
        heads = tuple(HeadId(layer, head) for layer in chosen for head in range(n_heads))
        return cls(heads, model_id=model_id, n_layers=n_layers, n_heads=n_heads, source="all heads")

    @classmethod
    def top(
        cls,
        scores: HeadScores,
        share: float | None = None,
        count: int | None = None,
        *,
        max_layer: int | None = None,
        exclude: Iterable[HeadId] = (),
    ) -> HeadSet:
        """The best heads by detection score (definition 3 of the paper).

        ``share`` is of *all* heads of the model, rounded up: ``ceil(share * n_layers * n_heads)``, 5 % by default;
        ``count`` gives the number itself. No head deeper than ``max_layer`` is taken, so that a forward pass can stop
        there. Heads without a valid score are never taken, nor those in ``exclude``. Equal scores go by layer, then
        head.

        Raises:
            HeadSetError: fewer heads can be selected than are asked for.
        """
        total = scores.n_layers * scores.n_heads
        if share is not None and count is not None:
            raise HeadSetError(f"Give share or count, not both; got share={share} and count={count}.")
        share = PAPER_SHARE if share is None else share
        if not 0.0 < share <= 1.0:
            raise HeadSetError(f"A share of heads lies above 0 and is at most 1, got {share}. 5 % is 0.05.")
        wanted = math.ceil(share * total - 1e-9) if count is None else count  # 7 % of 100 is 7, though 0.07 * 100 > 7
        mask = scores.selectable(max_layer)  # (layers, heads)
        for head in exclude:
            mask[head] = False
        eligible = int(mask.sum())
        if not 1 <= wanted <= eligible:
            limit, advice = ("", "") if max_layer is None else (f" up to layer {max_layer}", ", or raise max_layer")
            raise HeadSetError(
                f"{wanted} heads asked of {scores.model_id}; {eligible} of its {total} heads have a valid score in a "
                f"selectable layer{limit}. Ask for 1 to {eligible}{advice}."
            )
        worst_last = np.where(mask, -scores.values, np.inf).ravel()
        order = np.argsort(worst_last, kind="stable")[:wanted]  # ties: layer, then head
        heads = tuple(HeadId(*divmod(int(i), scores.n_heads)) for i in order)
        return cls(
            heads,
            scores=tuple(scores[head] for head in heads),
            model_id=scores.model_id,
            n_layers=scores.n_layers,
            n_heads=scores.n_heads,
            tasks=(scores.task,),
            context_length=scores.context_length,
            source=scores.source,
        )

    @classmethod
    def union(cls, sets: Sequence[HeadSet]) -> HeadSet:
        """Every head that stands in any of the sets, as the paper unites its four tasks.

        Best first: by a head's highest score over the sets that hold it. Where a set has no scores, by its
        best rank in any set; the result then has no scores. Ties go by layer, then head.

        Raises:
            HeadSetError: no sets, or sets of different models.
        """
        if not sets:
            raise HeadSetError("The union of head sets needs at least one set, got none.")
        for other in sets[1:]:
            sets[0]._check_same_model(other)
        best: dict[HeadId, float] = {}
        scored = all(one.scores is not None for one in sets)
        for one in sets:
            values = one.scores if scored and one.scores else [-float(rank) for rank in range(len(one))]
            for head, value in zip(one.heads, values, strict=True):
                best[head] = max(best.get(head, -math.inf), value)
        heads = tuple(sorted(best, key=lambda head: (-best[head], head)))
        lengths = {one.context_length for one in sets}
        known: dict[str, Any] = {
            name: next((value for one in sets if (value := getattr(one, name)) is not None), None)
            for name in ("model_id", "n_layers", "n_heads")
        }
        return cls(
            heads,
            scores=tuple(best[head] for head in heads) if scored else None,
            **known,
            tasks=tuple(dict.fromkeys(task for one in sets for task in one.tasks)),
            context_length=lengths.pop() if len(lengths) == 1 else None,
            source="; ".join(dict.fromkeys(one.source for one in sets if one.source)),
        )

    @classmethod
    def of_tasks(
        cls,
        table: HeadScoresTable,
        tasks: Iterable[str] | None = None,
        context_length: int | None = None,
        *,
        share: float | None = None,
        count: int | None = None,
        max_layer: int | None = None,
    ) -> HeadSet:
        """The union of the tasks' best heads at one context length, as the paper forms its retrieval set.

        All tasks of the table and its longest context by default. ``share``, ``count`` and ``max_layer`` hold for each
        task (see :meth:`top`), so the union is larger. A head whose score is impossible under any condition of the
        table (``table.invalid_heads``) is left out everywhere: its other scores come from the same arithmetic.

        Raises:
            HeadSetError: a condition that the table lacks, or too few heads to select from.
        """
        length = max(table.context_lengths) if context_length is None else context_length
        scores = [table.at(task, length) for task in (table.tasks if tasks is None else tasks)]
        return cls.union(
            [cls.top(one, share, count, max_layer=max_layer, exclude=table.invalid_heads) for one in scores]
        )

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a set that :meth:`save` wrote.

        Raises:
            DataError: missing, not JSON, or not of this format.
            HeadSetError: heads or scores that are impossible.
        """
        path = Path(path)
        content = formats.read_as(path, formats.SET_FORMATS, "head set")
        try:
            heads = tuple(map(HeadId.parse, content.heads))
            return cls(heads, model_id=content.model, **content.model_dump(include={*_IN_FILES}))
        except HeadSetError as error:
            raise HeadSetError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the set as JSON, all or nothing.

        Raises:
            DataError: the folder is missing or can't be written.
        """
        details: dict[str, Any] = {name: getattr(self, name) for name in _IN_FILES}
        heads = tuple(map(str, self.heads))
        content = formats.SetFile(format="mmrh-head-set", version=1, heads=heads, model=self.model_id, **details)
        files.write_json(Path(path), content, indent=None)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[HeadId]:
        return iter(self.heads)

    @overload
    def __getitem__(self, which: int) -> HeadId: ...
    @overload
    def __getitem__(self, which: slice) -> HeadSet: ...
    def __getitem__(self, which: int | slice) -> HeadId | HeadSet:
        if isinstance(which, int):
            return self.heads[which]
        scores = None if self.scores is None else self.scores[which]
        return replace(self, heads=self.heads[which], scores=scores)

    @property
    def deepest_layer(self) -> int:
        """The last layer that a forward pass must reach to see all of these heads."""
        return max(head.layer for head in self.heads)

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Layer -> its heads in the set, both ascending."""
        layers = itertools.groupby(sorted(self.heads), key=lambda head: head.layer)
        return {layer: tuple(head.head for head in heads) for layer, heads in layers}

    def up_to_layer(self, max_layer: int) -> HeadSet:
        """The heads of this set in layers up to and including ``max_layer``; the set only shrinks.

        Raises:
            HeadSetError: none lies so early.
        """
        kept = [index for index, head in enumerate(self.heads) if head.layer <= max_layer]
        if not kept:
            raise HeadSetError(
                f"None of these {len(self)} heads lies in layers 0 to {max_layer}; the first is in layer "
                f"{min(head.layer for head in self.heads)}. Raise the limit or select with max_layer."
            )
        scores = None if self.scores is None else tuple(self.scores[index] for index in kept)
        return replace(self, heads=tuple(self.heads[index] for index in kept), scores=scores)

    def overlap(self, other: HeadSet) -> float:
        """``|A & B| / |A|`` of two equal-sized sets (definition 6 of the paper), 0 to 1.

        Raises:
            HeadSetError: sets of different size or model.
        """
        self._check_same_model(other, names_too=False)
        if len(self) != len(other):
            raise HeadSetError(
                f"Overlap is defined for sets of equal size, got {len(self)} and {len(other)} heads. "
                f"Take the best of both: [:{min(len(self), len(other))}]."
            )
        return len(set(self.heads) & set(other.heads)) / len(self)

    def validate_for(
        self, n_layers: int, n_heads: int, selectable_layers: Iterable[int] | None = None, model_id: str | None = None
    ) -> None:
        """Check that a model has these heads, and that they may be recorded.

        ``selectable_layers`` are the layers with global attention, ``None`` for all. ``model_id``, if given, must name
        the model of the set or a copy of it (see :func:`same_model`).

        Raises:
            HeadSetError: another model, or heads that do not fit; the message names them.
        """
        if (self.n_layers or n_layers, self.n_heads or n_heads) != (n_layers, n_heads):
            raise HeadSetError(
                f"These heads belong to {self.model_id or 'a model'} of {self.n_layers} layers x {self.n_heads} "
                f"heads; the model has {n_layers} x {n_heads}. Use heads detected on this model."
            )
        _check_range(self.heads, n_layers, n_heads)
        if model_id is not None and self.model_id is not None and not same_model(model_id, self.model_id):
            raise HeadSetError(
                f"These heads were detected on {self.model_id}, the model is {model_id}. Detect heads on it "
                "(`mmrh detect`), or pass a set without a model id if the two are copies."
            )
        if selectable_layers is not None:
            allowed = set(selectable_layers)
            outside = [head for head in self.heads if head.layer not in allowed]
            if outside:
                raise HeadSetError(
                    f"Heads in layers whose attention does not span the whole context: {listed(outside)}. "
                    f"Only layers {sorted(allowed)} can be used; detect heads on these."
                )

    def random_like(
        self, n: int | None = None, seed: int = 0, *, layers: Iterable[int] | None = None, disjoint: bool = True
    ) -> HeadSet:
        """As many random heads of the same model: the control of the paper's masking experiments.

        ``n`` heads, as many as this set has by default, from ``layers``, all by default, and with ``disjoint`` none
        of this set's own. The same ``seed`` draws the same heads.

        Raises:
            HeadSetError: the set does not know its model's size, or too few heads are left to draw from.
        """
        return self._drawn({None: len(self) if n is None else n}, seed, layers, disjoint)

    def random_same_layers(self, seed: int = 0, *, disjoint: bool = True) -> HeadSet:
        """Random heads with as many in each layer as this set has: a control for depth.

        Raises:
            HeadSetError: as :meth:`random_like`. A layer has too few others if more than half of its heads are
                in this set; pass ``disjoint=False`` then.
        """
        return self._drawn({layer: len(heads) for layer, heads in self.by_layer().items()}, seed, None, disjoint)

    def _drawn(self, wanted: Mapping[Any, int], seed: int, layers: Iterable[int] | None, disjoint: bool) -> HeadSet:
        """``wanted[layer]`` random heads of each layer, where ``None`` is any layer, in ascending order."""
        if self.n_layers is None or self.n_heads is None:
            raise HeadSetError("A random control needs the model's size: give the set n_layers and n_heads.")
        own = set(self.heads) if disjoint else set()
        pool = [head for head in HeadSet.all_heads(self.n_layers, self.n_heads, layers) if head not in own]
        random = np.random.default_rng(seed)
        drawn: list[HeadId] = []
        for layer, count in wanted.items():
            left = [head for head in pool if layer in (None, head.layer)]
            if not 1 <= count <= len(left):
                raise HeadSetError(
                    f"{count} random heads asked of {'the model' if layer is None else f'layer {layer}'}, {len(left)} "
                    f"to draw from. Ask for 1 to {len(left)}, or pass disjoint=False."
                )
            drawn += [left[int(i)] for i in random.choice(len(left), size=count, replace=False)]
        return replace(self, heads=tuple(sorted(drawn)), scores=None, source=f"random control, seed {seed}")

    def _check_same_model(self, other: HeadSet, *, names_too: bool = True) -> None:
        mine, others = (self.n_layers, self.n_heads), (other.n_layers, other.n_heads)
        if None not in mine + others and mine != others:
            raise HeadSetError(
                f"Head sets of models of different size: {self.n_layers} x {self.n_heads} and {other.n_layers} x "
                f"{other.n_heads} (layers x heads)."
            )
        if names_too and self.model_id and other.model_id and not same_model(self.model_id, other.model_id):
            raise HeadSetError(f"Head sets of different models: {self.model_id} and {other.model_id}.")


def _check_range(heads: Iterable[HeadId], n_layers: int | None, n_heads: int | None) -> None:
    layers, width = (math.inf if count is None else count for count in (n_layers, n_heads))
    outside = [head for head in heads if not (0 <= head.layer < layers and 0 <= head.head < width)]
    if outside:
        raise HeadSetError(
            f"Heads that the model does not have: {listed(outside)}. Expected layers 0 to {layers - 1} and query heads "
            f"0 to {width - 1}; use heads detected on this model."
        )


def name_words(model_id: str) -> str:
    """A model id or path for comparison: lower case, words joined and enclosed by ``-``."""
    return "-" + re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-") + "-"


def same_model(one: str, other: str) -> bool:
    """Whether two ids name one model or copies of it.

    The last part of one id stands, word by word, in the other: ``Qwen/Qwen3-VL-8B-Instruct`` and
    ``unsloth/Qwen3-VL-8B-Instruct-bnb-4bit``, or a local folder of that name.
    """
    short_one, short_other = (name_words(name.rstrip("/\\").replace("\\", "/").split("/")[-1]) for name in (one, other))
    return short_one in name_words(other) or short_other in name_words(one)
