"""From attention rows and token spans to scores: plain tensor maths, no model.

The retrieval score of a head for a span is the mean over the question's tokens of the head's post-softmax
attention summed over the span's tokens (S_h of Li et al. 2026, arXiv 2605.27243). It lies in [0, 1]. Logits and
softmax are formed in float32 whatever the model's dtype: probabilities formed in bfloat16 can sum to more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmrh_retriever.errors import AttentionCaptureError
from mmrh_retriever.model.cpu_split_attention import can_split, log_sum_exp

LOGIT_BUDGET = 16 * 1024 * 1024
"""Float32 logits that recording may hold at a time (64 MiB), however long the context and many the heads."""
CPU_LOGIT_BUDGET = 512 * 1024
"""The same on a CPU: what stays in its cache between the steps that read it."""
KEY_CHUNK = 16 * 1024
"""Keys turned into float32 at a time while recording a half-precision model with a long context."""
MANY_ROWS = 128
"""Rows from which half-precision attention is summed a run of keys at a time and never formed (on a CPU)."""
SPAN_KEYS = 64
"""Keys in a run of one span, on average, for which that pays."""
OTHER_KEYS = 0.25
"""Share of keys that may belong to no span; their logits are formed."""
RUNS = 32
"""Runs of keys of the same length that are summed at a time."""
KEPT_KEYS = 4 * 1024 * 1024
"""Numbers (16 MiB) that a head's keys may be to be turned into float32 once, and not for each block of rows."""


@dataclass(frozen=True, slots=True)
class HeadsByLayer:
    """Which query heads of which layers, with the column that each one's result goes to."""

    columns: Mapping[int, tuple[tuple[int, int], ...]]  # layer -> ((head, column), ...)
    count: int

    @classmethod
    def of(cls, heads: Sequence[tuple[int, int]]) -> HeadsByLayer:
        """From ``(layer, head)`` pairs; a head's column is its place in the sequence."""
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

    Args:
        heads: the query heads.
        rows: the query rows of each question, as places in this pass's input. Questions may share rows.
        owner: ``(keys,)`` long; the span that each key token belongs to, -1 for none. Keys beyond it
            belong to none.
        spans: how many spans there are.
        tokens: whether to keep the attention on each key as well, averaged over the heads.

    After the pass ``mass`` is ``(questions, heads, spans)`` float32: the mean over a question's rows of a
    head's attention summed over a span (Li et al. 2026, arXiv 2605.27243, the retrieval score). ``token_mass``
    is ``(questions, keys)``: the same for each single key, averaged over the heads.
    """

    def __init__(
        self, heads: HeadsByLayer, rows: Sequence[Sequence[int]], owner: Tensor, spans: int, *, tokens: bool = False
    ) -> None:
        if not rows or any(len(looking) == 0 for looking in rows):
            raise AttentionCaptureError(
                f"Recording needs at least one row for each question, got {[len(r) for r in rows]}. "
                "The question has no tokens to look from."
            )
        self.heads = heads
        self.rows = tuple(rows)
        self.owner = owner
        self.spans = spans
        self.mass = torch.zeros(len(rows), heads.count, spans, dtype=torch.float32)
        self.token_mass = torch.zeros(len(rows), owner.numel(), dtype=torch.float32) if tokens else None
        self.layers_seen: set[int] = set()
        self._laid: dict[torch.device, _Laid] = {}

    def laid_on(self, device: torch.device) -> _Laid:
        """The tables that every layer's recording reads, made once a device."""
        if device not in self._laid:
            self._laid[device] = _Laid.of(self, device)
        return self._laid[device]

    @cached_property
    def runs(self) -> _Runs:
        """The runs of keys of one span, on the CPU; laid when first asked for."""
        return _Runs.of(torch.where(self.owner >= 0, self.owner, self.spans), self.spans)

    def finish(self) -> None:
        """Check that every layer asked about was seen, and that what was recorded is possible.

        Raises:
            AttentionCaptureError: a layer never called our function, or NaN or infinite attention.
        """
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
class _Laid:
    """A recording's tables on one device.

    ``rows`` are ``(rows,)`` places of the recorded rows, ascending, each once; ``first`` and ``last`` say which
    questions each belongs to at the least and at the most; ``average`` is ``(questions, rows)``, whose rows sum to
    one; ``bins`` is ``(keys,)``, the span that a key's attention is added to, one more than there are for none.
    """

    rows: Tensor
    first: tuple[int, ...]
    last: tuple[int, ...]
    average: Tensor
    bins: Tensor

    @classmethod
    def of(cls, recording: Recording, device: torch.device) -> _Laid:
        looking = torch.cat([torch.tensor(places) for places in recording.rows])
        each = torch.tensor([len(places) for places in recording.rows])
        questions = torch.repeat_interleave(each)
        rows, column = looking.unique(return_inverse=True)
        average = torch.zeros(len(each), rows.numel())
        average[questions, column] = 1 / each[questions]
        first = torch.full((rows.numel(),), len(each)).scatter_reduce(0, column, questions, "amin")
        last = torch.zeros(rows.numel(), dtype=torch.long).scatter_reduce(0, column, questions, "amax")
        bins = torch.where(recording.owner >= 0, recording.owner, recording.spans)
        return cls(rows.to(device), tuple(first.tolist()), tuple(last.tolist()), average.to(device), bins.to(device))


@dataclass(frozen=True, slots=True)
class _Runs:
    """Keys of one span that follow each other.

    ``places`` are ``(runs, keys)`` places of keys, runs of one length together, and ``spans`` the span of each run, in
    this order. ``others`` are the places of keys that belong to no span.
    """

    places: tuple[Tensor, ...]
    spans: Tensor
    others: Tensor

    @classmethod
    def of(cls, bins: Tensor, none: int) -> _Runs:
        changes = (bins[1:] != bins[:-1]).nonzero().flatten() + 1
        starts = torch.cat([torch.zeros(min(1, bins.numel()), dtype=torch.long), changes])
        lengths = torch.cat([changes, torch.tensor([bins.numel()])])[: len(starts)] - starts
        places, spans = [], [bins[:0]]
        for length in lengths.unique().tolist():
            begun = starts[(lengths == length) & (bins[starts] < none)]
            places += [part[:, None] + torch.arange(length) for part in begun.split(RUNS) if len(part)]
            spans.append(bins[begun])
        return cls(tuple(places), torch.cat(spans), (bins == none).nonzero().flatten())


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

    Args:
        recording: where the result goes.
        layer: the layer's index.
        query: ``(heads, tokens, width)``, rotated.
        key: ``(key heads, keys, width)``, rotated.
        mask_rows: ``(recorded rows, last keys)`` additive; the keys before these are seen by every row.
        scaling: factor on the logits.
        softcap: if set, logits become ``softcap * tanh(logits / softcap)``.
        sinks: ``(heads,)`` logits of attention sinks, which take their share of the softmax and give nothing.
    """
    recording.layers_seen.add(layer)
    device = query.device
    laid = recording.laid_on(device)
    keys, known, questions, rows = key.shape[1], laid.bins.numel(), len(recording.rows), laid.rows.numel()
    group = query.shape[0] // key.shape[0]
    by_key: dict[int, list[tuple[int, int]]] = {}
    for head, column in recording.heads.columns[layer]:
        by_key.setdefault(head // group, []).append((head, column))
    if softcap is None and recording.token_mass is None and _sums_runs(recording, query, key, mask_rows):
        for key_head, pairs in by_key.items():
            _add_runs(recording, pairs, query, key[key_head], mask_rows, scaling, sinks)
        return
    budget = min(LOGIT_BUDGET, CPU_LOGIT_BUDGET) if device.type == "cpu" else LOGIT_BUDGET
    fewest = min(32, LOGIT_BUDGET // keys)  # rows for which reading all keys once more is worth it
    step = max(1, min(rows, max(budget // keys, fewest)))
    at_once = max(1, min(budget // (keys * step), LOGIT_BUDGET // (questions * keys)))
    for key_head, pairs in by_key.items():
        seen = key[key_head].float() if key[key_head].numel() <= KEPT_KEYS else key[key_head]
        for start in range(0, len(pairs), at_once):
            part = pairs[start : start + at_once]
            chosen = query[[head for head, _ in part]][:, laid.rows]  # (heads, rows, width)
            sink = None if sinks is None else sinks[[head for head, _ in part]].float()
            totals = torch.zeros(len(part), questions, known, device=device)
            for row in range(0, rows, step):
                piece = slice(row, row + step)
                asking = slice(min(laid.first[piece]), max(laid.last[piece]) + 1)
                attention = _attention_rows(chosen[:, piece], seen, mask_rows[piece], scaling, softcap, sink)
                totals[:, asking] += laid.average[asking, piece] @ attention[:, :, :known]
            sums = torch.zeros(len(part), questions, recording.spans + 1, device=device)
            sums.index_add_(2, laid.bins, totals)
            recording.mass[:, [column for _, column in part]] = sums[:, :, :-1].transpose(0, 1).cpu()
            if recording.token_mass is not None:
                recording.token_mass += totals.sum(dim=0).cpu() / recording.heads.count


def _sums_runs(recording: Recording, query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether runs can be summed without forming attention: long runs of keys that all of many rows see."""
    keys = recording.owner.numel()
    return (
        key.dtype is not torch.float32
        and can_split(query[None], key[None], key[None])
        and recording.laid_on(query.device).rows.numel() >= MANY_ROWS
        and keys <= key.shape[1] - mask.shape[1]
        and recording.runs.spans.numel() * SPAN_KEYS <= keys
        and recording.runs.others.numel() <= OTHER_KEYS * keys
    )


def _add_runs(
    recording: Recording,
    pairs: Sequence[tuple[int, int]],
    query: Tensor,
    key: Tensor,
    mask: Tensor,
    scaling: float,
    sinks: Tensor | None,
) -> None:
    """Add the attention of ``(head, column)`` pairs that share one key head, summed run by run."""
    laid, runs = recording.laid_on(query.device), recording.runs
    heads = [head for head, _ in pairs]
    chosen = query[heads][:, laid.rows]  # (heads, rows, width)
    sink = None if sinks is None else sinks[heads].float()
    held = key.shape[0] - recording.owner.numel() + runs.others.numel() + runs.spans.numel()  # numbers for each row
    step = max(1, LOGIT_BUDGET // (len(pairs) * max(held, RUNS * query.shape[2])))
    shares = torch.zeros(runs.spans.numel(), len(pairs), len(recording.rows))
    for row in range(0, laid.rows.numel(), step):
        piece = slice(row, row + step)
        found = _run_shares(chosen[:, piece], key, mask[piece], recording, scaling, sink)
        shares += found @ laid.average[:, piece].T
    sums = torch.zeros(recording.spans, len(pairs), len(recording.rows)).index_add_(0, runs.spans, shares)
    recording.mass[:, [column for _, column in pairs]] = sums.permute(2, 1, 0)


def _run_shares(
    query: Tensor, key: Tensor, mask: Tensor, recording: Recording, scaling: float, sink: Tensor | None
) -> Tensor:
    """``(runs, heads, rows)`` post-softmax attention on each run of keys, float32, of heads that share one key head.

    A run's share is ``exp(l - L)``, with the log-sum-exp of the logits of its keys, ``l``, and of all keys, ``L``.
    """
    runs = recording.runs
    heads, rows, width = query.shape
    stacked = query.reshape(heads * rows, width)
    found = [
        log_sum_exp(stacked, key.index_select(0, places.flatten()).view(*places.shape, width), scaling=scaling)
        for places in runs.places
    ]
    others = torch.cat([key.index_select(0, runs.others), key[recording.owner.numel() :]])
    logits = _logits(stacked, others, scaling).view(heads, rows, -1)
    logits[:, :, logits.shape[2] - mask.shape[1] :] += mask
    found.append(torch.logsumexp(logits, dim=2).view(1, -1))
    if sink is not None:
        found.append(sink.repeat_interleave(rows)[None])
    shares = torch.softmax(torch.cat(found), dim=0)  # of runs, other keys and sink, (.., heads * rows)
    return shares[: runs.spans.numel()].view(-1, heads, rows)


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


def calibrated(mass: Tensor, null_mass: Tensor | None) -> Tensor:
    """Null-question calibration: ``S_cal = S(question) - S(null question)``, in [-1, 1].

    Args:
        mass: ``(..., heads, spans)``.
        null_mass: the same for the null question, without the questions' axis; ``None`` leaves ``mass`` as it is.
    """
    return mass if null_mass is None else mass - null_mass


def page_scores(mass: Tensor, null_mass: Tensor | None) -> Tensor:
    """``R(d)``: the mean over the selected heads of the calibrated score, ``(..., spans)`` float64.

    Added up in float64, so that the score does not depend on the order of the heads.
    """
    return calibrated(mass.double(), None if null_mass is None else null_mass.double()).mean(dim=-2)


def descending(scores: Tensor) -> list[int]:
    """Places of the scores from the highest down; equals keep their order."""
    return torch.sort(scores, descending=True, stable=True).indices.tolist()
