"""Detection: how much each head of a model attends from a question to its evidence, over many probes.

After "Can Retrieval Heads See Images?", Li et al. 2026, arXiv 2605.27243. A head's score on a probe is the mean over
the question's tokens of its post-softmax attention summed over the evidence's tokens, minus the same for a null
question on the same context. Its detection score is the mean over the probes of a task and context length.

A probe's context runs once; the question and the null question run on its keys. Memory holds one context at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm
from transformers import PreTrainedModel

from mmrh_retriever.encoding.window import Window
from mmrh_retriever.errors import AttentionCaptureError, DataError, SettingsError
from mmrh_retriever.heads.scores import HeadScores, HeadScoresTable
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.model.fingerprints import weights_fingerprint
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.research.head_analysis import Stability, stability
from mmrh_retriever.research.probe_passes import ProbePasses
from mmrh_retriever.research.probe_scores import ProbeScores
from mmrh_retriever.research.probes.probe import Probe
from mmrh_retriever.research.probes.prompts import ProbeContext, ProbePrompt, ProbePrompter
from mmrh_retriever.runs.journal import Journal
from mmrh_retriever.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """A finished detection run: every probe's scores, and what follows from them.

    ``global_layers`` are the layers whose attention spans the whole context; the others have no scores.
    """

    model_id: str
    global_layers: tuple[int, ...]
    probes: tuple[ProbeScores, ...]
    source: str

    @property
    def table(self) -> HeadScoresTable:
        """The mean, spread (standard deviation over the probes) and recall@1 of each head, by task and length."""
        return HeadScoresTable(self._scores(*condition) for condition in self.conditions)

    @property
    def conditions(self) -> tuple[tuple[str, int], ...]:
        """Tasks and context lengths, in the order in which they were probed."""
        return tuple(dict.fromkeys((probe.task, probe.context_length) for probe in self.probes))

    def example_scores(self, task: str, context_length: int) -> FloatArray:
        """Each probe's calibrated scores under one condition: ``(probes, layers, heads)``, NaN where not measured."""
        return np.stack([probe.scores for probe in self._at(task, context_length)])

    def stability(self, task: str, context_length: int, **options: Any) -> Stability:
        """The overlap of the best heads that disjoint parts of the probes find.

        ``options`` go to :func:`mmrh_retriever.research.head_analysis.stability`.
        """
        scores = self.example_scores(task, context_length)
        return stability(scores, selectable_layers=self.global_layers, **options)

    def _at(self, task: str, context_length: int) -> list[ProbeScores]:
        found = [probe for probe in self.probes if (probe.task, probe.context_length) == (task, context_length)]
        if not found:
            raise DataError(f"No probes of the task {task!r} at {context_length} tokens; there are {self.conditions}.")
        return found

    def _scores(self, task: str, context_length: int) -> HeadScores:
        scores = self.example_scores(task, context_length).astype(np.float64)
        hits = [probe.hits for probe in self._at(task, context_length)]
        recall = np.where(np.isnan(scores[0]), np.nan, np.mean(hits, axis=0))
        spread = scores.std(axis=0, ddof=1) if len(scores) > 1 else 0 * scores[0]
        every = len(self.global_layers) == scores.shape[1]
        return HeadScores(
            scores.mean(axis=0).astype(np.float32),
            self.model_id,
            task,
            context_length,
            source=self.source,
            n_examples=len(scores),
            spread=spread.astype(np.float32),
            recall_at_1=recall.astype(np.float32),
            selectable_layers=None if every else self.global_layers,
        )


def detect_heads(model: PreTrainedModel, processor: Any, probes: Iterable[Probe], **options: Any) -> HeadScoresTable:
    """Null-calibrated retrieval scores of every head, by task and context length: the table of :func:`detect`."""
    return detect(model, processor, probes, **options).table


def detect(
    model: PreTrainedModel,
    processor: Any,
    probes: Iterable[Probe],
    *,
    prompt: ProbePrompt | None = None,
    preset: str | None = None,
    model_id: str | None = None,
    independent: bool | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
    total: int | None = None,
) -> Detection:
    """Score every head of the layers with global attention on probes.

    Args:
        model: a loaded transformers model of a supported family.
        processor: its processor, its tokenizer, or ``(tokenizer, image_processor)``.
        probes: probes with evidence, taken one at a time. Neighbours on the same items share one prefill.
        prompt: how probes are worded, and which tokens look.
        preset: a named wording instead (:meth:`ProbePrompt.preset`): ``paper``.
        model_id: the name that the scores are filed under; the model's own unless given.
        independent: encode each item as if it stood alone; as the model's config says if not given.
        journal: a folder that takes each probe's scores at once, so that a killed run can be resumed.
        resume: go on with a journal that exists; probes that it holds are not run again.
        settings: what else must be alike when a journal is resumed (how the probes were made).
        progress: show a bar on stderr, if that is a terminal.
        total: how many probes there are, for the bar.

    Raises:
        SettingsError: both a prompt and a preset, or an unknown preset.
        DataError: no probes, two of one name, one without evidence; a journal that exists without ``resume``, of
            another model, shape or settings, or that holds other probes than these.
        ContextOverflowError: a probe longer than the model's context.
        AttentionCaptureError: the seam does not hold on this model, or attention is NaN.
        UnsupportedModelError: a family that we can't drive.
        PageError: an item that can't be read, or that this model can't take.
    """
    if preset is not None:
        if prompt is not None:
            raise SettingsError(f"Both a prompt and the preset {preset!r} were given. Give one of them.")
        prompt = ProbePrompt.preset(preset)
    reranker = Reranker(model, processor, heads="all", independent=independent)
    backbone = reranker.backbone
    scorer = _Scorer(reranker, prompt)
    wording = scorer.prompter.prompt
    name = model_id or backbone.name
    fixed = {
        "model": name,
        "model_type": str(backbone.config.model_type),
        "n_layers": backbone.layers,
        "n_heads": backbone.heads,
        "dtype": str(backbone.model.dtype),
        "weights": weights_fingerprint(backbone.model),
        "independent": reranker.independent,
        "prompt": asdict(wording),
        "probes": dict(settings or {}),
    }
    found: dict[str, ProbeScores] = {}
    log: Journal[ProbeScores] | None = None
    with ExitStack() as stack:
        if journal is not None:
            log = Journal(journal, ProbeScores, lambda one: one.name, fixed, what="detection run", resume=resume)
            stack.enter_context(log)
        done = {} if log is None else dict(log.done)
        for probe in tqdm(
            probes, desc="probes", unit="probe", total=total, disable=None if progress else True, leave=False
        ):
            if probe.name in found:
                raise DataError(f"Two probes are called {probe.name!r}. Give each a name of its own.")
            scored = done.pop(probe.name, None)
            if scored is None:
                scored = scorer.score(probe)
                if log is not None:
                    log.add(scored)
            elif scored.fingerprint != probe.fingerprint():
                raise DataError(
                    f"{journal}: the probe {probe.name!r} has the fingerprint {scored.fingerprint} there and "
                    f"{probe.fingerprint()} here: its context, question or evidence changed. Write to another folder."
                )
            found[probe.name] = scored
    if done:
        raise DataError(
            f"{journal}: holds {len(done)} probes that are not among these, such as {next(iter(done))!r}. Give the "
            "probes that the run was begun with, or write to another folder."
        )
    if not found:
        raise DataError("There are no probes to detect heads with. Give at least one.")
    source = f"mmrh detect, {len(found)} probes, null question {wording.null_question!r}"
    return Detection(name, backbone.global_layers, tuple(found.values()), source)


class _Scorer:
    """Runs probes. The last context is kept for neighbours that share it."""

    def __init__(self, reranker: Reranker, prompt: ProbePrompt | None) -> None:
        self.backbone = reranker.backbone
        self.prompter = ProbePrompter(reranker.prompter, prompt)
        heads = HeadSet.all_heads(self.backbone.layers, self.backbone.heads, self.backbone.global_layers)
        self.passes = ProbePasses(self.prompter, heads.heads, reranker.vision, independent=reranker.independent)
        self._kept: tuple[object, Sequence[object], ProbeContext, Window] | None = None

    def score(self, probe: Probe) -> ProbeScores:
        """Run one probe."""
        if not probe.evidence:
            raise DataError(
                f"Probe {probe.name!r} has no evidence, so no head can be scored on it. Leave such probes "
                "(negatives) to the causal test."
            )
        context, window = self._context(probe)
        asked, null_question = self.prompter.question_segments(probe), self.prompter.null_segments(probe)
        mass, null = self.passes.ask(probe, window, asked, null_question)  # (heads, parts) each
        calibrated = (mass.double() - null.double()).numpy()
        gold = list(probe.gold)
        values = calibrated[:, context.evidence(probe)].sum(axis=1)
        if not np.isfinite(values).all() or np.abs(values).max() > 1.0 + 1e-4:
            raise AttentionCaptureError(
                f"Probe {probe.name!r} gave a head the score {values[np.argmax(np.abs(values))]}; expected -1 to 1. "
                "Load the model again, or with dtype=torch.float32, and report it if that does not help."
            )
        items = calibrated @ np.eye(len(probe.items))[list(context.item)]  # (heads, items)
        best_of_others = np.delete(items, gold, axis=1).max(axis=1, initial=-np.inf)
        return ProbeScores(
            name=probe.name,
            fingerprint=probe.fingerprint(),
            task=probe.task,
            context_length=probe.context_length,
            depth=probe.depth,
            tokens=len(window),
            scores=self._grid(values, np.nan),
            hits=self._grid(items[:, gold].max(axis=1) > best_of_others, 0),
        )

    def _grid(self, values: npt.NDArray[Any], fill: float) -> npt.NDArray[Any]:
        """``(layers, heads)`` from the measured heads' values."""
        grid = np.full((self.backbone.layers, self.backbone.heads), fill)
        grid[list(self.backbone.global_layers)] = values.reshape(-1, self.backbone.heads)
        return grid

    def _context(self, probe: Probe) -> tuple[ProbeContext, Window]:
        cuts = tuple(span for span in probe.evidence if span.start is not None)
        key = (*map(id, probe.items), probe.labelled, cuts)
        if self._kept is None or key != self._kept[0]:
            self._kept = None  # one context's keys at a time
            context = self.prompter.context(probe)
            self._kept = (key, probe.items, context, self.passes.encode(probe, context.segments))
        return self._kept[2:]
