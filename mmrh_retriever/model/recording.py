"""Recording: post-softmax attention of a few heads from a few rows, added up per span at once.

The retrieval score of a head for a span is the mean over the question's tokens of the head's post-softmax attention
summed over the span's tokens (S_h of Li et al. 2026, arXiv 2605.27243). It lies in [0, 1], also where
tokens have weights. Logits and softmax are formed in float32 whatever the model's dtype: probabilities formed in
bfloat16 can sum to more. Plain tensor maths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrh_retriever.errors import AttentionCaptureError

LOGIT_BUDGET = 16 * 1024 * 1024
"""Float32 logits that recording may hold at a time (64 MiB), however long the context and many the heads."""
CPU_LOGIT_BUDGET = 512 * 1024
"""The same on a CPU: what stays in its cache between the steps that read it."""
KEY_CHUNK = 16 * 1024
"""Keys turned into float32 at a time while recording a half-precision model with a long context."""
KEPT_KEYS = 4 * 1024 * 1024
"""Numbers (16 MiB) that a head's keys may be to be turned into float32 once, and not for each block of rows."""


@dataclass(frozen=True, slots=True)
class HeadsByLayer:
    """Which query heads of which layers, and the column that each one's result goes to."""

    columns: Mapping[int, tuple[tuple[int, int], ...]]  # layer -> ((head, column), ...)
    count: int

    @classmethod
    def of(cls, heads: Sequence[tuple[int, int]]) -> HeadsByLayer:
        """From ``(layer, head)`` pairs; a head's column is its index in the sequence."""
        columns: dict[int, list[tuple[int, int]]] = {}
        for column, (layer, head) in enumerate(heads):
            columns.setdefault(layer, []).append((head, column))
        return cls({layer: tuple(sorted(pairs)) for layer, pairs in columns.items()}, len(heads))

    @property
    def deepest(self) -> int:
        """The last layer that holds one of the heads."""
        return max(self.columns)


class Recording:
    """What a pass is to record, and what it recorded.

    ``rows`` are each question's query rows, as token offsets in the pass; questions may share rows. ``owner`` is
    ``(keys,)`` long: the span that each key belongs to, -1 for none; keys beyond it belong to none. After the pass
    ``mass`` is ``(questions, heads, spans)`` float32: the mean over a question's rows of a head's attention summed over
    a span, the retrieval score; with ``weights``, ``(rows,)`` per question, the weighted mean. With ``tokens``,
    ``token_mass`` is ``(questions, keys)``: the same per key, averaged over the heads.
    """

    def __init__(
        self,
        heads: HeadsByLayer,
        rows: Sequence[Sequence[int]],
        owner: Tensor,
        spans: int,
        *,
        weights: Sequence[Tensor] | None = None,
        tokens: bool = False,
    ) -> None:
        if not rows or any(len(looking) == 0 for looking in rows):
            raise AttentionCaptureError(
                f"Recording needs at least one row for each question, got {[len(r) for r in rows]}. "
                "The question has no tokens to look from."
            )
        self.heads = heads
        self.rows = tuple(rows)
        self.weights = (
            [torch.ones(len(looking), dtype=torch.float32) for looking in rows] if weights is None else list(weights)
        )
        self.owner = owner
        self.spans = spans
        self.mass = torch.zeros(len(rows), heads.count, spans, dtype=torch.float32)
        self.token_mass = torch.zeros(len(rows), owner.numel(), dtype=torch.float32) if tokens else None
        self.layers_seen: set[int] = set()
        self._tables: dict[torch.device, _Tables] = {}

    def tables_on(self, device: torch.device) -> _Tables:
        """The tables that every layer's recording reads, made once per device."""
        if device not in self._tables:
            self._tables[device] = _Tables.of(self, device)
        return self._tables[device]

    def finish(self) -> None:
        """Raise :class:`AttentionCaptureError` where a layer never called our function, or attention is not finite."""
        missing = sorted(set(self.heads.columns) - self.layers_seen)
        if missing:
            raise AttentionCaptureError(
                f"Layers {missing} did not report their attention; layers {sorted(self.layers_seen)} did. "
                "The model does not run these layers through transformers' AttentionInterface."
            )
        if not bool(torch.isfinite(self.mass).all()):
            bad = (~torch.isfinite(self.mass)).any(dim=2).any(dim=0).nonzero().flatten().tolist()
            names = [
                f"{layer}-{head}"
                for layer, pairs in sorted(self.heads.columns.items())
                for head, column in pairs
                if column in set(bad)
            ]
            raise AttentionCaptureError(
                f"Heads {', '.join(names[:8])}{' and others' if len(names) > 8 else ''} gave NaN or infinite "
                "attention. Expected finite numbers: the weights are damaged, or the model overflows in its dtype; "
                "load it again, or with dtype=torch.bfloat16 or float32."
            )


@dataclass(frozen=True, slots=True)
class _Tables:
    """A recording's tables on one device.

    ``rows`` is ``(rows,)``: the offsets of the recorded rows, ascending, each once. ``first`` and ``last`` bound the
    questions that each row belongs to. ``average`` is ``(questions, rows)``: its weights sum to one
    per question. ``bins`` is ``(keys,)``: the span that a key's attention is added to, or one more than there are for
    none.
    """

    rows: Tensor
    first: tuple[int, ...]
    last: tuple[int, ...]
    average: Tensor
    bins: Tensor

    @classmethod
    def of(cls, recording: Recording, device: torch.device) -> _Tables:
        looking = torch.cat([torch.tensor(own) for own in recording.rows])
        each = torch.tensor([len(own) for own in recording.rows])
        questions = torch.repeat_interleave(each)
        rows, column = looking.unique(return_inverse=True)
        average = torch.zeros(len(each), rows.numel(), dtype=torch.float32)
        average[questions, column] = torch.cat([weights / weights.sum() for weights in recording.weights])
        first = torch.full((rows.numel(),), len(each)).scatter_reduce(0, column, questions, "amin")
        last = torch.zeros(rows.numel(), dtype=torch.long).scatter_reduce(0, column, questions, "amax")
        bins = torch.where(recording.owner >= 0, recording.owner, recording.spans)
        return cls(rows.to(device), tuple(first.tolist()), tuple(last.tolist()), average.to(device), bins.to(device))


def record(
    recording: Recording,
    layer: int,
    query: Tensor,
    key: Tensor,
    mask_rows: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Add one layer's attention to a recording, never holding more than ``LOGIT_BUDGET`` logits.

    ``query`` is ``(heads, tokens, width)`` and ``key`` ``(key heads, keys, width)``, both rotated. ``mask_rows`` is
    ``(recorded rows, last keys)``, additive; the keys before these are seen by every row. With ``softcap`` logits
    become ``softcap * tanh(logits / softcap)``. ``sinks`` is ``(heads,)``: logits that take their share of the softmax.
    """
    recording.layers_seen.add(layer)
    device = query.device
    tables = recording.tables_on(device)
    keys, known, questions, rows = key.shape[1], tables.bins.numel(), len(recording.rows), tables.rows.numel()
    group = query.shape[0] // key.shape[0]
    by_key: dict[int, list[tuple[int, int]]] = {}
    for head, column in recording.heads.columns[layer]:
        by_key.setdefault(head // group, []).append((head, column))
    budget = min(LOGIT_BUDGET, CPU_LOGIT_BUDGET) if device.type == "cpu" else LOGIT_BUDGET
    fewest = min(32, LOGIT_BUDGET // keys)  # rows for which reading all keys once more is worth it
    step = max(1, min(rows, max(budget // keys, fewest)))
    at_once = max(1, min(budget // (keys * step), LOGIT_BUDGET // (questions * keys)))
    for key_head, pairs in by_key.items():
        seen = key[key_head].float() if key[key_head].numel() <= KEPT_KEYS else key[key_head]
        for start in range(0, len(pairs), at_once):
            part = pairs[start : start + at_once]
            chosen = query[[head for head, _ in part]][:, tables.rows]  # (heads, rows, width)
            sink = None if sinks is None else sinks[[head for head, _ in part]].float()
            totals = torch.zeros(len(part), questions, known, device=device, dtype=torch.float32)
            for row in range(0, rows, step):
                block = slice(row, row + step)
                asking = slice(min(tables.first[block]), max(tables.last[block]) + 1)
                attention = _attention_rows(chosen[:, block], seen, mask_rows[block], scaling, softcap, sink)
                totals[:, asking] += tables.average[asking, block] @ attention[:, :, :known]
            sums = torch.zeros(len(part), questions, recording.spans + 1, device=device, dtype=torch.float32)
            sums.index_add_(2, tables.bins, totals)
            recording.mass[:, [column for _, column in part]] = sums[:, :, :-1].transpose(0, 1).cpu()
            if recording.token_mass is not None:
                recording.token_mass += totals.sum(dim=0).cpu() / recording.heads.count


def _attention_rows(
    query: Tensor, key: Tensor, mask: Tensor, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """``(heads, rows, keys)`` post-softmax attention, float32, of heads that share one key head."""
    logits = _logits(query.flatten(0, 1), key, scaling).view(query.shape[0], query.shape[1], -1)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits[:, :, logits.shape[2] - mask.shape[1] :] += mask
    if sinks is None:
        return torch.softmax(logits, dim=2)
    column = sinks[:, None, None].expand(-1, logits.shape[1], 1)
    return torch.softmax(torch.cat([logits, column], dim=2), dim=2)[:, :, :-1]


def _logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """``(rows, keys)`` float32 logits; keys are turned into float32 a chunk at a time."""
    wide = query.float() * scaling
    if key.dtype is torch.float32:
        return wide @ key.T
    parts = [wide @ chunk.float().T for chunk in key.split(KEY_CHUNK)]
    return torch.cat(parts, dim=1)
