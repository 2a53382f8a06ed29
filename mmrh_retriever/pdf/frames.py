"""Messages over a pipe between a process and its PDF worker: a JSON object, and bytes beside it."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

_SIZES = struct.Struct(">QQ")  # bytes of the JSON text, and of what follows it


def write_frame(stream: IO[bytes], message: dict[str, Any], data: bytes = b"") -> None:
    """Send a message."""
    text = json.dumps(message).encode()
    stream.write(_SIZES.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or ``None`` if the other side has ended."""
    sizes = stream.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    of_text, of_data = _SIZES.unpack(sizes)
    text, data = stream.read(of_text), stream.read(of_data)
    return (json.loads(text), data) if len(text) + len(data) == of_text + of_data else None
