"""Sphinx roles in docstrings (:class:, :meth:, ...) as code in the documentation site (an extension of griffe)."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc):`(?P<short>~)?(?P<name>[\w.]+)`")


def _plain(found: re.Match[str]) -> str:
    return f"`{found['name'].rpartition('.')[2] if found['short'] else found['name']}`"


class PlainRoles(griffe.Extension):
    """Shows what a role names, and not the role."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of what was found."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_plain, obj.docstring.value)
