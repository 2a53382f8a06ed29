"""Keys and values of pages in one buffer per layer: written in place, cropped by a counter.

Layers with linear attention or a convolution have no keys but a state, which each token changes for good. It is copied
at the end of what is kept, and put back when the rest is forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from mmrh_retriever.errors import ContextOverflowError, UnsupportedModelError

AT_ONCE = 16
"""How many times longer a buffer may become at once."""


def cache_argument(module: nn.Module) -> str:
    """The argument by which a decoder takes kept keys: ``past_key_values`` until transformers 5.23, then ``cache``."""
    parameters = inspect.signature(module.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise UnsupportedModelError(
        f"{type(module).__name__} takes neither cache nor past_key_values, expected one of them for kept keys. "
        f"transformers {transformers.__version__} may be too new; install the version before it."
    )


class PageLayer(DynamicLayer):
    """One layer's keys and values, ``(1, key heads, capacity, width)`` each, of which ``length`` are in use.

    A full buffer grows by half, so that adding pages costs amortised constant time per token. On a CPU, where memory
    that is not written to costs nothing, it grows to ``expected`` tokens at once, up to :data:`AT_ONCE` times its size.
    """

    is_sliding = False
    expected = 0

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers once the shapes are known."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = _buffer(key_states, self.capacity)
        self.values = _buffer(value_states, self.capacity)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values behind those in use and give views of all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = slice(self.length, self.length + key_states.shape[2])
        if new.stop > self.keys.shape[2]:
            self._grow(new.stop)
        self.length = new.stop
        return self._write(key_states, value_states, new)

    def _write(self, key_states: Tensor, value_states: Tensor, new: slice) -> tuple[Tensor, Tensor]:
        self.keys[:, :, new] = key_states
        self.values[:, :, new] = value_states
        return self.keys[:, :, : new.stop], self.values[:, :, : new.stop]

    def _grow(self, stop: int) -> None:
        held = self.keys.shape[2]
        least = max(stop, held * 3 // 2)
        expected = min(self.expected, held * AT_ONCE) if self.keys.device.type == "cpu" else 0
        try:
            self._make_room(max(least, expected))
        except RuntimeError:  # memory is short, also torch.OutOfMemoryError
            if expected <= least:
                raise
            self._make_room(least)

    def _make_room(self, tokens: int) -> None:
        # both or neither, so that the layer stays whole where memory is short
        self.keys, self.values = _grown(self.keys, self.length, tokens), _grown(self.values, self.length, tokens)

    def get_seq_length(self) -> int:
        """Tokens in use."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next pass sees, and the first one's position."""
        return self.length + int(query_length), 0

    def crop_to(self, length: int) -> None:
        """Forget all tokens from ``length`` on; nothing is copied."""
        self.length = min(self.length, length)

    def part(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Keys and values of some tokens, ``(key heads, tokens, width)`` each; none if another layer's are used."""
        return (self.keys[0, :, start:stop], self.values[0, :, start:stop]) if self.is_initialized else ()

    def append(self, parts: Iterator[Tensor]) -> None:
        """Put tokens behind those in use, as :meth:`part` gave them."""
        if self.is_initialized:
            self.update(*(part[None].to(self.device) for part in (next(parts), next(parts))))

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers take."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0


class RecordedLayer(PageLayer):
    """A layer in which every pass ends once some of its ``of`` query heads were recorded.

    Nothing but these heads' keys is read, so nothing else is written. Values are given back as they came, so that a
    pass that went on would fail.
    """

    def __init__(self, capacity: int, heads: Collection[int], of: int) -> None:
        super().__init__(capacity)
        self.heads, self.of = heads, of
        self.key_heads: list[int] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the keys' buffer once its shape is known."""
        super().lazy_initialization(key_states, value_states)
        self.values = value_states[:, :, :0].clone()
        self.key_heads = sorted({head * key_states.shape[1] // self.of for head in self.heads})

    def _write(self, key_states: Tensor, value_states: Tensor, new: slice) -> tuple[Tensor, Tensor]:
        for head in self.key_heads:
            self.keys[:, head, new] = key_states[:, head]
        return self.keys[:, :, : new.stop], value_states

    def _make_room(self, tokens: int) -> None:
        self.keys = _grown(self.keys, self.length, tokens, self.key_heads)

    def part(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """The recorded heads' keys of some tokens, ``(recorded key heads, tokens, width)``."""
        return (self.keys[0, self.key_heads, start:stop],)

    def append(self, parts: Iterator[Tensor]) -> None:
        """Put keys behind those in use, as :meth:`part` gave them."""
        recorded = next(parts)
        new = slice(self.length, self.length + recorded.shape[1])
        if new.stop > self.keys.shape[2]:
            self._grow(new.stop)
        self.length = new.stop
        for head, keys in zip(self.key_heads, recorded, strict=True):
            self.keys[0, head, new] = keys

    @property
    def nbytes(self) -> int:
        """Bytes of the keys that are written: on a CPU the others take no memory."""
        return super().nbytes * len(self.key_heads) // self.keys.shape[1] if self.is_initialized else 0


class StateLayer(LinearAttentionLayer):
    """A recurrent layer's states behind all tokens run so far, and a copy of them behind those that are kept."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.kept: tuple[Tensor, ...] = ()

    def _tensors(self) -> list[Tensor]:
        held = [*self.conv_states.values(), *self.recurrent_states.values()]
        return [state for state in held if state is not None]

    def keep(self) -> None:
        """Copy the states: what follows can be forgotten."""
        self.kept = tuple(state.clone() for state in self._tensors())

    def forget(self) -> None:
        """Go back to the states that were kept."""
        for state, kept in zip(self._tensors(), self.kept, strict=True):
            state.copy_(kept)

    def part(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """The states behind the tokens that have run, ``(1, ...)`` each, whatever tokens are asked for."""
        return tuple(self._tensors())

    def append(self, parts: Iterator[Tensor]) -> None:
        """Take over the states behind further tokens, as :meth:`part` gave them."""
        for state in self._tensors():
            state.copy_(next(parts))

    @property
    def nbytes(self) -> int:
        """Bytes that the states and their copies take."""
        return sum(state.nbytes for state in (*self._tensors(), *self.kept))


class PageCache(Cache):
    """The keys and values of the pages of one window, for the first ``layers`` layers of a decoder.

    The layers among ``recurrent`` have states instead. With ``recorded``, all passes end in the last layer once these
    of its ``of`` query heads are recorded.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        recurrent: Collection[int] = (),
        *,
        recorded: Collection[int] = (),
        of: int = 0,
    ) -> None:
        made = [StateLayer() if layer in recurrent else PageLayer(capacity) for layer in range(layers)]
        if recorded:
            made[-1] = RecordedLayer(capacity, recorded, of)
        super().__init__(layers=made)
        self._states = [layer for layer in made if isinstance(layer, StateLayer)]
        self._pages = [layer for layer in made if isinstance(layer, PageLayer)]
        self._kept = 0

    def expect(self, tokens: int) -> None:
        """Make room for about so many tokens in all when a buffer is full."""
        for layer in self._pages:
            layer.expected = tokens

    def keep(self) -> None:
        """All tokens so far stay: :meth:`crop_to` goes no further back. Costs a copy of recurrent layers' states."""
        self._kept = self.get_seq_length()
        with torch.inference_mode():
            for layer in self._states:
                layer.keep()

    def crop_to(self, length: int) -> None:
        """Forget all tokens from ``length`` on.

        :class:`ContextOverflowError` if a layer has fewer, or if recurrent layers' states were not kept there.
        """
        if self._states and length != self._kept:
            raise ContextOverflowError(
                f"Can't go back to {length} tokens: recurrent layers' states are kept behind {self._kept}. Encode the "
                "pages again.",
                tokens=length,
                allowed=self._kept,
            )
        for layer in self._pages:
            if layer.is_initialized and layer.length < length:
                raise ContextOverflowError(
                    f"Can't go back to {length} tokens: a layer holds {layer.length}. Encode the pages again.",
                    tokens=length,
                    allowed=layer.length,
                )
            layer.crop_to(length)
        with torch.inference_mode():
            for state in self._states:
                state.forget()

    def part(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Copies on the CPU of some tokens' keys and values, layer by layer.

        Those of recurrent layers are the states behind all tokens that have run, so that ``stop`` must be there.
        """
        return tuple(part.to("cpu", copy=True) for layer in self.layers for part in layer.part(start, stop))

    def append(self, parts: Sequence[Tensor]) -> None:
        """Put tokens behind those in use (at least the prompt prefix), as :meth:`part` gave them, for good."""
        waiting = iter(parts)
        with torch.inference_mode():
            for layer in self.layers:
                layer.append(waiting)
        self.keep()

    def append_from(self, other: PageCache, start: int, stop: int) -> None:
        """Put some of another cache's tokens behind those in use."""
        with torch.inference_mode():
            for layer, source in zip(self.layers, other.layers, strict=True):
                layer.append(iter(source.part(start, stop)))

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers take."""
        return sum(layer.nbytes for layer in self.layers)


def _buffer(like: Tensor, capacity: int) -> Tensor:
    batch, heads, tokens, width = like.shape
    return torch.empty(batch, heads, max(capacity, tokens), width, dtype=like.dtype, device=like.device)


def _grown(buffer: Tensor, used: int, capacity: int, heads: Collection[int] | None = None) -> Tensor:
    grown = _buffer(buffer[:, :, :0], capacity)
    for head in range(buffer.shape[1]) if heads is None else heads:
        grown[:, head, :used] = buffer[:, head, :used]
    return grown
