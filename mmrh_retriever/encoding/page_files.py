"""A file per encoded page: safetensors with a description, tied to its name, and known as ours by name and header.

The digest covers description, fingerprint, name and the tensors' checksums. It finds damage and files that were
renamed; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmrh_retriever.errors import DataError
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.types import PatchGrid, TokenSpan

FORMAT = "mmrh-page-5"

_FORMATS = "mmrh-page-"
_HALF_WRITTEN = re.compile(r"\.[0-9a-f]+-\d+(-[0-9a-f]+)?\.mmrh-page\.\d+\.\d+\.part")


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page as tokens, without its pixels, and what the cache keeps of it: keys and values, layer by layer."""

    segment: PromptSegment
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take; the rest is small."""
        return sum(part.nbytes for part in self.parts)


def file_name(name: str) -> str:
    """The name of a page's file."""
    return f"{name}.mmrh-page.safetensors"


def is_page_file(path: Path) -> bool:
    """Whether a file says in its header that it is one of ours, of any version."""
    try:
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("format", "")).startswith(_FORMATS)
    except (OSError, SafetensorError):
        return False


def half_written(folder: Path) -> list[Path]:
    """Files that writers in a folder have begun."""
    return [path for path in folder.glob(".*.part") if _HALF_WRITTEN.fullmatch(path.name)]


def write_page(folder: Path, fingerprint: str, name: str, page: StoredPage) -> int:
    """Write a page's file; a reader sees the whole of it or nothing. Gives its bytes."""
    tensors = _tensors(page)
    segment = page.segment
    described = {
        "axes": segment.axes,
        "extent": segment.extent,
        "parts": len(page.parts),
        "scored": [[span.start, span.stop] for span in segment.scored],
        "bidirectional": [[span.start, span.stop] for span in segment.bidirectional],
        "grid": None if segment.grid is None else [segment.grid.rows, segment.grid.columns],
    }
    metadata = {"format": FORMAT, "name": name, "fingerprint": fingerprint, "segment": json.dumps(described)}
    metadata["digest"] = _digest(metadata, tensors)
    own = folder / f".{name}.mmrh-page.{os.getpid()}.{threading.get_ident()}.part"
    try:
        save_file(tensors, own, metadata=metadata)
        written = own.stat().st_size
        own.replace(folder / file_name(name))
        return written
    finally:
        own.unlink(missing_ok=True)


def read_page(folder: Path, fingerprint: str, name: str) -> StoredPage:
    """A page from its file.

    Raises:
        DataError: a file of another format, name, model or prompt, or a damaged one.
        OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError: a file that holds anything else.
    """
    with safe_open(folder / file_name(name), framework="pt") as file:
        metadata: dict[str, str] = dict(file.metadata() or {})
        if metadata.get("format") != FORMAT:
            raise DataError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}.")
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if _digest(metadata, tensors) != metadata["digest"]:
        raise DataError("its contents are damaged.")
    if metadata["name"] != name:
        raise DataError(f"it was written as {file_name(metadata['name'])} and holds another page.")
    if metadata["fingerprint"] != fingerprint:
        raise DataError("it was made by another model, processor or prompt. Give each of them a folder of its own.")
    described: dict[str, Any] = json.loads(metadata["segment"])
    grid = None if described["grid"] is None else PatchGrid(tensors["boxes"].numpy(), *described["grid"])
    segment = PromptSegment(
        axes=described["axes"],
        ids=tensors["ids"].tolist(),
        positions=[tensors["positions"]],
        extent=described["extent"],
        scored=[TokenSpan(*span) for span in described["scored"]],
        visual=tuple(tensors["visual"].tolist()),
        grid=grid,
        bidirectional=tuple(TokenSpan(*span) for span in described["bidirectional"]),
    )
    return StoredPage(segment, tuple(tensors[f"part-{number}"] for number in range(described["parts"])))


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    described = {key: value for key, value in metadata.items() if key != "digest"}
    held = [
        [name, str(tensor.dtype), list(tensor.shape), _checksum(tensor)] for name, tensor in sorted(tensors.items())
    ]
    return hashlib.blake2b(json.dumps([described, held], sort_keys=True).encode(), digest_size=16).hexdigest()


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes: it is read at four times the speed of a cryptographic digest."""
    return zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)


def _tensors(page: StoredPage) -> dict[str, Tensor]:
    segment = page.segment
    tensors = {
        **{f"part-{number}": part.contiguous() for number, part in enumerate(page.parts)},
        "ids": torch.tensor(segment.ids, dtype=torch.long),
        "positions": segment.all_positions().contiguous(),
        "visual": torch.tensor(segment.visual, dtype=torch.long),
    }
    if segment.grid is not None:
        tensors["boxes"] = torch.from_numpy(np.ascontiguousarray(segment.grid.boxes))
    return tensors
