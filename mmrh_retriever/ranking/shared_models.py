"""One loaded model per process, however many rerankers ask for it.

    reranker = shared_reranker("Qwen/Qwen3-VL-8B-Instruct")
    with_all_heads = shared_reranker("Qwen/Qwen3-VL-8B-Instruct", heads="all")

Both have the same weights in memory; :func:`release_shared_models` lets go of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mmrh_retriever.files import is_folder
from mmrh_retriever.heads.scores import HeadScoresTable
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.locks import Lock
from mmrh_retriever.model.loading import Processors, default_device, load_model, model_path
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.settings import RerankSettings


class _Shelf:
    """The models that are loaded, with a lock for each that is being loaded."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[PreTrainedModel, Processors]] = {}
        self.lock, self.locks = Lock(), defaultdict[str, Lock](Lock)

    def model(self, path: str, loading: Mapping[str, Any]) -> tuple[PreTrainedModel, Processors]:
        name = str(Path(path).resolve()) if is_folder(path) else path
        key = json.dumps([name, _plain(loading)], sort_keys=True, default=repr)
        with self.lock:
            own = self.locks[key]
        with own:  # others wait for this model only; a load that fails leaves nothing behind
            if key not in self.models:
                self.models[key] = load_model(path, **loading)
            return self.models[key]

    def clear(self) -> None:
        with self.lock:
            self.models = {}


_SHELF = _Shelf()


def shared_reranker(
    model: str | Path | None = None,
    *,
    heads: str | Path | HeadSet | HeadScoresTable = "published",
    settings: RerankSettings | None = None,
    **changes: Any,
) -> Reranker:
    """A reranker on a model that is loaded once for the whole process.

    Calls whose settings load the same model share its weights, from any thread; heads and settings that rank may differ
    from call to call. The first call loads, and calls from other threads wait for it. Worker processes are started with
    the method ``spawn``: torch's threads don't survive a fork. Arguments and errors are those of
    :meth:`~mmrh_retriever.Reranker.from_pretrained`.
    """
    given = RerankSettings.of_pretrained(model, settings, changes)
    path, _ = model_path(given.model)
    loading = given.loading()
    if "device_map" not in loading:
        loading.setdefault("device", str(default_device()))
    weights, processors = _SHELF.model(path, loading)
    return Reranker(weights, processors, heads, settings=given)


def release_shared_models() -> None:
    """Let go of the shared models. Their memory is free once the rerankers made from them are gone too."""
    _SHELF.clear()


def _plain(value: Any) -> Any:
    """A stand-in that is equal for equal settings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):  # a quantization config
        return type(value).__name__, _plain(value.to_dict())
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value
