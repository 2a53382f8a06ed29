"""What detection and the causal test run through a model beside what ranking does.

Contexts whose parts count for themselves, questions with pictures, and hidden states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmrh_retriever.encoding.engine import UNLIMITED, Engine
from mmrh_retriever.encoding.question_tree import QuestionTree
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.errors import AttentionCaptureError, ContextOverflowError
from mmrh_retriever.heads.scores import HeadId
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.model.recording import Recording
from mmrh_retriever.model.vision import Vision
from mmrh_retriever.research.probes.probe import Probe
from mmrh_retriever.research.probes.prompts import ProbePrompter


class ProbePasses:
    """Runs probes through one model: one engine per wording. The engines share the vision tower's memory.

    Hidden states need a head in the last layer. With ``independent``, each item is encoded as if it stood alone.
    """

    def __init__(self, prompter: ProbePrompter, heads: Sequence[HeadId], vision: Vision, *, independent: bool) -> None:
        self.backbone = prompter.ranking.backbone
        budget = UNLIMITED if independent else self.backbone.context
        self._engines = {
            labelled: Engine(wording, heads, budget, independent=independent, vision=vision)
            for labelled, wording in ((True, prompter.ranking), (False, prompter.interleaved))
        }

    def encode(self, probe: Probe, segments: Iterable[PromptSegment]) -> Window:
        """Run a probe's context as one window. Each ``scored`` span of each segment is a span of its own."""
        engine = self._engines[probe.labelled]
        window = engine.open_window()
        for segment in segments:
            asked = len(window) + len(segment)
            if asked > engine.token_budget:
                raise ContextOverflowError(
                    f"The context of the probe {probe.name!r} takes {asked} tokens or more; the model's is "
                    f"{engine.token_budget}. Use shorter contexts.",
                    tokens=asked,
                    allowed=engine.token_budget,
                )
            engine.passes.run_pages(window, [segment])
            window.add_parts(segment)
        return window

    def extend(self, probe: Probe, window: Window, segments: Iterable[PromptSegment]) -> None:
        """Put segments behind everything that a window holds, for good. They see all of it and count for no span."""
        passes = self._engines[probe.labelled].passes
        for segment in segments:
            passes.check_room(window, len(segment))
            passes.run_behind(window, segment)
            window.add_behind(segment)

    def ask(
        self, probe: Probe, window: Window, question: Sequence[PromptSegment], null: Sequence[PromptSegment]
    ) -> tuple[Tensor, Tensor]:
        """The attention that a question and a null question pay a window: ``(heads, spans)`` each.

        Two texts run in one pass. Where one of the two holds pictures, segments run one after the other.
        """
        if len(question) == len(null) == 1 and not question[0].inputs:
            paid, null_paid = self._engines[probe.labelled].ask_with_null(window, question, null[0])
            if null_paid is not None:
                return paid.mass[0], null_paid.mass[0]
        return self._ask(probe, window, question), self._ask(probe, window, null)

    def _ask(self, probe: Probe, window: Window, question: Sequence[PromptSegment]) -> Tensor:
        """The attention that one question pays a window, segment after segment: ``(heads, spans)``."""
        engine = self._engines[probe.labelled]
        looking = sum(len(span) for segment in question for span in segment.scored)
        mass = torch.zeros(engine.heads.count, window.spans, dtype=torch.float32)
        tokens = extent = 0
        with self.backbone.seam.lock:
            try:
                for segment in question:
                    engine.passes.check_room(window, len(segment), tokens=tokens)
                    rows = [range(span.start, span.stop) for span in segment.scored]
                    recording = Recording(engine.heads, rows, window.owners(), window.spans) if rows else None
                    engine.passes.run_behind(window, segment, tokens=tokens, extent=extent, recording=recording)
                    if recording is not None:
                        share = torch.tensor([len(span) / looking for span in rows], dtype=torch.float32)  # (spans,)
                        mass += torch.einsum("s,shm->hm", share, recording.mass)
                    tokens, extent = tokens + len(segment), extent + segment.extent
            finally:
                window.cache.crop_to(len(window))
        return mass

    def hidden_states(self, probe: Probe, window: Window, texts: Sequence[PromptSegment]) -> list[Tensor]:
        """The last hidden states, ``(tokens, width)`` each, of texts that each stand alone behind a window."""
        passes = self._engines[probe.labelled].passes
        if self.backbone.recurrent_layers and len(texts) > 1:  # their states can't be shared by several texts
            return [states for text in texts for states in self.hidden_states(probe, window, [text])]
        tree = QuestionTree()
        for text in texts:
            passes.check_room(window, len(text))
            tree.add(text.ids)
        states = passes.run_tree(window, tree)
        if states is None:
            raise AttentionCaptureError("The decoder gave no hidden states; expected last_hidden_state.")
        return [states[0, list(path)] for path in tree.paths]
