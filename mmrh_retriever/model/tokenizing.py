"""Text as token ids: plain text in which no special token is ever read, and the chat template around it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from mmrh_retriever.errors import UnsupportedModelError
from mmrh_retriever.model.families import Backbone

_SLOT = "MMRH5SLOT7MMRH"
_COPIES: WeakKeyDictionary[Any, tuple[Any, threading.Lock]] = WeakKeyDictionary()
_COPIES_LOCK = threading.Lock()


def _own_copy(tokenizer: Any) -> tuple[Any, threading.Lock]:
    """Our copy of a tokenizer and its lock, one per tokenizer.

    Fast tokenizers keep whether special tokens are split as a state of their own. Two threads (or we and the caller) on
    one tokenizer would read each other's text wrongly.
    """
    with _COPIES_LOCK:
        if tokenizer not in _COPIES:
            copied = copy.deepcopy(tokenizer)
            _COPIES[tokenizer] = _COPIES[copied] = (copied, threading.Lock())
        return _COPIES[tokenizer]


class TextTokenizer:
    """Turns text into token ids for one model."""

    def __init__(self, backbone: Backbone, tokenizer: Any) -> None:
        self.backbone = backbone
        self.tokenizer, self._lock = _own_copy(tokenizer)
        self._reserved = self._reserved_ids()

    def token(self, text: str) -> int:
        """The id of one special token."""
        found = self.tokenizer.convert_tokens_to_ids(text)
        if found is None or found == self.tokenizer.unk_token_id:
            raise UnsupportedModelError(
                f"The tokenizer has no token {text!r}, which {self.backbone.family.name} needs to write an image. "
                "Use the tokenizer that ships with the model."
            )
        return int(found)

    def plain(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it are text like any other."""
        return self.plain_each([text])[0]

    def plain_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several plain texts, each as :meth:`plain` gives them; faster than one by one."""
        found = self._encode(texts)
        return [
            ids if self._reserved.isdisjoint(ids) else self._broken_up(text, ids)
            for text, ids in zip(texts, found, strict=True)
        ]

    def chat_template(self) -> tuple[list[int], list[int]]:
        """Ids before and behind the user's turn, from the template rendered once, around a slot."""
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            begin = tokenizer.bos_token_id
            return ([begin] if begin is not None else []), []
        contents: list[Any] = [_SLOT, [{"type": "text", "text": _SLOT}]]
        if self.backbone.takes_images:
            contents.reverse()
        problem: Exception | None = None
        for content in contents:
            try:
                rendered = tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            except (TemplateError, TypeError, ValueError, KeyError) as error:
                problem = problem or error
                continue
            if rendered.count(_SLOT) == 1:
                before, _, after = rendered.partition(_SLOT)
                return self._with_special(before), self._with_special(after)
        raise UnsupportedModelError(
            "The chat template can't hold a plain user turn: expected the turn's text once in what it renders"
            f"{f', got {problem!r}' if problem else ''}. Set tokenizer.chat_template to a working one, or to None."
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # halves of surrogate pairs, as broken files have them, become question marks
        readable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        if not any(readable):
            return [[] for _ in readable]
        with self._lock:
            return list(self.tokenizer(readable, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _with_special(self, text: str) -> list[int]:
        if not text:
            return []
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def _broken_up(self, text: str, ids: Sequence[int]) -> list[int]:
        """Ids of text in which this tokenizer reads control tokens: a zero-width space breaks them up."""
        for number in self._reserved & set(ids):
            written = str(self.tokenizer.convert_ids_to_tokens(number))
            text = text.replace(written, written[0] + "\u200b" + written[1:])
        (broken,) = self._encode([text])
        if not self._reserved.isdisjoint(broken):
            found = self.tokenizer.convert_ids_to_tokens(sorted(self._reserved & set(broken)))
            raise UnsupportedModelError(
                f"The tokenizer reads control tokens {found} in plain text and can't be kept from it. Remove them "
                "from the text, or use a fast tokenizer."
            )
        return broken

    def _reserved_ids(self) -> frozenset[int]:
        """Ids that must never come out of plain text: the tokenizer's special tokens and the image tokens."""
        config = self.backbone.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = {getattr(config, name, None) for name in (*names, "boi_token_index", "eoi_token_index")}
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        special -= {self.tokenizer.unk_token_id}
        return frozenset(int(number) for number in ids | special if number is not None)
