"""One loaded model a process, however many rerankers ask for it.

    reranker = shared_reranker("Qwen/Qwen3-VL-8B-Instruct")
    with_all_heads = shared_reranker("Qwen/Qwen3-VL-8B-Instruct", heads="all")

Both have the same weights in memory; :func:`release_shared_models` lets go of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mmrh_retriever.heads.sets import HeadScoresTable, HeadSet
from mmrh_retriever.model.loading import Processors, default_device, load_model, model_path
from mmrh_retriever.model.prompts import PromptOptions
from mmrh_retriever.ranking.final_round import DEFAULT_FINAL_HEAT
from mmrh_retriever.ranking.reranker import Reranker

Key = tuple[Any, ...]


class _Shelf:
    """The models that are loaded, and one lock for each that is being loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.locks: dict[Key, threading.Lock] = {}
        self.models: dict[Key, tuple[PreTrainedModel, Processors]] = {}

    def model(self, key: Key, path: str, loading: Mapping[str, Any]) -> tuple[PreTrainedModel, Processors]:
        with self.lock:
            own = self.locks.setdefault(key, threading.Lock())
        with own:  # others wait for this model only; a load that fails leaves nothing behind
            if key not in self.models:
                self.models[key] = load_model(path, **loading)
            return self.models[key]

    def clear(self) -> None:
        with self.lock:
            self.models = {}

    def renew_locks(self) -> None:
        self.lock, self.locks = threading.Lock(), {}


_SHELF = _Shelf()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SHELF.renew_locks)  # a lock held at the fork would stay held for ever


def shared_reranker(
    model: str | Path | None = None,
    *,
    heads: str | Path | HeadSet | HeadScoresTable = "published",
    token_budget: int | None = None,
    independent: bool | None = None,
    calibrate: bool = True,
    options: PromptOptions | None = None,
    final_heat: int = DEFAULT_FINAL_HEAT,
    **loading: Any,
) -> Reranker:
    """A reranker on a model that is loaded once for the whole process.

    Calls with the same model and the same ``loading`` settings share its weights, from any thread; the
    other arguments may differ from call to call. The first call loads, and calls from other threads wait for it.

    Args:
        model: hub id or folder; the model that ships with the package if ``None``.
        heads: as for :class:`~mmrh_retriever.ranking.reranker.Reranker`.
        token_budget: the longest window, in tokens.
        independent: encode each page as if it stood alone; as the model's config says if ``None``.
        calibrate: subtract the attention of a null question.
        options: wording of the prompt, and which tokens count.
        final_heat: pages that are compared once more where pages take several windows.
        loading: as for :meth:`~mmrh_retriever.ranking.reranker.Reranker.from_pretrained`.

    Raises:
        UnsupportedModelError: an unknown family, or a bundled model that is missing.
        HeadSetError: heads that do not fit, or none published for the model.
        OSError: transformers' own, if files are missing.
        TypeError: a loading setting that can't be told from another (neither plain data nor hashable).
    """
    path, bundled = model_path(model)
    if bundled:
        loading["local_files_only"] = True
    folder = Path(path)
    name = str(folder.resolve()) if folder.is_dir() else path
    if loading.get("device") is None and "device_map" not in loading:
        loading["device"] = str(default_device())
    settings = {key: value for key, value in loading.items() if value not in (None, False)}
    weights, processors = _SHELF.model((name, _frozen(settings)), path, settings)
    return Reranker(
        weights,
        processors,
        heads,
        token_budget=token_budget,
        independent=independent,
        calibrate=calibrate,
        options=options,
        final_heat=final_heat,
    )


def release_shared_models() -> None:
    """Let go of the shared models. Their memory is free once the rerankers made from them are gone too."""
    _SHELF.clear()


def _frozen(value: Any) -> Any:
    """A hashable stand-in that is equal for equal settings."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if hasattr(value, "to_dict"):  # a quantization config
        return (type(value).__name__, repr(sorted(value.to_dict().items(), key=lambda item: item[0])))
    if isinstance(value, (str, int, float, Path)) or type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")  # "float32" and torch.float32 load the same
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"A loading setting is a {type(value).__name__}, which can't be compared with other calls'. Give plain "
            "data, or load the model yourself and make a Reranker of it."
        ) from error
    return value
