"""Loading a model, its tokenizer and its image processor by name, through transformers' own loaders."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from mmrh_retriever.errors import SettingsError, UnsupportedModelError
from mmrh_retriever.files import is_folder
from mmrh_retriever.heads.hub import heads_beside
from mmrh_retriever.heads.published import HEADS_FILE as HEADS_FILE
from mmrh_retriever.model.families import find_family

BUNDLED = "bundled"
"""The name of the small model inside the package."""
BUNDLED_FOLDER = Path(str(files("mmrh_retriever") / "data" / "reader"))
"""Where that model lies, if the package was installed with it."""
BUNDLED_PURPOSE = (
    "The bundled model is small: it finds pages without a GPU, also scans, which have no text layer. Where there is "
    "one, it is joined with BM25 (hybrid), which finds more than either. A larger model should rank what matters."
)
"""What that model is for and what not: outside scans its images alone put 28 % of MMDocIR's pages first, BM25 33 %."""

logger = logging.getLogger(__name__)

_CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class Processors:
    """What turns pages and questions into model inputs: a tokenizer and an image processor.

    A transformers ``*Processor`` serves as well: its image processor and tokenizer are taken. ``image_processor`` is
    ``None`` for text-only models.
    """

    tokenizer: Any
    image_processor: Any = None

    @classmethod
    def of(cls, processor: Any) -> Processors:
        """From a ``*Processor``, a tokenizer, or a pair of tokenizer and image processor."""
        if isinstance(processor, cls):
            return processor
        if isinstance(processor, tuple) and len(processor) == 2:
            return cls(*processor)
        if hasattr(processor, "tokenizer"):
            found = cls(processor.tokenizer, getattr(processor, "image_processor", None))
            if not getattr(found.tokenizer, "chat_template", None) and getattr(processor, "chat_template", None):
                found.tokenizer.chat_template = processor.chat_template
            return found
        if hasattr(processor, "convert_tokens_to_ids"):
            return cls(processor)
        raise UnsupportedModelError(
            f"Expected a transformers processor, a tokenizer, or (tokenizer, image_processor), got "
            f"{type(processor).__name__}."
        )


def model_path(model: str | Path | None) -> tuple[str, bool]:
    """A model's name or folder, and whether it is the bundled model."""
    if model is not None and str(model) != BUNDLED:
        return str(model), False
    folder = BUNDLED_FOLDER
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(
            "The bundled model is missing from this installation. Install the package from its wheel, or name a model: "
            'Reranker.from_pretrained("Qwen/Qwen3-VL-8B-Instruct").'
        )
    return str(folder), True


def is_bundled(name: str) -> bool:
    """Whether a model's folder is that of the bundled model."""
    return is_folder(name) and Path(name).resolve() == BUNDLED_FOLDER.resolve()


@lru_cache(maxsize=1)
def _say_purpose() -> None:
    logger.info(BUNDLED_PURPOSE)


def load_model(
    model: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    quantization_config: Any = None,
    max_pixels: int | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, Processors]:
    """A model in evaluation mode with its processors, from a hub id or a local folder.

    By default ``device`` is the first accelerator if there is one, else the CPU. ``dtype`` is as stored on an
    accelerator, and on a CPU that multiplies bfloat16 in hardware (AMX), if that is what is stored; float32 on other
    CPUs. ``max_pixels`` bounds what the model sees of an image, for families that take images at their own size
    (Qwen-VL). The rest is handed to transformers' ``from_pretrained``, ``kwargs`` untouched.

    The first time that the bundled model is loaded, its purpose is logged at level INFO. That is no warning, because
    whoever loads it may have the pages it is for. The command line says it on stderr. Adapters, which see the pages,
    warn if these have a text layer that is not used.

    Raises:
        UnsupportedModelError: an unknown family, a model with code of its own, a device or an attention that can't be
            used.
        SettingsError: a ``dtype`` that is no type of weights.
        OSError: transformers' own, if files are missing.
    """
    if is_bundled(model):
        _say_purpose()
    if kwargs.pop("trust_remote_code", False):
        raise UnsupportedModelError("trust_remote_code is not supported: only transformers' own model classes are run.")
    if dtype not in (None, "auto"):
        _torch_dtype(dtype)
    where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    config, where = _load_config(model, max_pixels, where)
    family = find_family(config.model_type)
    target = _checked_device(device)
    quantised = quantization_config is not None or getattr(config, "quantization_config", None) is not None
    placed_by_transformers = quantised or "device_map" in kwargs
    if dtype is None:
        on_cpu = target.type == "cpu" and not placed_by_transformers
        dtype = cpu_dtype(getattr(config, "dtype", None)) if on_cpu else "auto"
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if quantised:
        kwargs.setdefault("device_map", {"": str(target)})
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    loader = AutoModelForCausalLM if family.writer is None else AutoModelForImageTextToText
    try:
        with _bars_on_terminals_alone():
            loaded = loader.from_pretrained(model, config=config, dtype=dtype, **where, **kwargs).eval()
    except (ValueError, TypeError) as error:  # such as an attention, or a keyword, that transformers doesn't know
        raise UnsupportedModelError(f"{model} can't be loaded in the way that was asked for: {error}") from error
    if not placed_by_transformers:
        loaded = loaded.to(target)
    _note_heads(loaded, model, {**where, "token": kwargs.get("token")})
    most = None if max_pixels is None else max_pixels * family.frames
    processors = load_processors(model, text_only=family.writer is None, max_pixels=most, where=where)
    return loaded, processors


@contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """Transformers' progress bars are off in the body where stderr is no terminal."""
    quiet = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            transformers_logging.enable_progress_bar()


def load_without_weights(
    model: str,
    *,
    dtype: str | torch.dtype | None = None,
    max_pixels: int | None = None,
    text_only: bool = False,
    **where: Any,
) -> tuple[PreTrainedModel, Processors]:
    """A model from its configuration alone, on torch's meta device, with its processors.

    Its parameters have shapes and a type (``dtype``, else as stored), and no content. ``text_only`` leaves the image
    processor out. ``where`` is ``revision``, ``cache_dir`` and ``local_files_only``, as for :func:`load_model`.
    """
    config, where = _load_config(model, max_pixels, where)
    family = find_family(config.model_type)
    wanted = _torch_dtype(dtype or config.dtype or torch.float32)
    maker = AutoModelForCausalLM if family.writer is None else AutoModelForImageTextToText
    with torch.device("meta"):
        made = maker.from_config(config, dtype=wanted, trust_remote_code=False).eval()
    _note_heads(made, model, where)
    text_only = text_only or family.writer is None
    return made, load_processors(model, text_only=text_only, max_pixels=max_pixels, where=where)


def _note_heads(loaded: Any, model: str, where: Mapping[str, Any]) -> None:
    """Note the head set that a model from the Hub brings, in the revision that was loaded, where heads are chosen."""
    if is_folder(model):
        return
    places = {name: where.get(name) for name in ("cache_dir", "local_files_only", "token")}
    revision = getattr(loaded.config, "_commit_hash", None) or where.get("revision")
    loaded.mmrh_heads_file = heads_beside(model, revision=revision, **places)


def _load_config(model: str, max_pixels: int | None, where: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model's configuration, and where its other files are found."""
    if max_pixels is not None and max_pixels < 1:
        raise UnsupportedModelError(f"max_pixels counts pixels and is at least 1, got {max_pixels}.")
    where = {**where, **({"local_files_only": True} if is_folder(model) else {})}
    where = {key: value for key, value in where.items() if value not in (None, False)}
    refuse_own_code(model, where)
    where["trust_remote_code"] = False  # left out, transformers would ask on stdin
    try:
        return AutoConfig.from_pretrained(model, **where), where
    except ValueError as error:
        raise UnsupportedModelError(f"{model} has no configuration that transformers knows: {error}") from error


def cpu_dtype(stored: torch.dtype | None) -> torch.dtype:
    """The fast type for weights on this CPU: bfloat16 where it is both stored and multiplied in hardware, else float32.

    Without matrix units for bfloat16, torch computes float32 faster.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if stored is torch.bfloat16 and capabilities.get("amx_bf16") else torch.float32


def load_processors(
    model: str, *, text_only: bool, max_pixels: int | None = None, where: Mapping[str, Any] | None = None
) -> Processors:
    """A model's tokenizer with its chat template, and its image processor in its Pillow form."""
    where = {**(where or {}), "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(model, **where)
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = _processor_template(model, where)
    if text_only:
        return Processors(tokenizer)
    try:
        image_processor = AutoImageProcessor.from_pretrained(model, backend="pil", **where)
    except (ImportError, ValueError) as error:
        raise UnsupportedModelError(
            f"The image processor of {model} can't be loaded: {' '.join(str(error).split())} Some families (Cohere2 "
            "Vision, LFM2-VL) have one for torchvision alone: install the torchvision that fits your torch."
        ) from error
    if max_pixels is not None:
        size = dict(image_processor.size)
        if not {"shortest_edge", "longest_edge"} <= {key for key, value in size.items() if value}:
            raise UnsupportedModelError(
                f"max_pixels fits families that take images at their own size; {type(image_processor).__name__} has "
                f"the size {size}. Leave max_pixels out."
            )
        image_processor.size = {
            "shortest_edge": min(int(size["shortest_edge"]), max_pixels),
            "longest_edge": max_pixels,
        }
    return Processors(tokenizer, image_processor)


def _processor_template(model: str, where: Mapping[str, Any]) -> str | None:
    """The chat template that older checkpoints keep for their processor alone."""
    found = _json_file(model, "chat_template.json", where)
    return None if found is None else str(found["chat_template"])


def refuse_own_code(model: str, where: Mapping[str, Any] | None = None, *, unless: str = "") -> None:
    """Raise an :class:`UnsupportedModelError` if a model's configuration names Python code of its own (``auto_map``).

    ``where`` holds the keyword arguments that say where transformers looks for files; ``unless`` ends the message.
    """
    for name in _CONFIGS:
        if _holds_auto_map(_json_file(model, name, where or {})):
            problem = f"{name} of {model} names Python code of its own (auto_map), which is not run"
            advice = (
                "Give a model that transformers knows by itself, or remove auto_map if transformers has its classes."
            )
            raise UnsupportedModelError(f"{problem}. {advice} {unless}".strip())


def _holds_auto_map(content: Any) -> bool:
    if isinstance(content, list):
        return any(map(_holds_auto_map, content))
    return isinstance(content, dict) and (bool(content.get("auto_map")) or any(map(_holds_auto_map, content.values())))


def _json_file(model: str, name: str, where: Mapping[str, Any]) -> Any:
    """What a model's JSON file holds; ``None`` if the model has no such file."""
    places = {key: value for key, value in where.items() if key != "trust_remote_code"}
    found = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        **places,
    )  # fmt: skip
    try:
        return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{found} is damaged: {error}. Expected JSON; download the model again.") from error


def _torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise SettingsError(f"dtype is the name of a type such as 'bfloat16' or 'float32', got {dtype!r}.")
    return named


def _checked_device(device: str | torch.device | None) -> torch.device:
    try:
        target = torch.device(device) if device is not None else default_device()
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedModelError(
            f"Device {str(device)!r} can't be used: {str(error).splitlines()[0]} Leave it out for the best there is."
        ) from error
    return target


def default_device() -> torch.device:
    """The first accelerator that torch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
