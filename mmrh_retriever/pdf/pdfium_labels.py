"""Whether PDFium may be asked for page labels: it ends the process for a label whose number passes 2,147,483,647.

PDFium shows no dictionaries, so the file itself is searched for the rules' numbers: as it stands, and what is packed in
object streams. Files whose rules can't be seen have no labels.
"""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path

from mmrh_retriever.pdf.pdf_file import PdfFile

_START = re.compile(rb"/(?:S|#53)(?:t|#74)(?![^\s\0/<>\[\](){}%])")
_SMALL = re.compile(rb"[\s\0]*\d{1,8}[\s\0]*[/>]")
_PACKED = re.compile(rb"/ObjStm\b")
_ESCAPED = re.compile(rb"/(?=\w*#)[\w#]{7,18}")
_MOST_BYTES = 32 * 1024 * 1024  # of an object stream, unpacked
_LONGEST_DICTIONARY = 2048  # bytes between the name of an object stream and its data


def labels_are_safe(file: PdfFile, *, encrypted: bool) -> bool:
    """Whether all rules of a PDF's labels that are found begin with small numbers."""
    if file.data is not None:
        return _are_safe(file.data, encrypted=encrypted)
    with Path(file.source).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _are_safe(mapped, encrypted=encrypted)


def _are_safe(data: bytes | mmap.mmap, *, encrypted: bool) -> bool:
    packed = list(_PACKED.finditer(data))
    if (packed and encrypted) or any(_plain(name) == b"/ObjStm" for name in _ESCAPED.findall(data)):
        return False
    parts = [_unpacked(data, found.start(), found.end()) for found in packed]
    return all(part is not None and _small(part) for part in (data, *parts))


def _small(data: bytes | mmap.mmap) -> bool:
    return all(_SMALL.match(data, found.end()) for found in _START.finditer(data))


def _unpacked(data: bytes | mmap.mmap, start: int, end: int) -> bytes | None:
    """What the object stream holds whose dictionary has its name there; ``None`` if that can't be told."""
    opening = max(data.rfind(b"obj", 0, start), start - _LONGEST_DICTIONARY)
    begin = data.find(b"stream", end, end + _LONGEST_DICTIONARY)
    dictionary, end_mark = data[opening:begin], data.find(b"endstream", begin)
    if min(begin, end_mark) < 0 or b"/DecodeParms" in dictionary:
        return None
    if b"/Filter" not in dictionary:
        return b""  # it stands there as it is
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data[begin + len(b"stream") : end_mark].lstrip(b"\r\n"), _MOST_BYTES)
    except zlib.error:
        return None
    return found if unpacker.eof else None


def _plain(name: bytes) -> bytes:
    """A name without its escaped letters."""
    return re.sub(rb"#([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), name)
