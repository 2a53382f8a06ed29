"""What a run of an evaluation depends on: data, models and heads with their fingerprints, options, versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

import mmrh_retriever
from mmrh_retriever.evaluation.mmdocir.dataset import MMDocIR
from mmrh_retriever.evaluation.rankers import AnyRanker, RankerSpec
from mmrh_retriever.evaluation.rows import FORMAT, Level
from mmrh_retriever.model.loading import HEADS_FILE, cpu_dtype, default_device, model_path
from mmrh_retriever.pdf.backends import choose_backend

_TRAINED_ALONE = ("reads", "own_code")
_TRAINED = ("kind", "model", "dtype", *_TRAINED_ALONE)
_MATTERS: dict[str, Sequence[str]] = {
    "bm25": ("kind",),
    "random": ("kind", "seed"),
    "embedding": ("kind", "model"),
    "cross-encoder": _TRAINED,
    "sentence-transformer": _TRAINED,
}
"""What the settings of a ranker hold, where it is not everything."""
_INDIFFERENT = {"cache_dir", "local_files_only"}
"""Settings that change no score."""
_HASHED_BYTES = 64 * 1024 * 1024
_NOT_WEIGHTS = (".md", ".txt")


def settings_of(
    dataset: MMDocIR, rankers: Mapping[str, AnyRanker], *, level: Level, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a run, ready for JSON. ``more`` is what else about the dataset belongs there."""
    pdf = "pymupdf" if choose_backend("auto") == "pymupdf" else "pypdfium2"
    return {
        **FORMAT,
        "level": level,
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "documents": len(dataset.documents),
            "questions": sum(len(item.questions) for item in dataset.documents),
            **(more or {}),
        },
        "rankers": {name: _described(ranker) for name, ranker in rankers.items()},
        "versions": {
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", pdf, "numpy")},
            "mmrh_retriever": mmrh_retriever.__version__,
            "python": platform.python_version(),
        },
    }


def _described(ranker: AnyRanker) -> dict[str, Any]:
    if not isinstance(ranker, RankerSpec):
        return {"class": type(ranker).__qualname__}
    given = {**vars(ranker), **ranker.settings.model_dump(exclude=_INDIFFERENT)}
    del given["settings"]
    matters = _MATTERS.get(ranker.kind, [key for key in given if key not in _TRAINED_ALONE])
    content = {key: value for key, value in given.items() if key in matters}
    if ranker.kind == "heads":
        name, bundled = model_path(ranker.settings.model)
        folder = Path(name)
        content["model"] = "bundled" if bundled else name
        if folder.is_dir():
            content["model_fingerprint"] = _folder_fingerprint(folder)
            content["dtype"] = ranker.settings.dtype or _default_dtype(folder, ranker.settings.device)
        heads = folder / HEADS_FILE if ranker.heads == "published" else Path(ranker.heads)
        if heads.is_file():
            content["heads_fingerprint"] = _file_fingerprint(heads)
    plain: dict[str, Any] = json.loads(json.dumps(content, default=repr))  # model_kwargs may hold objects
    return plain


def _folder_fingerprint(folder: Path) -> str:
    """A digest of the names and sizes of a model's files but texts and heads, and of the content of those not huge."""
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.iterdir() if item.is_file()):
        if file.name != HEADS_FILE and file.suffix not in _NOT_WEIGHTS:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} {_file_fingerprint(file) if size <= _HASHED_BYTES else ''}\n".encode())
    return digest.hexdigest()[:16]


def _file_fingerprint(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _default_dtype(folder: Path, device: str | None) -> str:
    """The name of the type that a saved model's weights get where none is asked for: ``"auto"`` is as stored."""
    target = default_device() if device is None else torch.device(device)
    if target.type != "cpu":
        return "auto"
    written, _ = PreTrainedConfig.get_config_dict(folder)
    stored = getattr(torch, str(written.get("dtype", written.get("torch_dtype"))), None)
    return str(cpu_dtype(stored)).removeprefix("torch.")
