"""The seam: the one module that knows how transformers runs attention. It records heads and ablates them.

transformers lets a model call a registered attention function (``AttentionInterface``). Ours calls the function that
the model used before (sdpa, flash attention, eager) for the output. While asked to, it also hands the rows of a few
heads to a :class:`Recording`, zeroes ablated heads' output (which equals zeroing their post-softmax weights), applies
the mask of a :class:`PassPlan`, and ends the pass after the deepest layer that anyone asked about.

State lives with the model, on an :class:`AttentionSeam` that each attention module of the decoder points to, and in
the thread that runs the pass. Other threads and other uses of the same model are not disturbed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmrh_retriever.errors import AttentionCaptureError, HeadSetError, UnsupportedModelError
from mmrh_retriever.locks import Lock
from mmrh_retriever.model.cpu_split_attention import attend_behind, can_split
from mmrh_retriever.model.masked_attention import masked_attention
from mmrh_retriever.model.own_types import own_types
from mmrh_retriever.model.pass_plan import PassPlan
from mmrh_retriever.model.recording import Recording, record

PREFIX = "mmrh_"
AblationPhase = Literal["all", "decode"]


class _PassEnded(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside a forward pass once its last needed layer is done."""


@dataclass(slots=True)
class _ThreadState:
    plan: PassPlan | None = None
    recording: Recording | None = None
    reached: set[int] = field(default_factory=set)  # layers that the pass has called us from
    ablated: Mapping[int, Tensor] = field(default_factory=dict)
    phase: AblationPhase = "all"


class _Replaced:
    """An object with some of its attributes replaced."""

    def __init__(self, wrapped: Any, **own: Any) -> None:
        self._wrapped = wrapped
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def _as_base(module: nn.Module, base: str) -> Any:
    """An attention module as the base implementation wants to see it: under the base's own name."""
    return _Replaced(module, config=_Replaced(module.config, _attn_implementation=base))


class AttentionSeam:
    """Our hold on one model's decoder attention. Get it with :meth:`install`.

    ``lock`` serialises passes over the model: whoever records, ablates or uses kept keys holds it.
    """

    def __init__(self, decoder: nn.Module, lock: Lock | None = None) -> None:
        self.lock = Lock() if lock is None else lock
        self.checked = False
        self.decoder = decoder
        self.modules = decoder_attention(decoder)
        self.windows = {layer: _sliding_window(module, decoder.config, layer) for layer, module in self.modules.items()}
        self._local = threading.local()
        for module in self.modules.values():
            object.__setattr__(module, "_mmrh_seam", self)
        self._take_hold()

    @classmethod
    def install(cls, decoder: nn.Module) -> AttentionSeam:
        """The seam of a model's text decoder, made on the first call, and anew where layers were replaced since."""
        with _INSTALL_LOCK:
            modules = decoder_attention(decoder)
            seam = next((found for found in map(_seam_of, modules.values()) if found is not None), None)
            if seam is None or seam.modules != modules:
                return cls(decoder, None if seam is None else seam.lock)
            seam.hold()
            return seam

    def hold(self) -> None:
        """Take hold of the decoder's attention again if someone has set another implementation since.

        :class:`AttentionCaptureError` if layers were replaced, :class:`UnsupportedModelError` if the implementation
        can't be read.
        """
        for layer, module in self.modules.items():
            if _seam_of(module) is not self:
                raise AttentionCaptureError(
                    f"The attention of layer {layer} belongs to another seam: layers of the model were replaced after "
                    "it was given to Reranker. Build a new Reranker with it."
                )
        if not self._holds():
            with self.lock:
                self._take_hold()

    def _holds(self) -> bool:
        name = PREFIX + self.base
        configs: list[Any] = [self.decoder.config, *(module.config for module in self.modules.values())]
        return all(config._attn_implementation == name for config in configs)

    def _take_hold(self) -> None:
        config: Any = self.decoder.config
        base = str(config._attn_implementation or "eager").removeprefix(PREFIX)
        if base not in ("sdpa", "eager") and not base.startswith("flash_attention"):
            raise UnsupportedModelError(
                f"Attention {base!r} can't be read. Load the model with attn_implementation='sdpa', 'eager' or "
                "'flash_attention_2'."
            )
        self.base = base
        self._as_base = {layer: _as_base(module, base) for layer, module in self.modules.items()}
        AttentionInterface.register(PREFIX + base, _attend)
        AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])
        set_implementation(self.decoder, PREFIX + base)
        if not self._holds():
            raise UnsupportedModelError(
                f"Layers of {type(self.decoder).__name__} have configurations of their own, so that their attention "
                "can't be set with the decoder's. Expected all layers to share the decoder's."
            )

    def __deepcopy__(self, memo: Mapping[int, Any]) -> None:
        """A copied model gets a seam of its own when it is used."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A pickled model leaves its seam behind."""
        return type(None), ()

    @property
    def _state(self) -> _ThreadState:
        if not hasattr(self._local, "state"):
            self._local.state = _ThreadState()
        return self._local.state  # type: ignore[no-any-return]

    @contextmanager
    def running(self, plan: PassPlan | None = None, recording: Recording | None = None) -> Iterator[None]:
        """One forward pass of this thread, which the body runs; a plan that ends it early leaves the body there.

        It runs without autocast. Errors as for :meth:`hold`; :class:`AttentionCaptureError` where a layer ran past the
        plan or the recording.
        """
        with self.lock:
            self.hold()
            state = self._state
            outer = state.plan, state.recording, state.reached
            reached: set[int] = set()
            state.plan, state.recording, state.reached = plan, recording, reached
            try:
                with own_types():
                    yield
            except _PassEnded:
                pass
            finally:
                state.plan, state.recording, state.reached = outer
        if plan is not None:
            self._check_reached(plan, reached)
        if recording is not None:
            recording.finish()

    @contextmanager
    def ablating(self, heads: Sequence[tuple[int, int]], phase: AblationPhase = "all") -> Iterator[None]:
        """Zero the given ``(layer, head)`` query heads' attention in every pass of this thread.

        ``phase="decode"`` acts on the last token of each pass: on every token that is generated, and on the last one of
        the prefill, whose output gives the first of these. The prefill is one pass then.
        """
        if phase not in ("all", "decode"):
            raise ValueError(f"phase is 'all' or 'decode', got {phase!r}.")
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            if layer not in self.modules or not 0 <= head < query_heads(self.modules[layer]):
                layers, first = ", ".join(map(str, self.modules)), next(iter(self.modules.values()))
                raise HeadSetError(
                    f"There is no head {layer}-{head} to ablate: the model has {query_heads(first)} attention heads "
                    f"in each of the layers {layers}."
                )
            by_layer.setdefault(layer, []).append(head)
        with self.lock:
            self.hold()
            state = self._state
            outer = state.ablated, state.phase
            state.ablated = {layer: torch.tensor(sorted(indices)) for layer, indices in by_layer.items()}
            state.phase = phase
            try:
                yield
            finally:
                state.ablated, state.phase = outer

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The function that the model calls in each layer; see the module's docstring.

        Shapes: query ``(batch, heads, tokens, width)``, key and value ``(batch, key heads, keys, width)``,
        the output ``(batch, tokens, heads, width)``.
        """
        state, layer = self._state, layer_index(module)
        plan, recording = state.plan, state.recording
        state.reached.add(layer)
        if plan is not None:
            if key.shape[2] != plan.past + query.shape[2]:
                raise AttentionCaptureError(
                    f"Layer {layer} attends to {key.shape[2]} keys; expected {plan.past} kept and {query.shape[2]} new "
                    f"ones. {type(module).__name__} does not take kept keys as they were given: install an earlier "
                    "version of transformers."
                )
            key, value = plan.visible_keys(key), plan.visible_keys(value)
        if recording is not None and layer in recording.heads.columns:
            rows = self._mask_rows(plan, recording, layer, attention_mask, query, key)
            record(recording, layer, query[0], key[0], rows, **_softmax_options(module, kwargs))
        if plan is not None and plan.stop_at is not None and layer >= plan.stop_at:
            raise _PassEnded
        output, weights = self._run_base(plan, module, query, key, value, attention_mask, kwargs)
        if layer in state.ablated:
            first = 0 if state.phase == "all" else -1
            output = output.clone()
            output[:, first:, state.ablated[layer].to(output.device)] = 0
        return output, weights

    def _check_reached(self, plan: PassPlan, reached: set[int]) -> None:
        """Raise :class:`AttentionCaptureError` where a layer ran without us, and so without the plan's mask."""
        missing = [
            layer for layer in self.modules if layer not in reached and (plan.stop_at is None or layer <= plan.stop_at)
        ]
        if missing:
            raise AttentionCaptureError(
                f"Layers {missing} did not call our attention function, layers {sorted(reached)} did. Were layers of "
                "the model replaced after it was given to Reranker? Build a new Reranker with it."
            )

    def _mask_rows(
        self,
        plan: PassPlan | None,
        recording: Recording,
        layer: int,
        attention_mask: Tensor | None,
        query: Tensor,
        key: Tensor,
    ) -> Tensor:
        """``(recorded rows, last keys)`` additive float32 mask; the keys before these are seen by every row."""
        tokens, keys = query.shape[2], key.shape[2]
        rows = recording.tables_on(query.device).rows
        if query.shape[0] != 1:
            raise AttentionCaptureError(f"Recording takes one sequence at a time, got a batch of {query.shape[0]}.")
        if plan is None and attention_mask is not None and attention_mask.dim() == 4:
            chosen = attention_mask[0, 0, rows, :keys]
            if chosen.dtype is not torch.bool:
                return chosen.float()
        elif plan is None:
            chosen = PassPlan(keys - tokens, tokens).hiding_from(rows, self.windows[layer])
            if attention_mask is not None:  # (1, keys), as flash attention is given it: padding
                unhidden = torch.ones(len(rows), keys - chosen.shape[1], dtype=torch.bool, device=rows.device)
                chosen = torch.cat([unhidden, chosen], dim=1) & attention_mask[:1, :keys].bool()
        else:
            chosen = plan.hiding_from(rows, self.windows[layer])
        return torch.zeros(chosen.shape, device=query.device, dtype=torch.float32).masked_fill_(~chosen, float("-inf"))

    def _run_base(
        self,
        plan: PassPlan | None,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        base, layer = self.base, layer_index(module)
        if plan is not None:
            window = self.windows[layer]
            plain = plan.is_plain(window)
            if base == "eager" or not plain or (base == "sdpa" and plan.seen and plan.length > 1):
                options = _softmax_options(module, kwargs)
                usual = options["softcap"] is None and options["sinks"] is None
                if usual and plan.seen and not plan.hides_kept(window) and can_split(query, key, value):
                    own = None if plain else plan.additive(window, query.device, query.dtype, own=True)
                    output = attend_behind(query, key, value, plan.seen, scaling=options["scaling"], mask=own)
                    return output.transpose(1, 2).contiguous(), None
                mask = plan.additive(window, query.device, query.dtype)[None, None]
                if usual:
                    return masked_attention(query, key, value, mask, options["scaling"]), None
                base, attention_mask = "eager", mask
            else:
                attention_mask = None
        if base == "eager":
            eager = sys.modules[type(module).__module__].eager_attention_forward
            output, weights = eager(module, query, key, value, attention_mask, **kwargs)
            return output, weights
        function = ALL_ATTENTION_FUNCTIONS[base]
        seen_as = self._as_base[layer] if base == self.base else module
        output, weights = function(seen_as, query, key, value, attention_mask, **kwargs)
        return output, weights


_INSTALL_LOCK = Lock()


def _seam_of(module: nn.Module) -> AttentionSeam | None:
    """The seam that an attention module points to."""
    seam = getattr(module, "_mmrh_seam", None)
    return seam if isinstance(seam, AttentionSeam) else None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """What is registered with transformers: hands over to the seam that the module points to."""
    seam = _seam_of(module)
    if seam is None:
        raise AttentionCaptureError(
            f"{type(module).__name__} runs our attention function but was never prepared for it. Was the model copied "
            "or its layers replaced after it was given to Reranker? Build a new Reranker with it."
        )
    return seam.attend(module, query, key, value, attention_mask, **kwargs)


def decoder_attention(decoder: nn.Module) -> dict[int, nn.Module]:
    """The attention module of each decoder layer, by layer index."""
    found: dict[int, nn.Module] = {}
    for name, module in decoder.named_modules():
        if name.rsplit(".", 1)[-1] in ("self_attn", "attention", "attn") and hasattr(module, "layer_idx"):
            layer = layer_index(module)
            if layer in found:
                raise UnsupportedModelError(f"{type(decoder).__name__} has two attention modules in layer {layer}.")
            found[layer] = module
    if not found:
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has no self-attention modules with a layer index; expected one in each layer."
        )
    return dict(sorted(found.items()))


def layer_index(module: nn.Module) -> int:
    """An attention module's layer."""
    index: Any = module.layer_idx
    return int(index)


def set_implementation(decoder: nn.Module, name: str) -> None:
    """Set the decoder's attention implementation alone: not the vision tower's, and without asking the hub for it."""
    config: Any = decoder.config
    config._attn_implementation = name


def _softmax_options(module: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = getattr(module, "scaling", None)
    if scaling is None:
        width: Any = module.head_dim
        scaling = float(width) ** -0.5
    return {"scaling": float(scaling), "softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}


def _sliding_window(module: nn.Module, config: Any, layer: int) -> int | None:
    types = getattr(config, "layer_types", None)
    if types is not None:
        if types[layer] == "full_attention":
            return None
        if types[layer] == "sliding_attention":
            return int(config.sliding_window)
        raise UnsupportedModelError(
            f"Layer {layer} has attention of type {types[layer]!r}; only full and sliding attention can be recorded."
        )
    window = getattr(module, "sliding_window", None)
    if window is None and getattr(config, "use_sliding_window", True):
        window = getattr(config, "sliding_window", None)
    return int(window) if window else None


def query_heads(module: nn.Module) -> int:
    """Query heads of an attention module."""
    config: Any = module.config
    return int(config.num_attention_heads)
