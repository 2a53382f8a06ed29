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
    """Heads whose attention is zeroed: in every pass (``all``) or only while answering (``decode``)."""

    heads: tuple[HeadId, ...] = ()
    phase: AblationPhase = "all"


class Answerer:
    """Answers probes with one model. A picture goes through the vision tower once, however many maskings there are.

    Args:
        backbone: the model.
        prompter: writes the probes.
        lead_in: what the answer is begun with; it is no part of the answer.
        max_new_tokens: the longest free answer.
        independent: read each item as if it stood alone when choices are weighed. A free answer always comes from one
            plain pass.
        vision: the model's vision tower with its memory; one of our own if ``None``.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompter: ProbePrompter,
        *,
        lead_in: str = LEAD_IN,
        max_new_tokens: int = 32,
        independent: bool = False,
        vision: Vision | None = None,
    ) -> None:
        self.backbone = backbone
        self.prompter = prompter
        self.lead_in = lead_in
        self.max_new_tokens = max_new_tokens
        self.vision = Vision(backbone) if vision is None else vision
        last_layer = [HeadId(backbone.layers - 1, 0)]
        self._passes = ProbePasses(prompter, last_layer, self.vision, independent=independent)
        self._read: tuple[object, Window, list[float]] | None = None
        self._written: tuple[Probe, list[PromptSegment], list[PromptSegment]] | None = None

    def generate(self, probe: Probe, masking: Masking | None = None) -> str:
        """The model's free answer, without sampling. It ends at a line break.

        Raises:
            ContextOverflowError: the prompt with its answer is longer than the model's context.
            PageError: an item that this model can't take or that can't be read.
        """
        masking = masking or Masking()
        backbone = self.backbone
        context, tail = self._segments(probe)
        segments = [self.prompter.prompter(probe).prefix_segment(), *context, *tail]
        tokenizer = self.prompter.interleaved.tokenizer
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
        end = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with torch.inference_mode(), self._masked(masking.heads, masking.phase):
            model: Any = backbone.model
            output = model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=end,
            )
        text = str(tokenizer.decode(output[0, length:], skip_special_tokens=True)).strip()
        return text.split("\n", 1)[0].strip()

    def choose(self, probe: Probe, masking: Masking | None = None) -> tuple[str, Mapping[str, float]]:
        """The likeliest of a probe's choices, and the mean log-likelihood per token (in nats) of each.

        The context runs once per masking. Answering under ``phase="decode"`` goes on from the unmasked context.

        Raises:
            DataError: the probe has no choices.
            ContextOverflowError: the prompt is longer than the model's context.
            PageError: an item that this model can't take or that can't be read.
        """
        masking = masking or Masking()
        if len(probe.choices) < 2:
            raise DataError(
                f"Probe {probe.name!r} has {len(probe.choices)} choices, too few to choose from. Let the "
                "model answer freely instead (answering='generate')."
            )
        prompter = self.prompter.prompter(probe)
        texts = [prompter.text_segment(" " + choice) for choice in probe.choices]
        while_reading = masking.heads if masking.phase == "all" else ()
        window, first = self._reading(probe, texts, while_reading)
        logs = [[value] for value in first]
        longer = [number for number, text in enumerate(texts) if len(text) > 1]
        starts = [_part(prompter, texts[number].ids[:-1]) for number in longer]
        with self._masked(masking.heads, "all"):
            states = self._passes.hidden_states(probe, window, starts) if longer else []
        for number, state in zip(longer, states, strict=True):
            likely = self._log_probabilities(state)  # (tokens - 1, vocabulary)
            ids = torch.tensor(texts[number].ids[1:], device=likely.device)
            logs[number] += likely.gather(1, ids[:, None])[:, 0].tolist()
        scores = {choice: sum(own) / len(own) for choice, own in zip(probe.choices, logs, strict=True)}
        return max(scores, key=lambda choice: scores[choice]), scores

    def _reading(
        self, probe: Probe, texts: Sequence[PromptSegment], heads: tuple[HeadId, ...]
    ) -> tuple[Window, list[float]]:
        """The prompt's window, and the log-probability of each choice's first token behind it."""
        key = (probe, heads)
        if self._read is not None and self._read[0] == key:
            return self._read[1], self._read[2]
        self._read = None  # one context's keys at a time
        context, (*question, end) = self._segments(probe)
        prompter = self.prompter.prompter(probe)
        last = _part(prompter, end.ids[-1:])
        with self._masked(heads, "all"):
            window = self._passes.encode(probe, context)
            before = [*question, _part(prompter, end.ids[:-1])]
            self._passes.extend(probe, window, [segment for segment in before if len(segment)])
            (state,) = self._passes.hidden_states(probe, window, [last])
            first = self._log_probabilities(state)[0, [text.ids[0] for text in texts]].tolist()
            self._passes.extend(probe, window, [last])
        self._read = (key, window, first)
        return window, first

    def _segments(self, probe: Probe) -> tuple[list[PromptSegment], list[PromptSegment]]:
        """The context and what follows it, kept for the next masking; the last segment is text and not empty."""
        if self._written is not None and self._written[0] is probe:
            return self._written[1], self._written[2]
        prompter = self.prompter.prompter(probe)
        question = self.prompter.question_segments(probe)
        if probe.continues:
            *before, text = question  # a question that continues is text alone
            question = [*before, _part(prompter, text.ids[:-1])]
            end = _part(prompter, text.ids[-1:])
        else:
            end = prompter.answer_segment()
            end.add_text(prompter.text.plain(self.lead_in))
            if not end.ids:
                end.add_text(prompter.text.plain("\n"))
        context = list(self.prompter.context(probe).segments)
        tail = [segment for segment in (*question, end) if len(segment)]
        self._written = (probe, context, tail)
        return context, tail

    def _masked(self, heads: Sequence[HeadId], phase: AblationPhase) -> Any:
        return self.backbone.seam.ablating(heads, phase) if heads else nullcontext()

    def _log_probabilities(self, states: Tensor) -> Tensor:
        """``(tokens, vocabulary)`` float32, from last hidden states."""
        with torch.inference_mode():
            unembed: Any = self.backbone.model.get_output_embeddings()
            logits = unembed(states).float()
            cap = getattr(self.backbone.text_config, "final_logit_softcapping", None)
            logits = torch.tanh(logits / cap) * cap if cap else logits
            return torch.log_softmax(logits, dim=-1)


def _part(prompter: Prompter, ids: Sequence[int]) -> PromptSegment:
    """Some tokens of a text."""
    segment = prompter.empty()
    segment.add_text(ids)
    return segment
