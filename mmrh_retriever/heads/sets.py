"""Attention heads: sets of them, chosen by their measured scores.

Definitions follow "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243 (*the paper*).
Everything here is pure: numpy arrays and JSON, no model.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np

from mmrh_retriever import files
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.heads import file_formats as formats
from mmrh_retriever.heads.scores import HeadId, HeadScores, HeadScoresTable, listed

__all__ = [
    "PAPER_SHARE",
    "HeadId",
    "HeadScores",
    "HeadScoresTable",
    "HeadSet",
    "load_head_set",
    "name_words",
    "same_model",
]

PAPER_SHARE = 0.05
"""The paper's share of all heads of a model that count as its retrieval heads."""


@dataclass(frozen=True, slots=True)
class HeadSet:
    """Heads of one model, best first; immutable and hashable.

    ``scores``, where there are any, belong to ``heads`` one by one and never rise. ``n_layers`` and
    ``n_heads`` are the model's; ``tasks`` and ``context_length`` (tokens) tell what the heads were
    detected on, ``source`` where they come from.

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

        ``share`` is of *all* heads of the model, rounded up: ``ceil(share * n_layers * n_heads)``, 5 %
        unless told; ``count`` gives the number itself. ``max_layer`` keeps to layers up to and including
        it, so that a forward pass can stop there. Heads without a valid score are never taken, nor those
        in ``exclude``. Equal scores go by layer, then head.

        Raises:
            HeadSetError: fewer heads can be selected than are asked for.
        """
        total = scores.n_layers * scores.n_heads
        if share is not None and count is not None:
            raise HeadSetError(f"Give share or count, not both; got share={share} and count={count}.")
        wanted = _ceil_share(PAPER_SHARE if share is None else share, total) if count is None else count
        mask = scores.selectable(max_layer)  # (layers, heads)
        for head in exclude:
            mask[head] = False
        eligible = mask.ravel()
        if not 1 <= wanted <= int(eligible.sum()):
            limit = "" if max_layer is None else f" up to layer {max_layer}"
            raise HeadSetError(
                f"{wanted} heads asked of {scores.model_id}; {int(eligible.sum())} of its {total} heads have a "
                f"valid score in a selectable layer{limit}. Ask for 1 to {int(eligible.sum())}"
                + ("." if max_layer is None else ", or raise max_layer.")
            )
        flat = scores.values.ravel()
        order = np.argsort(np.where(eligible, -flat, np.inf), kind="stable")[:wanted]  # ties: layer, then head
        return cls(
            tuple(HeadId(*divmod(int(i), scores.n_heads)) for i in order),
            scores=tuple(float(flat[i]) for i in order),
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

        Best first: by a head's highest score over the sets that hold it; where a set has no scores, by
        its best place in any set (the result then has no scores). Ties go by layer, then head.

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
            ranks = (-float(place) for place in range(len(one)))
            for head, worth in zip(one.heads, one.scores if scored and one.scores else ranks, strict=False):
                best[head] = max(best.get(head, -math.inf), worth)
        heads = tuple(sorted(best, key=lambda head: (-best[head], head)))
        lengths = {one.context_length for one in sets}
        return cls(
            heads,
            scores=tuple(best[head] for head in heads) if scored else None,
            model_id=next((one.model_id for one in sets if one.model_id is not None), None),
            n_layers=next((one.n_layers for one in sets if one.n_layers is not None), None),
            n_heads=next((one.n_heads for one in sets if one.n_heads is not None), None),
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

        All tasks of the table unless some are named; its longest context unless one is given. ``share``,
        ``count`` and ``max_layer`` hold for each task (see :meth:`top`), so the union is larger. A head whose
        score is impossible under any condition of the table (``table.invalid_heads``) is left out
        everywhere: its other scores come from the same arithmetic.

        Raises:
            HeadSetError: a condition that the table lacks, or too few heads to select from.
        """
        length = max(table.context_lengths) if context_length is None else context_length
        chosen = table.tasks if tasks is None else tuple(tasks)
        suspects = table.invalid_heads
        return cls.union(
            [cls.top(table.at(task, length), share, count, max_layer=max_layer, exclude=suspects) for task in chosen]
        )

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a set that :meth:`save` wrote.

        Raises:
            DataError: missing, not JSON, or not of this format.
            HeadSetError: heads or scores that are impossible.
        """
        path = Path(path)
        text = files.read_text(path, what="head set")
        if files.format_of(text, where=str(path), what="head set") != formats.SET_FORMAT:
            raise DataError(
                f"{path}: not a head set file. Expected the format {formats.SET_FORMAT!r}; a scores file is read "
                "by HeadScoresTable.load() and gives a set by HeadSet.of_tasks()."
            )
        content = files.parse_as(formats.SetFile, text, where=str(path), what="head set")
        try:
            return cls(
                tuple(HeadId.parse(name) for name in content.heads),
                scores=None if content.scores is None else tuple(content.scores),
                model_id=content.model,
                n_layers=content.n_layers,
                n_heads=content.n_heads,
                tasks=tuple(content.tasks),
                context_length=content.context_length,
                source=content.source,
            )
        except HeadSetError as error:
            raise HeadSetError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the set as JSON, all or nothing.

        Raises:
            DataError: the folder is missing or can't be written.
        """
        content = formats.SetFile(
            format="mmrh-head-set",
            version=1,
            heads=[str(head) for head in self.heads],
            scores=None if self.scores is None else list(self.scores),
            model=self.model_id,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            tasks=list(self.tasks),
            context_length=self.context_length,
            source=self.source,
        )
        files.write_json(Path(path), content, indent=None)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[HeadId]:
        return iter(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

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
        layers: dict[int, list[int]] = {}
        for head in sorted(self.heads):
            layers.setdefault(head.layer, []).append(head.head)
        return {layer: tuple(heads) for layer, heads in layers.items()}

    def up_to_layer(self, max_layer: int) -> HeadSet:
        """The heads of this set in layers up to and including ``max_layer``; the set only shrinks.

        Raises:
            HeadSetError: none lies so early.
        """
        kept = [place for place, head in enumerate(self.heads) if head.layer <= max_layer]
        if not kept:
            raise HeadSetError(
                f"None of these {len(self)} heads lies in layers 0 to {max_layer}; the first is in layer "
                f"{min(head.layer for head in self.heads)}. Raise the limit or select with max_layer."
            )
        scores = None if self.scores is None else tuple(self.scores[place] for place in kept)
        return replace(self, heads=tuple(self.heads[place] for place in kept), scores=scores)

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
        self,
        n_layers: int,
        n_heads: int,
        selectable_layers: Iterable[int] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Check that a model has these heads, and that they may be recorded.

        ``selectable_layers`` are the layers with global attention, ``None`` meaning all. ``model_id``,
        where it is given, must name the model of the set, or a copy of it (see :func:`same_model`).

        Raises:
            HeadSetError: names the heads that do not fit.
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
        self,
        n: int | None = None,
        seed: int = 0,
        *,
        layers: Iterable[int] | None = None,
        disjoint: bool = True,
    ) -> HeadSet:
        """As many random heads of the same model: the control of the paper's masking experiments.

        ``n`` heads instead, where it is given; only from ``layers``, where these are given; none of this
        set's own unless ``disjoint`` is false. The same seed draws the same heads.

        Raises:
            HeadSetError: the set does not know its model's size, or too few heads are left to draw from.
        """
        wanted = len(self) if n is None else n
        return self._drawn({None: wanted}, seed, layers=layers, disjoint=disjoint)

    def random_same_layers(self, seed: int = 0, *, disjoint: bool = True) -> HeadSet:
        """Random heads with as many in each layer as this set has: a control for depth.

        Raises:
            HeadSetError: as :meth:`random_like`; a layer that this set takes more than half of can't
                give as many others (pass ``disjoint=False``).
        """
        return self._drawn({layer: len(heads) for layer, heads in self.by_layer().items()}, seed, disjoint=disjoint)

    def _drawn(
        self,
        wanted: Mapping[int | None, int],
        seed: int,
        *,
        layers: Iterable[int] | None = None,
        disjoint: bool,
    ) -> HeadSet:
        """``wanted[layer]`` random heads of each layer, the key ``None`` standing for any layer."""
        if self.n_layers is None or self.n_heads is None:
            raise HeadSetError("A random control needs the model's size: give the set n_layers and n_heads.")
        own = set(self.heads) if disjoint else set()
        pool = [head for head in HeadSet.all_heads(self.n_layers, self.n_heads, layers) if head not in own]
        random = np.random.default_rng(seed)
        drawn: list[HeadId] = []
        for layer, count in wanted.items():
            left = [head for head in pool if layer is None or head.layer == layer]
            if not 1 <= count <= len(left):
                where = "the model" if layer is None else f"layer {layer}"
                raise HeadSetError(
                    f"{count} random heads asked of {where}, {len(left)} to draw from. Ask for 1 to {len(left)}, "
                    "or pass disjoint=False."
                )
            drawn.extend(left[int(i)] for i in random.choice(len(left), size=count, replace=False))
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


def _ceil_share(share: float, total: int) -> int:
    """``ceil(share * total)``, safe against rounding: 7 % of 100 is 7, though 0.07 * 100 > 7."""
    if not 0.0 < share <= 1.0:
        raise HeadSetError(f"A share of heads lies above 0 and is at most 1, got {share}. 5 % is 0.05.")
    return math.ceil(share * total - 1e-9)


def _check_range(heads: Iterable[HeadId], n_layers: int | None, n_heads: int | None) -> None:
    outside = [
        head
        for head in heads
        if min(head) < 0
        or (n_layers is not None and head.layer >= n_layers)
        or (n_heads is not None and head.head >= n_heads)
    ]
    if outside:
        raise HeadSetError(
            f"Heads that the model does not have: {listed(outside)}. Expected layers 0 to "
            f"{'?' if n_layers is None else n_layers - 1} and query heads 0 to "
            f"{'?' if n_heads is None else n_heads - 1}; use heads detected on this model."
        )


def load_head_set(path: str | Path, *, share: float | None = None, max_layer: int | None = None) -> HeadSet:
    """Heads from a file of either kind: a head set as it is, a scores file by :meth:`HeadSet.of_tasks`.

    ``share`` and ``max_layer`` select from a scores file; a head set is cut to ``max_layer`` and keeps
    its size otherwise.

    Raises:
        DataError: the file can't be read as either.
        HeadSetError: heads or scores that are impossible, or a limit that leaves none.
    """
    path = Path(path)
    what = "head set or file of head scores"
    declared = files.format_of(files.read_text(path, what=what), where=str(path), what=what)
    if declared != formats.SET_FORMAT:
        return HeadSet.of_tasks(HeadScoresTable.load(path), share=share, max_layer=max_layer)
    if share is not None:
        raise HeadSetError(f"{path}: holds a head set, from which no share can be taken. Give a scores file.")
    heads = HeadSet.load(path)
    return heads if max_layer is None else heads.up_to_layer(max_layer)


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
