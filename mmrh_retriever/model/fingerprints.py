"""Fingerprints: short digests that tell one model, processor and prompt from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from mmrh_retriever.model.prompts import Prompter

SAMPLES = 64
"""Numbers of each weight that go into a fingerprint, spread over the whole of it."""
_SWITCHES = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
_CHANGING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


def encoding_fingerprint(prompter: Prompter, *, independent: bool) -> str:
    """A digest of everything that a page's keys and values depend on, beside the page and those before it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (prompt_fingerprint(prompter, independent=independent), weights_fingerprint(prompter.backbone.model)):
        digest.update(part.encode())
    return digest.hexdigest()


def prompt_fingerprint(prompter: Prompter, *, independent: bool) -> str:
    """A digest of configuration, processors and prompt."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        f"transformers {transformers.__version__}",
        f"independent {independent}",
        _settings(prompter.backbone.config),
        repr(prompter.options),
        repr(prompter.prefix_segment().ids),
        _tokenizer(prompter.tokenizer),
        _settings(prompter.image_processor),
    ):
        digest.update(part.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()


def weights_fingerprint(model: PreTrainedModel) -> str:
    """A digest of a loaded model's weights, its saved buffers (quantised weights are some), and its adapters' switches.

    Weights are sampled, so that a large model's fingerprint costs little. A trained or merged change moves all numbers
    of a weight and is seen; a single number changed by hand may not be. Of weights that accelerate keeps elsewhere the
    numbers are looked up there; see :func:`unreadable_weights` for others. Adapters are those that peft puts in.
    """
    digest = hashlib.blake2b(digest_size=16)
    samples: dict[torch.device, list[Tensor]] = {}
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta and tensor.numel():
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLES)].to(torch.float32)
            samples.setdefault(sample.device, []).append(sample)
    for parts in samples.values():  # one transfer per device
        digest.update(torch.cat(parts).cpu().numpy().tobytes())
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) and hasattr(type(module), "active_adapters"):
            digest.update(f"{name} {[getattr(module, switch, None) for switch in _SWITCHES]}".encode())
    return digest.hexdigest()


def unreadable_weights(model: PreTrainedModel) -> list[str]:
    """Names of the weights whose numbers a fingerprint can't see: they are on the meta device and nowhere else."""
    return [name for name, tensor in _tensors(model) if tensor.is_meta]


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a model's state is made of, by name; offloaded tensors as they are kept."""
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(tensor, Tensor):
            yield name, _offloaded(model, name, tensor) if tensor.is_meta else tensor


def _offloaded(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    """The numbers of a tensor that accelerate's hook keeps on a module, or on one around it."""
    path = name.split(".")
    for depth in reversed(range(len(path))):
        hook = getattr(model.get_submodule(".".join(path[:depth])), "_hf_hook", None)
        for own in getattr(hook, "hooks", (hook,)):
            kept = getattr(own, "weights_map", None)
            if kept is not None and ".".join(path[depth:]) in kept:
                return torch.as_tensor(kept[".".join(path[depth:])])
    return tensor


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """16 bytes that stand for the names, types, shapes and contents of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _settings(settings: Any) -> str:
    """A configuration as text, without what says where it came from."""
    if settings is None:
        return "none"
    given = settings.to_dict() if hasattr(settings, "to_dict") else {}
    kept = {key: value for key, value in given.items() if key not in _CHANGING}
    return f"{type(settings).__name__} {json.dumps(kept, sort_keys=True, default=repr)}"


def _tokenizer(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is not None and hasattr(inner, "to_str"):
        return str(inner.to_str())
    return json.dumps(sorted(tokenizer.get_vocab().items()))
