"""The slow and plain way: the whole prompt in one pass, eager attention, everything kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmrh_retriever.model.kv_cache import cache_argument
from mmrh_retriever.model.prompts import PromptSegment
from tests.factories import MROPE, Tiny


def batched_inputs(segments: list[PromptSegment]) -> dict[str, Tensor]:
    """The pages' pixel inputs in one batch, as the families' own processors would give them."""
    found: dict[str, list[Tensor]] = {}
    for segment in segments:
        for key, value in segment.inputs.items():
            found.setdefault(key, []).append(value)
    return {
        key: _joined(values, along=1 if values[0].dim() == 5 and "sizes" not in key else 0)
        for key, values in found.items()
    }


def _joined(values: list[Tensor], along: int) -> Tensor:
    if values[0].dim() in (4, 5) and len({value.shape for value in values}) > 1:
        other = 1 - along if values[0].dim() == 5 else None
        largest = [max(value.shape[axis] for value in values) for axis in range(values[0].dim())]
        padded = []
        for value in values:
            shape = [
                value.shape[axis] if axis == along and other is None else largest[axis] for axis in range(value.dim())
            ]
            room = torch.zeros(shape)
            room[tuple(slice(0, length) for length in value.shape)] = value
            padded.append(room)
        values = padded
    return torch.cat(values, dim=along)


def eager_attentions(
    tiny: Tiny,
    segments: list[PromptSegment],
    *,
    masks: dict[str, Tensor] | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """``(layers, heads, tokens, tokens)`` of one plain full pass over all segments, one after the other.

    The model finds mask and positions itself, unless boolean ``masks`` by kind of layer and ``(axes, tokens)``
    ``positions`` are given.
    """
    tiny.model.set_attn_implementation("eager")
    config = tiny.model.config
    ids = torch.tensor([[number for segment in segments for number in segment.ids]])
    image = ids == getattr(config, "image_token_id", -1)
    more: dict[str, Tensor] = batched_inputs(segments)
    if "pixel_values" in more and tiny.name.startswith("llava"):
        more["pixel_values"] = _llava_pixels(segments)
    if "pixel_values" in more and tiny.name in ("smolvlm", "idefics3"):
        more = {key: torch.cat([segment.inputs[key] for segment in segments if segment.inputs], dim=1) for key in more}
    if tiny.name in MROPE and image.any():
        more["mm_token_type_ids"] = image.int()
    if tiny.name.startswith("gemma4") and image.any():
        more["mm_token_type_ids"] = image.int()
    if tiny.name == "gemma3":
        more["token_type_ids"] = image.int()
    if masks is not None and positions is not None:
        lowest = torch.finfo(torch.float32).min
        forms = {kind: torch.zeros(seen.shape).masked_fill(~seen, lowest)[None, None] for kind, seen in masks.items()}
        more["attention_mask"] = forms if len(forms) > 1 else forms["full_attention"]  # type: ignore[assignment]
        more["position_ids"] = positions[:, None] if positions.shape[0] == 3 else positions
        more.pop("token_type_ids", None)
    with torch.no_grad():
        output = tiny.model.base_model(input_ids=ids, output_attentions=True, use_cache=False, **more)
    return torch.stack([layer[0] for layer in output.attentions])


def kept_keys(model: nn.Module, output: Any) -> dict[str, Any]:
    """What a pass kept, as the next one takes it."""
    name = cache_argument(model)
    return {name: getattr(output, name)}


def _llava_pixels(segments: list[PromptSegment]) -> Tensor:
    values = [segment.inputs["pixel_values"] for segment in segments if segment.inputs]
    tiles = max(value.shape[1] for value in values)
    padded = torch.zeros(len(values), tiles, *values[0].shape[2:])
    for place, value in enumerate(values):
        padded[place, : value.shape[1]] = value[0]
    return padded


@contextmanager
def zeroing(model: nn.Module, heads: Sequence[tuple[int, int]], *, start: int) -> Iterator[None]:
    """Zero heads' slices of what the output projections are given, in rows from ``start`` on, by hooks."""

    def zeroed(layer: int, width: int, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = given[0].clone()
        for head in (one[1] for one in heads if one[0] == layer):
            states[:, start:, head * width : (head + 1) * width] = 0
        return states, *given[1:]

    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, "layer_idx") and hasattr(module, "o_proj"):
                hook = partial(zeroed, module.layer_idx, module.head_dim)
                handle = module.o_proj.register_forward_pre_hook(lambda _, given, hook=hook: hook(given))
                stack.callback(handle.remove)
        yield
