"""One forward pass of the engine: what its tokens may see, the masks that follow from it, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmrh_retriever.types import TokenSpan


@dataclass(slots=True)
class PassPlan:
    """One forward pass of the engine: what its tokens may see, and where it ends.

    Every token sees the ``past`` keys that earlier passes kept, and those before it among the pass's own ``length``
    tokens. ``paths`` are questions side by side, each as offsets of its tokens in the pass: a token then sees those
    before it on a path. ``bidirectional`` spans (images of some families) see their own later tokens too, with
    ``locally`` only in layers with a sliding window. ``visible``
    leaves only so many of the first kept keys to be seen. ``offsets`` are the visible kept keys' token offsets in their
    own context and ``start`` that of the pass, for sliding windows; by default they count up. The pass ends at layer
    ``stop_at``: after recording if that layer records, and in any case once its keys are kept.
    """

    past: int
    length: int
    paths: tuple[Sequence[int], ...] = ()
    bidirectional: tuple[TokenSpan, ...] = ()
    locally: bool = False
    stop_at: int | None = None
    visible: int | None = None
    offsets: Tensor | None = None
    start: int | None = None
    masks: dict[tuple[int | None, torch.device], Tensor] = field(default_factory=dict)
    additives: dict[tuple[int | None, torch.dtype, torch.device, bool], Tensor] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """Kept keys that the pass sees."""
        return self.past if self.visible is None else self.visible

    def is_plain(self, window: int | None) -> bool:
        """Whether the mask is plainly causal (with the past in front)."""
        if len(self.paths) > 1 or self._spans(window):
            return False
        return window is None or window >= self.past + self.length

    def visible_keys(self, key: Tensor) -> Tensor:
        """The keys (or values) that the pass sees, of ``(1, key heads, past + tokens, width)``."""
        if self.visible is None or self.visible == self.past:
            return key
        return torch.cat([key[:, :, : self.visible], key[:, :, self.past :]], dim=2)

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """``(tokens, seen + tokens)`` bool: what each token of the pass may look at."""
        hiding = self.hiding(window, device)
        if hiding.shape[1] > self.length:
            return hiding
        return torch.cat([torch.ones(self.length, self.seen, dtype=torch.bool, device=device), hiding], dim=1)

    def hiding(self, window: int | None, device: torch.device) -> Tensor:
        """The last columns of :meth:`mask`, those that hide something: the pass's own tokens, or all."""
        if (window, device) not in self.masks:
            self.masks[window, device] = self._make_mask(window, device)
        return self.masks[window, device]

    def hiding_from(self, rows: Tensor, window: int | None) -> Tensor:
        """Some rows of :meth:`hiding`; a plain pass never forms the whole of it."""
        if self.is_plain(window):
            return torch.arange(self.length, device=rows.device)[None, :] <= rows[:, None]
        return self.hiding(window, rows.device)[rows]

    def hides_kept(self, window: int | None) -> bool:
        """Whether a sliding window may hide some kept key from some token."""
        return window is not None and not self.is_plain(window)

    def additive(self, window: int | None, device: torch.device, dtype: torch.dtype, *, own: bool = False) -> Tensor:
        """:meth:`mask` as numbers to add to the logits, formed once for all layers of the pass.

        With ``own``, the columns of the pass's own tokens alone.
        """
        if (window, dtype, device, own) not in self.additives:
            hiding = self.hiding(window, device)
            mask = torch.zeros(self.length, (0 if own else self.seen) + self.length, dtype=dtype, device=device)
            mask[:, mask.shape[1] - hiding.shape[1] :].masked_fill_(~hiding, torch.finfo(dtype).min)
            self.additives[window, dtype, device, own] = mask
        return self.additives[window, dtype, device, own]

    def _make_mask(self, window: int | None, device: torch.device) -> Tensor:
        own, depth = self._own_tokens(device)
        for span in self._spans(window):
            own[span.start : span.stop, span.start : span.stop] = True
        if window is None:
            return own
        own = own & (depth[:, None] - depth[None, :] < window)  # a window hides an image's own earlier tokens too
        start = self.seen if self.start is None else self.start
        offset = start + depth  # the token's offset if its question were alone
        kept = torch.arange(self.seen, device=device) if self.offsets is None else self.offsets.to(device)
        return torch.cat([offset[:, None] - kept[None, : self.seen] < window, own], dim=1)

    def _spans(self, window: int | None) -> tuple[TokenSpan, ...]:
        """The spans that see their own later tokens in a layer of this window."""
        return () if self.locally and window is None else self.bidirectional

    def _own_tokens(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which of the pass's own tokens each one sees, and how many of them lie between it and the past.

        ``(tokens, tokens)`` bool, itself included, and ``(tokens,)``.
        """
        depth = torch.arange(self.length, device=device)
        if not self.paths:
            return depth[None, :] <= depth[:, None], depth
        follows = np.zeros((self.length, self.length), dtype=bool)
        depths = np.zeros(self.length, dtype=np.int64)
        for path in self.paths:
            offsets = np.asarray(path)
            follows[offsets[:, None], offsets] = np.tri(len(offsets), dtype=bool)
            depths[offsets] = np.arange(len(offsets))
        return torch.from_numpy(follows).to(device), torch.from_numpy(depths).to(device)
