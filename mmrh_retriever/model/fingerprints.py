"""Fingerprints: short digests that tell one model, processor and prompt from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from mmrh_retriever.model.prompts import Prompter

SAMPLES = 64
"""Numbers of each weight that go into a fingerprint, spread over the whole of it."""
_CHANGING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


def encoding_fingerprint(prompter: Prompter, *, independent: bool) -> str:
    """A digest of everything that a page's keys and values depend on, beside the page and those before it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        f"transformers {transformers.__version__}",
        f"independent {independent}",
        _settings(prompter.backbone.config),
        repr(prompter.options),
        repr(prompter.prefix_segment().ids),
        _tokenizer(prompter.tokenizer),
        _settings(prompter.image_processor),
        weights_fingerprint(prompter.backbone.model),
    ):
        digest.update(part.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()


def weights_fingerprint(model: PreTrainedModel) -> str:
    """A digest of a loaded model's weights.

    Weights are sampled, so that a large model's fingerprint costs little. A trained or merged change moves all numbers
    of a weight and is seen; a single number changed by hand may not be.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        if not weight.is_meta and weight.numel():
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLES)].to("cpu", torch.float32)
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
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
