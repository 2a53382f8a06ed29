"""Files of encoded pages: whatever is done to one, a page is read back as it was written, or not at all."""

from __future__ import annotations

import json
import logging
import random
import struct
from pathlib import Path

import torch

from mmrh_retriever import PageStore
from mmrh_retriever.encoding.page_files import StoredPage, file_name
from mmrh_retriever.model.prompts import PromptSegment
from tests.hostile import damage
from tests.hostile.outcomes import expect


def _page(seed: int) -> StoredPage:
    generator = torch.Generator().manual_seed(seed)
    segment = PromptSegment(3)
    segment.add_text(range(seed % 7 + 2), scored=True)
    return StoredPage(segment, tuple(torch.randn(2, len(segment), 4, generator=generator) for _ in range(4)))


def _same(one: StoredPage, other: StoredPage) -> bool:
    kept = all(torch.equal(left, right) for left, right in zip(one.parts, other.parts, strict=True))
    positions = torch.equal(one.segment.all_positions(), other.segment.all_positions())
    segments = [(it.segment.ids, it.segment.extent, it.segment.scored, it.segment.visual) for it in (one, other)]
    return kept and positions and list(segments[0][0]) == list(segments[1][0]) and segments[0][1:] == segments[1][1:]


def stores(rng: random.Random, folder: Path) -> None:
    """After damage to a folder, every page that a store still gives is the one that was put under its name."""
    logging.disable()
    pages = {f"{number:032x}-2": _page(rng.randrange(1000)) for number in range(3)}
    writer = PageStore(folder=folder)
    for name, page in pages.items():
        writer.put("model", name, page)
    foreign = folder / rng.choice(["model.safetensors", "notes.txt", ".hidden.part"])
    foreign.write_bytes(b"another's")
    first, second = (folder / file_name(name) for name in list(pages)[:2])
    kind = rng.randrange(8)
    if kind == 0:
        second.replace(first)
    elif kind == 1:
        first.write_bytes(second.read_bytes())
    elif kind == 2:
        first.write_bytes(_header_changed(rng, first.read_bytes()))
    elif kind == 3:
        first.unlink()
        first.symlink_to(rng.choice([second, first, Path("/dev/zero"), folder]))
    elif kind == 4:
        data = first.read_bytes()
        first.write_bytes(struct.pack("<Q", rng.choice([0, 2**40, 2**63, len(data)])) + data[8:])
    else:
        first.write_bytes(damage.spoiled(rng, first.read_bytes()))
    reader = PageStore(folder=folder, disk=rng.choice([0, 10**9]))
    for name, page in pages.items():
        found = reader.get("model", name)
        expect(found is None or _same(found, page), f"{name} is another page")
        expect(reader.get("another model", name) is None, "a page of another model")
    reader.put("model", "f" * 32 + "-2", _page(1))
    expect(foreign.read_bytes() == b"another's", "another's file was changed")


def flipped(rng: random.Random, folder: Path) -> None:
    """One changed byte, wherever it is, never gives another page."""
    logging.disable()
    page = _page(rng.randrange(1000))
    PageStore(folder=folder).put("model", "a" * 32 + "-2", page)
    path = folder / file_name("a" * 32 + "-2")
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)
    found = PageStore(folder=folder).get("model", "a" * 32 + "-2")
    expect(found is None or _same(found, page), "another page")


def _header_changed(rng: random.Random, data: bytes) -> bytes:
    """A file whose description of the page differs in one value, otherwise a valid file."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    described = json.loads(header["__metadata__"]["segment"])
    key = rng.choice(list(described))
    described[key] = damage.value(rng)
    header["__metadata__"]["segment"] = json.dumps(described, default=str)
    plain = json.dumps(header).encode("utf-8", "replace")
    plain += b" " * (-len(plain) % 8)
    return struct.pack("<Q", len(plain)) + plain + data[8 + size :]
