"""Files: JSON checked by pydantic, messages that name the file, writes that are all or nothing."""

from __future__ import annotations

import gzip
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.errors import DataError

MAX_TEXT_BYTES = 256 * 1024**2
"""The longest text that is read from one file; a packed file may hold a thousand times its own size."""

_SHOWN_PROBLEMS = 3
_LONGEST_NAME = 300
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class FileModel(BaseModel):
    """A file's content: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)


def files_below(folder: Path, endings: Iterable[str]) -> list[Path]:
    """The files in a folder and its folders with one of these endings (in any case), sorted; none that are hidden."""
    known = {ending.lower() for ending in endings}
    found = (path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def is_file(path: str | Path) -> bool:
    """Whether there is such a file. Text that is too long for a path, or can't be one, names none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; see :func:`is_file`."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def is_special(path: str | Path) -> bool:
    """Whether a path leads to a pipe or a device, which may keep a reader waiting for ever."""
    try:
        return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path, *, what: str) -> str:
    """The text of a UTF-8 file, unpacked when its name ends in ``.gz``. ``what`` names the content in messages.

    Raises:
        DataError: missing, damaged, no plain file, or larger than :data:`MAX_TEXT_BYTES`, which counts unpacked bytes.
    """
    try:
        _refuse_special(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(MAX_TEXT_BYTES + 1)
        text = data.decode("utf-8") if len(data) <= MAX_TEXT_BYTES else None
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: also a path that can't be one
        raise _unreadable(path, what, error) from error
    if text is None:
        raise DataError(f"{path}: more than {MAX_TEXT_BYTES:,} bytes, unpacked. The {what} can't be that long.")
    return text


def _refuse_special(path: Path) -> None:
    if is_special(path):
        raise DataError(f"{path}: not a plain file, but a pipe or a device. Write it into a file first.")


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    name = str(path) if len(str(path)) <= _LONGEST_NAME else f"...{str(path)[-_LONGEST_NAME:]}"
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such file. Check the path of the {what}.")
    described = getattr(error, "strerror", None) or error
    return DataError(f"{name}: can't be read ({described}). Expected a UTF-8 file: the {what}.")


def read_jsonl(path: Path, model: type[Model], *, what: str) -> Iterator[tuple[int, Model]]:
    """The lines of a JSON lines file, checked, each with its number (from 1). Empty lines are passed over."""
    try:
        _refuse_special(path)
        with path.open("rb") as lines:  # binary: a line ends at "\n" alone, not at other separators inside a text
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    cut = "" if line.endswith(b"\n") else " (without a line break: the file may be cut off here)"
                    yield number, parse_as(model, line, where=f"{path}, line {number}{cut}", what=what)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{what} file", error) from error


def read_json(path: Path, model: type[Model], *, what: str) -> Model:
    """A JSON file as a model. A :class:`DataError` says what can't be read or does not fit the schema."""
    return parse_as(model, read_text(path, what=what), where=str(path), what=what)


def parse_as(model: type[Model], text: str | bytes, *, where: str, what: str) -> Model:
    """JSON text as a model. A :class:`DataError` names the first wrong fields and what was found there."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        shown = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'all of it'}: {problem['msg']} "
            f"(got {str(problem['input'])[:60]!r})"
            for problem in problems[:_SHOWN_PROBLEMS]
        )
        more = f" and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(f"{where}: not a valid {what}: {shown}{more}. Correct it or make it again.") from error


def format_of(text: str, *, where: str, what: str) -> str | None:
    """The ``format`` that a JSON object declares, if any; a :class:`DataError` if the text is no JSON object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}). Expected a {what}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: holds a JSON {type(content).__name__}. Expected an object: a {what}.")
    declared = content.get("format")
    return declared if isinstance(declared, str) else None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing; a :class:`DataError` if that can't be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        name = str(folder)[:_LONGEST_NAME]
        described = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: the folder can't be made ({described}). Choose another.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and move into place, so that no reader ever sees half a file."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with beside.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error}). Check that its folder exists.") from error


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Save plain data or a pydantic model as JSON, packed when the name ends in ``.gz`` (the same bytes every time)."""
    plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    separators = (",", ":") if indent is None else None
    data = (json.dumps(plain, indent=indent, separators=separators, allow_nan=False) + "\n").encode()
    write_atomically(path, gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)


def leftovers(folder: Path) -> list[Path]:
    """Files that a kill in the middle of :func:`write_atomically` left in a folder or below it."""
    return [item for item in folder.rglob(".*.tmp") if _LEFTOVER.fullmatch(item.name)]
