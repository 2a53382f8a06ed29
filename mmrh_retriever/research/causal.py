"""The causal test: does a model stop finding its answers when its retrieval heads are masked?

After "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243: answer accuracy with no head masked, with
the selected heads masked, and with as many random heads masked; while reading and answering, or only while answering.
A masked head's post-softmax weights are zero. There are two controls: random heads from anywhere in the model, and
random heads with as many in each layer as the selection has.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedModel

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.files import FileModel, write_atomically
from mmrh_retriever.heads.published import resolve_heads
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.model.attention_seam import AblationPhase
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.research.answering import LEAD_IN, Answerer, Masking
from mmrh_retriever.research.answers import AnswerMeasures, chosen, measure
from mmrh_retriever.research.probes.probe import Probe
from mmrh_retriever.research.probes.prompts import ProbePrompt, ProbePrompter
from mmrh_retriever.runs.journal import Journal

logger = logging.getLogger(__name__)

Answering = Literal["generate", "choices"]
"""How a model answers: freely through ``generate()``, or by the likelihood of each choice."""
RandomFrom = Literal["others", "all"]
UNMASKED, SELECTED, RANDOM, SAME_LAYERS = "unmasked", "selected", "random", "random, same layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalRow(AnswerMeasures):
    """One answer under one masking, and how right it is.

    ``masked`` is ``unmasked``, ``selected``, ``random`` or ``random, same layers``. ``phase`` is ``all`` (reading and
    answering) or ``decode`` (answering alone), and empty where nothing is masked. ``seed`` is that of a random draw,
    ``heads`` the number of masked heads. ``correct`` runs from 0 to 1 like the other measures; ``chance`` is what
    guessing among the probe's choices gets of it on average, 0 where there are none.
    """

    probe: str
    task: str
    context_length: int
    depth: float
    masked: str
    phase: str
    seed: int | None
    heads: int
    given: str
    answer: str
    correct: float
    chance: float


class ProbeAnswers(FileModel):
    """All answers to one probe: a line of a causal test's journal."""

    probe: str
    rows: list[CausalRow]


@dataclass(frozen=True, slots=True)
class _Condition(Masking):
    """A masking with its name in the rows, and the seed of a random draw."""

    masked: str = UNMASKED
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class CausalSettings:
    """How probes are answered, and what is masked.

    Attributes:
        answering: ``generate`` or ``choices``. If not given, by likelihood where a probe has choices, and freely
            elsewhere. Models that don't follow instructions need ``choices``.
        random_seeds: random draws of each control.
        random_from: draw random heads from the ``others`` alone, so that no selected head is among them, or from
            ``all``.
        same_layers: also draw random heads with the selection's spread over the layers. Where a layer has too few
            others, that control may draw selected heads too, and a warning says so.
        phases: mask while reading and answering (``all``), only while answering (``decode``), or both.
        prompt: how probes are worded.
        lead_in: what the answer is begun with.
        max_new_tokens: the longest free answer.
    """

    answering: Answering | None = None
    random_seeds: int = 5
    random_from: RandomFrom = "others"
    same_layers: bool = True
    phases: tuple[AblationPhase, ...] = ("all", "decode")
    prompt: ProbePrompt | None = None
    lead_in: str = LEAD_IN
    max_new_tokens: int = 32


def _conditions(heads: HeadSet, global_layers: Sequence[int], settings: CausalSettings) -> list[_Condition]:
    """The maskings of one probe. Those that share a prefill stand side by side."""
    draws: list[tuple[str, int | None, HeadSet]] = [(SELECTED, None, heads)]
    disjoint = settings.random_from == "others"
    for seed in range(settings.random_seeds):
        draws.append((RANDOM, seed, heads.random_like(seed=seed, layers=global_layers, disjoint=disjoint)))
        if settings.same_layers:
            draws.append((SAME_LAYERS, seed, _same_layers(heads, seed, disjoint=disjoint)))
    # answering alone goes on from the unmasked prefill, so it stands beside it
    phases = sorted(settings.phases, key=lambda phase: phase != "decode")
    masked = (_Condition(drawn.heads, phase, name, seed) for phase in phases for name, seed, drawn in draws)
    return [_Condition(), *masked]


def _same_layers(heads: HeadSet, seed: int, *, disjoint: bool) -> HeadSet:
    try:
        return heads.random_same_layers(seed, disjoint=disjoint)
    except HeadSetError:
        if seed == 0:
            logger.warning(
                "A layer has too few heads besides the selected ones: the same-layer control may draw these too, so it "
                "lies nearer to the selected heads than it should. Select fewer heads for a clean control."
            )
        return heads.random_same_layers(seed, disjoint=False)


def causal_rows(
    model: PreTrainedModel,
    processor: Any,
    probes: Iterable[Probe],
    heads: str | Path | HeadSet,
    settings: CausalSettings | None = None,
    *,
    finished: Collection[str] = (),
    progress: bool = False,
    total: int | None = None,
    **changes: Any,
) -> Iterator[CausalRow]:
    """Answer each probe under each masking, one row at a time.

    ``processor`` is the model's processor, its tokenizer, or ``(tokenizer, image_processor)``. ``heads`` are the
    selected ones: a set, a path, or ``"published"``. Probes whose names are ``finished`` are left out. ``progress``
    shows a bar for ``total`` probes on stderr, if that is a terminal. ``changes`` are fields of
    :class:`CausalSettings`, in place of those of ``settings``.

    Raises:
        HeadSetError: heads that do not fit the model, or too few others for a control.
        DataError: no answer to compare with, or no choices where these are asked for.
        ContextOverflowError: a probe longer than the model's context.
        PageError: an item that can't be read, or that this model can't take.
    """
    how = replace(settings or CausalSettings(), **changes)
    reranker = Reranker(model, processor, heads="all")
    backbone = reranker.backbone
    selected = resolve_heads(heads, backbone.facts)
    if selected.n_layers is None or selected.n_heads is None:
        selected = HeadSet(selected.heads, n_layers=backbone.layers, n_heads=backbone.heads)
    conditions = _conditions(selected, backbone.global_layers, how)
    answerer = Answerer(
        ProbePrompter(reranker.prompter, how.prompt),
        lead_in=how.lead_in,
        max_new_tokens=how.max_new_tokens,
        independent=reranker.independent,
        vision=reranker.vision,
    )
    for probe in tqdm(
        probes, desc="probes", unit="probe", total=total, disable=None if progress else True, leave=False
    ):
        if probe.name in finished:
            continue
        if not probe.answer:
            raise DataError(f"Probe {probe.name!r} has no answer to compare with. Use probes with answers.")
        answering: Answering = how.answering or ("choices" if len(probe.choices) > 1 else "generate")
        for condition in conditions:
            yield _row(answerer, probe, condition, answering)


def causal_journal(folder: str | Path, settings: Mapping[str, Any], *, resume: bool) -> Journal[ProbeAnswers]:
    """The folder that keeps a causal test's answers, so that a killed run can be resumed."""
    return Journal(folder, ProbeAnswers, lambda answers: answers.probe, settings, what="causal test", resume=resume)


def keep_rows(rows: Iterable[CausalRow], journal: Journal[ProbeAnswers]) -> list[CausalRow]:
    """Write each probe's answers into a journal once it is finished. Gives all rows, those of the journal first."""
    for name, answers in itertools.groupby(rows, key=lambda row: row.probe):
        journal.add(ProbeAnswers(probe=name, rows=list(answers)))
    return [row for answers in journal.done.values() for row in answers.rows]


def save_rows(rows: Iterable[CausalRow], path: str | Path) -> list[CausalRow]:
    """Write rows as JSON lines, all or nothing (else :class:`DataError`). Gives them all."""
    found = list(rows)
    write_atomically(Path(path), "".join(json.dumps(asdict(row)) + "\n" for row in found).encode())
    return found


def _row(answerer: Answerer, probe: Probe, condition: _Condition, answering: Answering) -> CausalRow:
    by_choice = answering == "choices"
    given = answerer.choose(probe, condition)[0] if by_choice else answerer.generate(probe, condition)
    measures = measure(given, (probe.answer, *probe.accepted))
    correct = measures.contains == 1.0
    if probe.choices:
        correct = probe.answer == (given if by_choice else chosen(given, probe.choices))
    return CausalRow(
        probe=probe.name,
        task=probe.task,
        context_length=probe.context_length,
        depth=probe.depth,
        masked=condition.masked,
        phase=condition.phase if condition.heads else "",
        seed=condition.seed,
        heads=len(condition.heads),
        given=given,
        answer=probe.answer,
        correct=float(correct),
        chance=1 / len(probe.choices) if probe.choices else 0.0,
        **asdict(measures),
    )
