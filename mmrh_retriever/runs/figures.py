"""Figures drawn with matplotlib (extra ``plot``), off screen and without pyplot's state."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import write_atomically

_FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, distinct with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@contextmanager
def figure(path: str | Path, width: float, height: float, *, dpi: int = 150) -> Iterator[Any]:
    """A matplotlib figure of some inches to draw on. It is saved to ``path`` at the end, all or nothing."""
    kind = Path(path).suffix.lower()
    if kind not in _FORMATS:
        raise DataError(f"{path}: pictures are saved as {', '.join(_FORMATS)}. Give the file such an ending.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib. Install it with: pip install "mmrh-retriever[plot]"') from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    yield made
    memory = io.BytesIO()
    made.savefig(memory, format=kind[1:], dpi=dpi)
    write_atomically(Path(path), memory.getvalue())
