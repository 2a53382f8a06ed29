"""Let a model answer a probe: freely through ``model.generate()``, or by the likelihood of each choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.encoding.engine import UNLIMITED, Engine, Window
from mmrh_retriever.errors import ContextOverflowError, DataError
from mmrh_retriever.heads.sets import HeadId
from mmrh_retriever.model import image_tokens as image_layouts
from mmrh_retriever.model.attention_seam import AblationPhase
from mmrh_retriever.model.families import Backbone, Layout
from mmrh_retriever.model.prompts import LaidPiece
from mmrh_retriever.research.probes.builder import Probe
from mmrh_retriever.research.probes.prompts import ProbePrompter

LEAD_IN = "Answer:"
"""What the model's answer is begun with."""

_IMAGE_AXIS: dict[Layout | None, int] = {image_layouts.idefics3: 1}
"""The axis that counts images, where it is not the first."""
_IMAGE_MASK: dict[Layout | None, str] = {
    image_layouts.qwen_vl: "mm_token_type_ids",
    image_layouts.gemma3: "token_type_ids",
}
"""The input that marks image tokens, where a family wants one."""


def plain_inputs(backbone: Backbone, pieces: Sequence[LaidPiece]) -> dict[str, Tensor]:
    """The pieces of a prompt as one plain input of the model, as the family's own processor would give it."""
    ids = torch.tensor([[number for piece in pieces for number in piece.ids]], device=backbone.device)
    found: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layout = backbone.family.layout
    axis = _IMAGE_AXIS.get(layout, 0)
    names = dict.fromkeys(name for piece in pieces for name in piece.inputs)
    for name in names:
        values = [piece.inputs[name] for piece in pieces if name in piece.inputs]
        joined = _joined(values, axis if values[0].dim() > axis else 0)
        dtype = backbone.model.dtype if joined.is_floating_point() else None
        found[name] = joined.to(backbone.device, dtype)
    if layout in _IMAGE_MASK and names:
        found[_IMAGE_MASK[layout]] = (ids == backbone.config.image_token_id).long()
    return found


def _joined(values: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors one behind the other, smaller ones padded with zeros in the other axes."""
    rest = [place for place in range(values[0].dim()) if place != axis]
    largest = {place: max(value.shape[place] for value in values) for place in rest}
    padded = []
    for value in values:
        shape = [value.shape[axis] if place == axis else largest[place] for place in range(value.dim())]
        room = value.new_zeros(shape)
        room[tuple(slice(0, length) for length in value.shape)] = value
        padded.append(room)
    return torch.cat(padded, dim=axis)


@dataclass(frozen=True, slots=True)
class Masking:
    """Heads whose attention is zeroed: in every pass (``all``) or only while answering (``decode``)."""

    heads: tuple[HeadId, ...] = ()
    phase: AblationPhase = "all"


class Answerer:
    """Answers probes with one model.

    Args:
        backbone: the model.
        prompter: lays the probes.
        lead_in: what the answer is begun with; it is no part of the answer.
        max_new_tokens: the longest free answer.
        independent: read each item as if it stood alone (see :class:`Engine`) when choices are
            weighed; free answers always come from one plain pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompter: ProbePrompter,
        *,
        lead_in: str = LEAD_IN,
        max_new_tokens: int = 32,
        independent: bool = False,
    ) -> None:
        self.backbone = backbone
        self.prompter = prompter
        self.lead_in = lead_in
        self.max_new_tokens = max_new_tokens
        self.independent = independent
        self._last: tuple[object, Window, list[float]] | None = None
        self._laid: tuple[Probe, list[LaidPiece], list[LaidPiece]] | None = None

    def generate(self, probe: Probe, masking: Masking | None = None) -> str:
        """The model's free answer, without sampling; ends at a line break.

        Raises:
            ContextOverflowError: the prompt with its answer is longer than the model's context.
            PageError: an item that this model can't take or that can't be read.
        """
        masking = masking or Masking()
        backbone = self.backbone
        pieces = self._pieces(probe)
        tokenizer = self.prompter.interleaved.tokenizer
        inputs = plain_inputs(backbone, [self.prompter.prompter(probe).lay_head(), *pieces])
        length = int(inputs["input_ids"].shape[1])
        if length + self.max_new_tokens > backbone.context:
            raise ContextOverflowError(
                f"Probe {probe.name!r} takes {length} tokens and {self.max_new_tokens} for its answer; the model's "
                f"context is {backbone.context}. Use shorter contexts.",
                tokens=length + self.max_new_tokens,
                allowed=backbone.context,
            )
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
        """The likeliest of a probe's choices, and each one's mean log-likelihood a token (in nats).

        The context runs once a masking; answering under ``phase="decode"`` goes on from the unmasked context.

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
        texts = [prompter.lay_text(" " + choice) for choice in probe.choices]
        while_reading = masking.heads if masking.phase == "all" else ()
        budget = UNLIMITED if self.independent else self.backbone.context
        engine = Engine(prompter, self._every_layer(), budget, independent=self.independent)
        window, first = self._read(probe, engine, texts, while_reading)
        longer = [place for place, text in enumerate(texts) if len(text) > 1]
        found = [[value] for value in first]
        with self._masked(masking.heads, "all"):
            if longer:
                states = engine.hidden_states(window, [_without_last(prompter.lay_text(""), texts[p]) for p in longer])
                for place, state in zip(longer, states, strict=True):
                    logs = self._log_probabilities(state)  # (tokens - 1, vocabulary)
                    ids = torch.tensor(texts[place].ids[1:], device=logs.device)
                    found[place] += logs.gather(1, ids[:, None])[:, 0].tolist()
        scores = {choice: sum(logs) / len(logs) for choice, logs in zip(probe.choices, found, strict=True)}
        return max(scores, key=lambda choice: scores[choice]), scores

    def _read(
        self, probe: Probe, engine: Engine, texts: Sequence[LaidPiece], heads: tuple[HeadId, ...]
    ) -> tuple[Window, list[float]]:
        """The prompt's window, and the log-probability of each choice's first token behind it."""
        key = (probe, heads)
        if self._last is not None and self._last[0] == key:
            return self._last[1], self._last[2]
        self._last = None
        context, (*question, end) = self._lay(probe)
        last = _last_alone(self.prompter.prompter(probe).lay_text(""), end)
        with self._masked(heads, "all"):
            window = engine.encode(context)
            before = [*question, _without_last(self.prompter.prompter(probe).lay_text(""), end)]
            engine.extend(window, [piece for piece in before if len(piece)])
            (state,) = engine.hidden_states(window, [last])
            first = self._log_probabilities(state)[0, [text.ids[0] for text in texts]].tolist()
            engine.extend(window, [last])
        self._last = (key, window, first)
        return window, first

    def _pieces(self, probe: Probe) -> list[LaidPiece]:
        """Everything behind the prompt's head."""
        context, tail = self._lay(probe)
        return [*context, *tail]

    def _lay(self, probe: Probe) -> tuple[list[LaidPiece], list[LaidPiece]]:
        """The context and what follows it, kept for the next masking; the last piece is text and not empty."""
        if self._laid is not None and self._laid[0] is probe:
            return self._laid[1], self._laid[2]
        prompter = self.prompter.prompter(probe)
        question = self.prompter.lay_question(probe)
        if probe.continues:
            *before, text = question  # a question that continues is text alone
            question, end = (
                [*before, _without_last(prompter.lay_text(""), text)],
                _last_alone(prompter.lay_text(""), text),
            )
        else:
            end = prompter.lay_tail()
            end.add_text(prompter.plain(self.lead_in))
            if not end.ids:
                end.add_text(prompter.plain("\n"))
        context, tail = (
            list(self.prompter.lay_context(probe).pieces),
            [piece for piece in (*question, end) if len(piece)],
        )
        self._laid = (probe, context, tail)
        return context, tail

    def _every_layer(self) -> list[HeadId]:
        return [HeadId(self.backbone.layers - 1, 0)]

    def _masked(self, heads: Sequence[HeadId], phase: AblationPhase) -> Any:
        return self.backbone.seam.ablating(heads, phase) if heads else nullcontext()

    def _log_probabilities(self, states: Tensor) -> Tensor:
        """``(tokens, vocabulary)`` float32, from last hidden states."""
        with torch.inference_mode():
            head: Any = self.backbone.model.get_output_embeddings()
            logits = head(states).float()
            cap = getattr(self.backbone.text_config, "final_logit_softcapping", None)
            logits = torch.tanh(logits / cap) * cap if cap else logits
            return torch.log_softmax(logits, dim=-1)


def _last_alone(empty: LaidPiece, piece: LaidPiece) -> LaidPiece:
    """A text's last token."""
    empty.add_text(piece.ids[-1:])
    return empty


def _without_last(empty: LaidPiece, piece: LaidPiece) -> LaidPiece:
    """A text without its last token."""
    empty.add_text(piece.ids[:-1])
    return empty
