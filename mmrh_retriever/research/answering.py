"""Let a model answer a probe: freely through ``model.generate()``, or by the likelihood of each choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.encoding.window import Window
from mmrh_retriever.errors import ContextOverflowError, DataError
from mmrh_retriever.heads.scores import HeadId
from mmrh_retriever.model.attention_seam import AblationPhase
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.own_types import own_types
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.model.vision import Vision, joined_inputs
from mmrh_retriever.research.probe_passes import ProbePasses
from mmrh_retriever.research.probes.probe import Probe
from mmrh_retriever.research.probes.prompts import ProbePrompter

LEAD_IN = "Answer:"
"""What the model's answer is begun with."""


def plain_inputs(backbone: Backbone, segments: Sequence[PromptSegment]) -> dict[str, Tensor]:
    """A prompt as one plain input of the model, as the family's own processor would give it."""
    ids = torch.tensor([[number for segment in segments for number in segment.ids]], device=backbone.device)
    images = joined_inputs(backbone, segments)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    mask = backbone.family.image_mask
    if mask is not None and images:
        inputs[mask] = (ids == backbone.config.image_token_id).long()
    return inputs


@dataclass(frozen=True, slots=True)
class Masking:
    """Heads whose attention is zeroed: everywhere (``all``) or only while answering (``decode``).

    Answering begins with the prompt's last token, which gives the first token of the answer.
    """

    heads: tuple[HeadId, ...] = ()
    phase: AblationPhase = "all"


class Answerer:
    """Answers probes with one model. A picture goes through the vision tower once, however many maskings there are.

    The answer is begun with ``lead_in``, which is no part of it. With ``independent``, each item is read as if it stood
    alone when choices are weighed; a free answer always comes from one plain pass.
    """

    def __init__(
        self,
        prompter: ProbePrompter,
        *,
        lead_in: str = LEAD_IN,
        max_new_tokens: int = 32,
        independent: bool = False,
        vision: Vision | None = None,
    ) -> None:
        self.prompter = prompter
        self.backbone = prompter.ranking.backbone
        self.lead_in = lead_in
        self.max_new_tokens = max_new_tokens
        self.vision = Vision(self.backbone) if vision is None else vision
        last_layer = [HeadId(self.backbone.layers - 1, 0)]
        self._passes = ProbePasses(prompter, last_layer, self.vision, independent=independent)
        self._read: tuple[object, Window] | None = None
        self._written: tuple[Probe, list[PromptSegment], list[PromptSegment]] | None = None

    def generate(self, probe: Probe, masking: Masking | None = None) -> str:
        """The model's free answer, without sampling. It ends at a line break."""
        masking = masking or Masking()
        backbone, prompter = self.backbone, self.prompter.prompter(probe)
        context, tail = self._segments(probe)
        segments = [prompter.prefix_segment(), *context, *tail]
        inputs: dict[str, Any] = plain_inputs(backbone, segments)
        length = int(inputs["input_ids"].shape[1])
        if length + self.max_new_tokens > backbone.context:
            raise ContextOverflowError(
                f"Probe {probe.name!r} takes {length} tokens, and {self.max_new_tokens} for its answer; the model's "
                f"context is {backbone.context}. Use shorter contexts.",
                tokens=length + self.max_new_tokens,
                allowed=backbone.context,
            )
        features = self.vision.model_inputs(segments)
        if features:  # in place of the pixels
            inputs = {name: value for name, value in inputs.items() if not name.startswith("pixel_")} | features
        pad, end = prompter.tokenizer.pad_token_id, prompter.tokenizer.eos_token_id
        # in one pass over the prompt, whose last token is where answering begins
        plainly = {"do_sample": False, "num_beams": 1, "prefill_chunk_size": None}
        plainly |= {"temperature": None, "top_p": None, "top_k": None}
        backbone.check_evaluating()
        with torch.inference_mode(), self._masked(masking.heads, masking.phase):
            model: Any = backbone.model
            output = model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, pad_token_id=end if pad is None else pad, **plainly
            )
        text = str(prompter.tokenizer.decode(output[0, length:], skip_special_tokens=True)).strip()
        return text.split("\n", 1)[0].strip()

    def choose(self, probe: Probe, masking: Masking | None = None) -> tuple[str, Mapping[str, float]]:
        """The likeliest of a probe's choices, and the mean log-likelihood per token (in nats) of each.

        The context runs once per masking. Answering under ``phase="decode"`` goes on from the unmasked context.
        """
        masking = masking or Masking()
        if len(probe.choices) < 2:
            raise DataError(
                f"Probe {probe.name!r} has {len(probe.choices)} choices, too few to choose from. Let the "
                "model answer freely instead (answering='generate')."
            )
        prompter = self.prompter.prompter(probe)
        texts = {choice: prompter.text.plain(" " + choice) for choice in probe.choices}
        window, last = self._reading(probe, masking.heads if masking.phase == "all" else ())
        starts = [_segment(prompter, [*last, *ids[:-1]]) for ids in texts.values()]
        with self._masked(masking.heads, "all"):
            states = self._passes.hidden_states(probe, window, starts)
        scores = {
            choice: float(self._log_probabilities(state)[range(len(ids)), ids].mean())
            for (choice, ids), state in zip(texts.items(), states, strict=True)
        }
        return max(scores, key=lambda choice: scores[choice]), scores

    def _reading(self, probe: Probe, heads: tuple[HeadId, ...]) -> tuple[Window, Sequence[int]]:
        """A window of the prompt without its last token, and that token."""
        context, (*question, end) = self._segments(probe)
        key = (probe, heads)
        if self._read is None or self._read[0] != key:
            self._read = None  # one context's keys at a time
            before = _segment(self.prompter.prompter(probe), end.ids[:-1])
            with self._masked(heads, "all"):
                window = self._passes.encode(probe, context)
                self._passes.extend(probe, window, [*question, *([before] if len(before) else [])])
            self._read = (key, window)
        return self._read[1], end.ids[-1:]

    def _segments(self, probe: Probe) -> tuple[list[PromptSegment], list[PromptSegment]]:
        """The context and what follows it, kept for the next masking; the last segment is text and not empty."""
        if self._written is None or self._written[0] is not probe:
            prompter = self.prompter.prompter(probe)
            question = self.prompter.question_segments(probe)
            if probe.continues:  # such a question is text alone
                ids = question.pop().ids
                question.append(_segment(prompter, ids[:-1]))
                end = ids[-1:]
            else:
                end = [*prompter.answer_ids, *prompter.text.plain(self.lead_in)] or prompter.text.plain("\n")
            tail = [segment for segment in (*question, _segment(prompter, end)) if len(segment)]
            self._written = (probe, list(self.prompter.context(probe).segments), tail)
        return self._written[1], self._written[2]

    def _masked(self, heads: Sequence[HeadId], phase: AblationPhase) -> Any:
        return self.backbone.seam.ablating(heads, phase) if heads else nullcontext()

    def _log_probabilities(self, states: Tensor) -> Tensor:
        """``(tokens, vocabulary)`` float32, from last hidden states."""
        with torch.inference_mode(), own_types():
            unembed: Any = self.backbone.model.get_output_embeddings()
            logits = unembed(states).float()
            cap = getattr(self.backbone.text_config, "final_logit_softcapping", None)
            logits = torch.tanh(logits / cap) * cap if cap else logits
            return torch.log_softmax(logits, dim=-1)


def _segment(prompter: Prompter, ids: Sequence[int]) -> PromptSegment:
    """Tokens of a text."""
    segment = prompter.empty()
    segment.add_text(ids)
    return segment
