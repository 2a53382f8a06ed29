"""API keys: who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.files import read_text
from mmrh_retriever.serving.errors import RequestError

MIN_KEY_LENGTH = 16
"""Characters; shorter keys could be guessed."""


@dataclass(eq=False)
class Keys:
    """The keys' hashes, and what each has left of its requests: ``per_minute`` at most, which fill up evenly."""

    hashes: Sequence[bytes] = field(repr=False)
    per_minute: int
    _left: dict[bytes, tuple[float, float]] = field(default_factory=dict, repr=False)  # requests, and when counted

    @classmethod
    def of_file(cls, path: str | Path, per_minute: int) -> Keys:
        """The keys of a file, one a line; empty lines and those that begin with ``#`` are passed over.

        Raises:
            SettingsError: no keys, or one that is too short.
            DataError: the file can't be read.
        """
        lines = [line.strip() for line in read_text(Path(path), what="file of API keys").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise SettingsError(f"{path} holds no API keys. Expected one a line.")
        if any(len(key) < MIN_KEY_LENGTH for key in keys):
            problem = f"{path} holds a key of fewer than {MIN_KEY_LENGTH} characters, which could be guessed"
            raise SettingsError(f"{problem}. Make longer ones, such as with `openssl rand -hex 24`.")
        return cls([_hash(key.encode()) for key in dict.fromkeys(keys)], per_minute)

    def spend(self, authorization: str | None) -> None:
        """Count a request of the key in an ``Authorization`` header.

        Raises:
            RequestError: 401 for no key or an unknown one, 429 where the key has no requests left.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _hash(key.strip(" ").encode("latin-1", "replace"))  # the bytes that were sent
        matches = [known for known in self.hashes if hmac.compare_digest(known, given)]  # all of them, in equal time
        if scheme.lower() != "bearer" or not matches:
            raise RequestError(401, "Expected a known API key: the header Authorization: Bearer KEY.")
        now = time.monotonic()
        left, counted = self._left.get(matches[0], (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - counted) * self.per_minute / 60)
        if left < 1:
            self._left[matches[0]] = left, now
            wait = (1 - left) * 60 / self.per_minute
            raise RequestError(429, f"This key has used its {self.per_minute} requests of a minute.", retry_after=wait)
        self._left[matches[0]] = left - 1, now


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
