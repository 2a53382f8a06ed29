"""Which messages about a page say that something of it is missing."""

import re

_DAMAGE = re.compile(
    r"\b(syntax|format|library|limit|generic|system) error\b|zlib error|content stream|premature end|"
    r"truncated image|cannot (load|draw|decode|read|open|find)|invalid character|too many errors",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"\bicc\b|profile|font|annotation|outline|link|structure", re.IGNORECASE)


def means_damage(message: str) -> bool:
    """Whether a message of a PDF library says that something of the page is missing."""
    return _DAMAGE.search(message) is not None and _HARMLESS.search(message) is None
