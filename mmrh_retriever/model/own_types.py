"""Passes run in the model's own number types, whatever its caller has switched on around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def own_types() -> Iterator[None]:
    """Autocast is off in the body: kept keys and scores would depend on whether it was on."""
    with ExitStack() as off:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                off.enter_context(torch.autocast(device, enabled=False))
        yield
