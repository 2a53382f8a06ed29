"""Files: JSON checked by pydantic, messages that name the file, writes that are all or nothing."""

from __future__ import annotations

import gzip
import json
import os
import re
import uuid
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmrh_retriever.errors import DataError

_SHOWN_PROBLEMS = 3
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class FileModel(BaseModel):
    """A file's content: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


FileModelT = TypeVar("FileModelT", bound=BaseModel)


def read_text(path: Path) -> str:
    """The text of a JSON file, unpacked when its name ends in ``.gz``.

    Raises:
        DataError: the file is missing, unreadable, damaged or not UTF-8.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Check the path of the head file.") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error}). Expected a UTF-8 JSON file.") from error


def format_of(text: str, *, name: str) -> str | None:
    """The ``format`` that a JSON object declares, or ``None`` where it declares none.

    Raises:
        DataError: not a JSON object.
    """
    try:
        content: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{name}: not JSON ({error}). Expected a head scores or head set file.") from error
    if not isinstance(content, dict):
        raise DataError(f"{name}: holds a JSON {type(content).__name__}. Expected an object with named fields.")
    declared = content.get("format")
    return declared if isinstance(declared, str) else None


def parse_as(model: type[FileModelT], text: str, *, name: str) -> FileModelT:
    """Check a file's text against its schema.

    Raises:
        DataError: names the first offending fields, what was found there and what was expected.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        shown = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']} (got {str(problem['input'])[:40]!r})"
            for problem in problems[:_SHOWN_PROBLEMS]
        )
        more = f" and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(f"{name}: not a valid {model.__name__}: {shown}{more}. Correct or rebuild it.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and move into place, so that no reader ever sees half a file.

    Raises:
        DataError: the folder is missing or can't be written.
    """
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


def leftovers(folder: Path) -> list[Path]:
    """Files that a kill in the middle of :func:`write_atomically` left in a folder or below it."""
    return [item for item in folder.rglob(".*.tmp") if _LEFTOVER.fullmatch(item.name)]


def write_model(path: Path, model: BaseModel) -> None:
    """Save a file model as JSON, packed when the name ends in ``.gz`` (the same bytes every time).

    Raises:
        DataError: the folder is missing or can't be written.
    """
    content = json.dumps(model.model_dump(mode="json"), separators=(",", ":"), allow_nan=False) + "\n"
    data = content.encode("utf-8")
    write_atomically(path, gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
