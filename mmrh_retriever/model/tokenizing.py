"""Text as token ids: plain text in which no special token is ever read, and the chat template around it."""

from __future__ import annotations

import json
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from tokenizers import Tokenizer

from mmrh_retriever.errors import UnsupportedModelError
from mmrh_retriever.locks import Lock
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.types import TokenSpan

_SLOT, _KEY = "MMRH5SLOT7MMRH", "mmrh5key7mmrh"
_COPIES: WeakKeyDictionary[Any, tuple[object, _Copies]] = WeakKeyDictionary()
_COPIES_LOCK = Lock()


class _Copies:
    """Our copies of a fast tokenizer, none of which is ever changed: threads and the caller don't disturb them.

    Offsets are of whole tokens, blanks in front included. ``template`` reads special tokens. ``opening`` and
    ``running`` don't: they read text at the very beginning of a prompt, and anywhere else in it, where SentencePiece
    tokenizers put no blank in front.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._json = json.loads(tokenizer.backend_tokenizer.to_str())
        self._json |= {"post_processor": None, "truncation": None, "padding": None}

    @cached_property
    def template(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(self._json))

    @cached_property
    def opening(self) -> Tokenizer:
        return _as_text(Tokenizer.from_str(json.dumps(self._json)))

    @cached_property
    def running(self) -> Tokenizer:
        if '"prepend_scheme": "first"' not in json.dumps(self._json["pre_tokenizer"]):
            return self.opening
        never = json.dumps(self._json).replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        return _as_text(Tokenizer.from_str(never))


def _as_text(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that reads special tokens as text."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def _copies(tokenizer: Any) -> _Copies:
    """The copies of a tokenizer, made anew once it has other tokens."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for. Use a fast tokenizer "
            "(one on the tokenizers library, as AutoTokenizer gives)."
        )
    state = sorted((number, repr(token)) for number, token in tokenizer.added_tokens_decoder.items())
    with _COPIES_LOCK:
        known = _COPIES.get(tokenizer)
        if known is None or known[0] != state:
            known = _COPIES[tokenizer] = (state, _Copies(tokenizer))
        return known[1]


class TextTokenizer:
    """Turns text into token ids for one model."""

    def __init__(self, backbone: Backbone, tokenizer: Any) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self._copies = _copies(tokenizer)
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
        return self.joined(text)[0]

    def joined(
        self, *parts: str, after: str = "", before: str = "", opens: bool = False
    ) -> tuple[list[int], list[TokenSpan]]:
        """Ids of plain texts that follow one another, tokenised as one, and the tokens that hold some of each.

        A token that reaches from one part into the next is in both spans. The texts are read ``after`` and ``before``
        others, which are tokenised elsewhere: their tokens are cut off, unless one would reach into the parts. With
        ``opens`` the prompt begins here.
        """
        copy = self._copies.opening if opens else self._copies.running
        # halves of surrogate pairs, as broken files have them, become question marks
        parts = tuple(part.encode("utf-8", "replace").decode("utf-8") for part in parts)
        found = copy.encode("".join((after, *parts, before)), add_special_tokens=False)
        if not self._reserved.isdisjoint(found.ids):
            parts = tuple(self._broken_up(part, found.ids) for part in parts)
            found = copy.encode("".join((after, *parts, before)), add_special_tokens=False)
            self._check_plain(found.ids)
        edges = list(accumulate((len(part) for part in parts), initial=len(after)))
        first = sum(start < edges[0] for start, _ in found.offsets)
        last = len(found) - sum(stop > edges[-1] for _, stop in found.offsets)
        if after and any(stop > edges[0] for _, stop in found.offsets[:first]):
            return self.joined(*parts, before=before)
        if before and any(start < edges[-1] for start, _ in found.offsets[last:]):
            return self.joined(*parts, after=after)
        offsets = found.offsets[first:last]
        return found.ids[first:last], [_tokens_of(offsets, start, stop) for start, stop in pairwise(edges)]

    def chat_template(self) -> tuple[list[int], str, list[int]]:
        """The user's turn in the template: ids before it, plain text that follows these, and ids behind the turn.

        The template is rendered once, around a slot.
        """
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            begin = tokenizer.bos_token_id
            return ([begin] if begin is not None else []), "", []
        contents: list[Any] = [_SLOT, [{"type": "text", "text": _SLOT, _KEY: ""}]]
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
            if rendered.count(_SLOT) == 1 and _KEY not in rendered:  # else it printed the list as it is
                before, _, behind = rendered.partition(_SLOT)
                return (*self._opening(before), self._copies.template.encode(behind, add_special_tokens=False).ids)
        raise UnsupportedModelError(
            "The chat template can't hold a plain user turn: expected the turn's text once in what it renders"
            f"{f', got {problem!r}' if problem else ''}. Set tokenizer.chat_template to a working one, or to None."
        )

    def _opening(self, text: str) -> tuple[list[int], str]:
        """Ids up to the last special token, and the text behind it; all ids where there is none."""
        found = self._copies.template.encode(text, add_special_tokens=False)
        special = [offset for offset, number in enumerate(found.ids) if number in self._reserved]
        if not special:
            return found.ids, ""
        return found.ids[: special[-1] + 1], text[found.offsets[special[-1]][1] :]

    def _broken_up(self, text: str, ids: list[int]) -> str:
        """Text in which this tokenizer reads control tokens, with a zero-width space in each of them."""
        for number in self._reserved.intersection(ids):
            written = str(self.tokenizer.convert_ids_to_tokens(number))
            text = text.replace(written, written[0] + "\u200b" + written[1:])
        return text

    def _check_plain(self, ids: list[int]) -> None:
        if read := self._reserved.intersection(ids):
            raise UnsupportedModelError(
                f"The tokenizer reads control tokens {self.tokenizer.convert_ids_to_tokens(sorted(read))} in plain "
                "text and can't be kept from it. Remove them from the text, or use another tokenizer."
            )

    def _reserved_ids(self) -> frozenset[int]:
        """Ids that must never come out of plain text: the tokenizer's special tokens and the image tokens."""
        config = self.backbone.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = {getattr(config, name, None) for name in (*names, "boi_token_index", "eoi_token_index")}
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        special -= {self.tokenizer.unk_token_id}
        return frozenset(int(number) for number in ids | special if number is not None)


def _tokens_of(offsets: list[tuple[int, int]], start: int, stop: int) -> TokenSpan:
    """The tokens that hold some of the characters from ``start`` up to ``stop``."""
    held = [number for number, (first, last) in enumerate(offsets) if first < stop and last > start and first < last]
    return TokenSpan(held[0], held[-1] + 1) if held else TokenSpan(0, 0)
