"""Everything this package raises on purpose.

    MMRHError
    ├── UnsupportedModelError    a model family, attention backend or processor that we can't drive
    ├── HeadSetError             heads of another model, out of range, not selectable, or none published
    ├── PageError                a page or document that can't be read; ``source`` and ``page`` say which
    ├── QuestionError            an empty or unusable question
    ├── SettingsError            a setting or argument that is out of its range
    ├── ContextOverflowError     more tokens asked than allowed; ``tokens`` and ``allowed`` say how many
    ├── AttentionCaptureError    the attention seam did not see what it must see (or saw NaN)
    └── DataError                a dataset, probe or result file that is malformed or does not fit

Each message says what was got, what was expected and what to do.

Not among them, in the adapters too: ``TypeError`` for an argument of the wrong type or an unknown one; ``ImportError``
where an extra is missing, which it names; ``OSError`` for files that can't be written, and transformers' own where a
model's files are missing; torch's, such as for memory that is used up; and what a framework raises itself, before or
after it calls us.
"""

from __future__ import annotations


class MMRHError(Exception):
    """Base class of every error that this package raises on purpose."""


class UnsupportedModelError(MMRHError):
    """The model's family, attention backend or processor is not one that we can drive."""


class HeadSetError(MMRHError, ValueError):
    """Heads that do not fit the model, or that do not exist."""


class PageError(MMRHError, ValueError):
    """A page or document that can't be read: ``source`` is its path or name, ``page`` a 0-based index, if one."""

    def __init__(self, message: str, *, source: str | None = None, page: int | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.page = page


class QuestionError(MMRHError, ValueError):
    """A question with nothing to score."""


class SettingsError(MMRHError, ValueError):
    """A setting or an argument that is out of its range."""


class ContextOverflowError(MMRHError, ValueError):
    """More tokens asked than the model or the budget allows."""

    def __init__(self, message: str, *, tokens: int, allowed: int) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.allowed = allowed


class AttentionCaptureError(MMRHError, RuntimeError):
    """Attention could not be recorded, or what was recorded is impossible."""


class DataError(MMRHError, ValueError):
    """A dataset, probe or result file that is malformed, or that does not fit what it is used with."""
