"""What tells one model, processor and prompt from another: short digests for files that depend on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from mmrh_retriever.model.prompts import Prompter

SAMPLES = 64
"""Numbers of each weight that go into a fingerprint, spread over the whole of it."""
_CHANGING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


def fingerprint(prompter: Prompter, *, independent: bool) -> str:
    """A digest of everything that a page's keys and values depend on beside the page and those before it.

    Weights are sampled, so that a large model's fingerprint costs little; a trained or merged change moves all of a
    weight's numbers and is seen, one single number changed by hand may not be.
    """
    digest = hashlib.blake2b(digest_size=16)
    backbone = prompter.backbone
    for part in (
        f"transformers {transformers.__version__}",
        f"independent {independent}",
        _settings(backbone.config),
        repr(prompter.options),
        repr(prompter.lay_head().ids),
        _tokenizer(prompter.tokenizer),
        _settings(prompter.image_processor),
    ):
        digest.update(part.encode("utf-8", "replace") + b"\0")
    for name, weight in sorted(backbone.model.named_parameters()):
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
    told = settings.to_dict() if hasattr(settings, "to_dict") else {}
    kept = {key: value for key, value in told.items() if key not in _CHANGING}
    return f"{type(settings).__name__} {json.dumps(kept, sort_keys=True, default=repr)}"


def _tokenizer(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is not None and hasattr(inner, "to_str"):
        return str(inner.to_str())
    return json.dumps(sorted(tokenizer.get_vocab().items()))
