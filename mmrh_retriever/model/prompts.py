"""Pages and a question as model inputs, with every token span known because we laid it.

The chat template is rendered once, around a slot; our own text and the pages' text are tokenised as plain
text, so that a special token written on a page is never one; image tokens are laid by the family's layout.
Nothing is ever looked for in the finished prompt.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from mmrh_retriever.errors import PageError, QuestionError, UnsupportedModelError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.image_tokens import LaidImage
from mmrh_retriever.types import Page, PatchGrid, TokenSpan

PageContent = Literal["auto", "image", "text", "both"]
"""What of a page the model sees. ``auto``: its image if it has one and the model takes images, else its text."""

_SLOT = "MMRH5SLOT7MMRH"


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How the prompt is worded, and which of its tokens count.

    The wording is ours after Li et al. 2026 (arXiv 2605.27243): an instruction, one labelled line a page,
    then the question. As in their release a page's span holds the image's begin and end markers and the
    question's span the label in front of it; both move attention sinks in or out.
    """

    content: PageContent = "auto"
    instruction: str = "Find the pages that hold the evidence for the question."
    page_label: str = "Page {number}: "
    question_label: str = "Question: "
    null_question: str = "N/A"
    count_image_markers: bool = True
    count_question_label: bool = True

    def __post_init__(self) -> None:
        if self.content not in get_args(PageContent):
            raise ValueError(f"content is one of {', '.join(get_args(PageContent))}; got {self.content!r}.")
        if not self.null_question.strip():
            raise QuestionError("null_question is empty; expected an uninformative text such as 'N/A'.")
        try:
            self.page_label.format(number=1)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"page_label may hold {{number}} and nothing else, got {self.page_label!r}.") from error


@dataclass(slots=True)
class LaidPiece:
    """A stretch of the prompt as tokens.

    ``positions`` are rotary positions relative to the piece's start, ``(axes, tokens)`` with three axes for
    M-RoPE families and one for the others; the next piece starts ``extent`` further on. ``scored`` are the
    places whose attention counts for the page (or, in a question, that look). ``visual[i]`` is the place of
    the visual token that sees ``grid.boxes[i]``.
    """

    axes: int
    ids: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    extent: int = 0
    scored: list[TokenSpan] = field(default_factory=list)
    visual: tuple[int, ...] = ()
    grid: PatchGrid | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    twosided: tuple[TokenSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def add_text(self, ids: Sequence[int], *, scored: bool = False) -> None:
        """Put text tokens behind what is there."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions.append(torch.arange(len(ids)).expand(self.axes, -1) + self.extent)
        self.extent += len(ids)
        if scored and ids:
            self.scored.append(TokenSpan(start, len(self.ids)))

    def add_image(self, image: LaidImage, *, count_markers: bool) -> None:
        """Put an image's tokens behind what is there."""
        start = len(self.ids)
        self.ids.extend(image.ids)
        own = image.positions if image.positions is not None else torch.arange(len(image.ids))
        self.positions.append(own.expand(self.axes, -1) + self.extent)
        self.extent += image.extent
        span = TokenSpan(0, len(image.ids)) if count_markers else image.inner
        self.scored.append(span.shifted(start))
        self.visual = tuple(place + start for place in image.visual)
        self.grid = image.grid
        self.inputs = image.inputs
        if image.twosided is not None:
            self.twosided = (image.twosided.shifted(start),)

    def all_positions(self) -> Tensor:
        """``(axes, tokens)`` relative positions."""
        return torch.cat(self.positions, dim=1) if self.positions else torch.zeros(self.axes, 0, dtype=torch.long)


_COPIES: WeakKeyDictionary[Any, tuple[Any, threading.Lock]] = WeakKeyDictionary()
_COPIES_LOCK = threading.Lock()


def _own_copy(tokenizer: Any) -> tuple[Any, threading.Lock]:
    """A tokenizer's copy for us and its lock: one a tokenizer.

    Fast tokenizers keep whether special tokens are split as a state of their own, so that two threads (or we and the
    caller) on one tokenizer would read each other's text wrongly.
    """
    with _COPIES_LOCK:
        if tokenizer not in _COPIES:
            copied = copy.deepcopy(tokenizer)
            _COPIES[tokenizer] = _COPIES[copied] = (copied, threading.Lock())
        return _COPIES[tokenizer]


class Prompter:
    """Lays pages and questions for one model.

    Raises:
        UnsupportedModelError: the chat template can't be used.
    """

    def __init__(
        self, backbone: Backbone, tokenizer: Any, image_processor: Any = None, options: PromptOptions | None = None
    ) -> None:
        self.backbone = backbone
        self.tokenizer, self._tokenizer_lock = _own_copy(tokenizer)
        self.image_processor = image_processor
        self.options = options or PromptOptions()
        self._axes = 3 if backbone.family.three_axes else 1
        self._reserved = self._reserved_ids()
        self._before, self._after = self._chat_template()
        self._question_label = self.plain(self.options.question_label)

    def token(self, text: str) -> int:
        """The id of one special token.

        Raises:
            UnsupportedModelError: the tokenizer has no such token.
        """
        found = self.tokenizer.convert_tokens_to_ids(text)
        if found is None or found == self.tokenizer.unk_token_id:
            raise UnsupportedModelError(
                f"The tokenizer has no token {text!r}, which {self.backbone.family.name} needs to lay an image. "
                "Use the tokenizer that ships with the model."
            )
        return int(found)

    def plain(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it are text like any other."""
        return self.plain_each([text])[0]

    def plain_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several plain texts, each as :meth:`plain` gives them; faster than one by one."""
        found = self._encode_plain(texts)
        return [
            ids if self._reserved.isdisjoint(ids) else self._plain_despite(text, ids)
            for text, ids in zip(texts, found, strict=True)
        ]

    def _plain_despite(self, text: str, ids: Sequence[int]) -> list[int]:
        """Ids of text in which this tokenizer reads some control tokens: a zero-width space breaks them up."""
        for number in self._reserved & set(ids):
            written = str(self.tokenizer.convert_ids_to_tokens(number))
            text = text.replace(written, written[0] + "\u200b" + written[1:])
        (broken,) = self._encode_plain([text])
        if not self._reserved.isdisjoint(broken):
            found = self.tokenizer.convert_ids_to_tokens(sorted(self._reserved & set(broken)))
            raise UnsupportedModelError(
                f"The tokenizer reads control tokens {found} in plain text and can't be kept from it. Remove them "
                "from the text, or use a fast tokenizer."
            )
        return broken

    def lay_head(self) -> LaidPiece:
        """What stands before the first page: the template's opening and the instruction."""
        piece = LaidPiece(self._axes)
        piece.add_text([*self._before, *self.plain(self.options.instruction + "\n")])
        return piece

    def image_shown(self, page: Page) -> Image.Image | None:
        """The page's image, decoded, if the model is shown it.

        Raises:
            PageError: the page has nothing that this model can take, or can't be read.
        """
        return page.pixels() if self._content(page)[0] else None

    def lay_page(self, page: Page, number: int, pixels: Image.Image | None = None) -> LaidPiece:
        """One page: its label (not scored), its image and / or text (scored), a newline.

        Args:
            page: the page.
            number: the number on its label.
            pixels: what :meth:`image_shown` gave for it, if it was asked already.

        Raises:
            PageError: the page has nothing that this model can take, or can't be read.
        """
        image, text = self._content(page)
        piece = LaidPiece(self._axes)
        piece.add_text(self.plain(self.options.page_label.format(number=number)))
        if image:
            self._add_image(piece, page, page.pixels() if pixels is None else pixels)
        if text is not None:
            if image:
                piece.add_text(self.plain("\n"))
            piece.add_text(self.plain(text), scored=True)
        piece.add_text(self.plain("\n"))
        return piece

    def page_digest(self, page: Page, number: int, pixels: Image.Image | None = None) -> bytes:
        """A digest of everything that :meth:`lay_page` lays, for as long as model, processor and options are the same.

        The bytes of image files are taken as they are, undecoded; other images by their pixels, which
        :meth:`image_shown` may have given already.

        Raises:
            PageError: the page has nothing that this model can take, or can't be read.
        """
        image, text = self._content(page)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{number} {image} {text!r} ".encode("utf-8", "replace"))
        if image:
            if isinstance(page.image, bytes):
                digest.update(b"file" + page.image)
            else:
                pixels = page.pixels() if pixels is None else pixels
                digest.update(f"{pixels.size}".encode() + pixels.tobytes())
        return digest.digest()

    def lay_text(self, text: str, *, scored: bool = False) -> LaidPiece:
        """A stretch of plain text alone, without label or newline."""
        piece = LaidPiece(self._axes)
        piece.add_text(self.plain(text), scored=scored)
        return piece

    def _add_image(self, piece: LaidPiece, page: Page, pixels: Image.Image) -> None:
        layout: Any = self.backbone.family.layout
        try:
            laid = layout(pixels, self.image_processor, self.backbone.config, self)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise PageError(
                f"The image of {page.name}, {pixels.width} x {pixels.height} pixels, can't be laid out by "
                f"{type(self.image_processor).__name__}: {error!r}. Use the image processor that ships with the model, "
                "or a page of a usual size.",
                source=page.doc_id,
                page=page.index,
            ) from error
        dtype = self.backbone.model.dtype  # what the tower is given; half of it is half to keep and to digest
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in laid.inputs.items()}
        piece.add_image(replace(laid, inputs=inputs), count_markers=self.options.count_image_markers)

    def _content(self, page: Page) -> tuple[bool, str | None]:
        """Whether the page's image is shown, and its text if that is shown."""
        wanted = self.options.content
        takes_images = self.backbone.family.layout is not None and self.image_processor is not None
        text = page.text if page.text is not None and page.text.strip() else None
        image = page.image is not None and takes_images and wanted != "text"
        if wanted == "image" or (wanted == "auto" and image):
            text = None
        if not image and text is None:
            has = " and ".join(
                name for name, there in (("an image", page.image is not None), ("text", bool(page.text))) if there
            )
            takes = "images and text" if takes_images else "text alone"
            raise PageError(
                f"{page.name} has {has}; {self.backbone.family.name} takes {takes}, and content={wanted!r} was asked "
                "for. Give the page what is missing, or change content=.",
                source=page.doc_id,
                page=page.index,
            )
        return image, text

    def lay_question(self, question: str) -> LaidPiece:
        """A question with its label; ``scored`` holds the tokens that look.

        Raises:
            QuestionError: not text, or empty.
        """
        return self.lay_questions([question])[0]

    def lay_questions(self, questions: Sequence[str]) -> list[LaidPiece]:
        """Several questions, each as :meth:`lay_question` lays it."""
        for question in questions:
            if not isinstance(question, str):
                raise QuestionError(f"A question is text, got {type(question).__name__}.")
            if not question.strip():
                raise QuestionError("The question is empty. Ask something: its tokens are what looks for the evidence.")
        label = self._question_label
        first = 0 if self.options.count_question_label else len(label)
        laid = []
        for question, words in zip(questions, self.plain_each([text.strip() for text in questions]), strict=True):
            if not words:
                raise QuestionError(f"The question {question!r} has no tokens in this model's vocabulary.")
            piece = LaidPiece(self._axes)
            piece.add_text([*label, *words])
            piece.scored = [TokenSpan(first, len(piece))]
            laid.append(piece)
        return laid

    def lay_question_parts(self, parts: Sequence[str | Page], *, images_look: bool = True) -> list[LaidPiece]:
        """A question of texts and images, as pieces that follow one another; an image is a piece of its own.

        Args:
            parts: texts, taken as they are, and pages whose image is shown.
            images_look: whether the images' tokens are among those that look for the evidence.

        Raises:
            QuestionError: nothing that looks: no text, and no images or images that don't look.
            PageError: an image that this model can't take or that can't be read.
        """
        label = self._question_label
        pieces = [LaidPiece(self._axes)]
        pieces[0].add_text(label, scored=self.options.count_question_label)
        for part in parts:
            if isinstance(part, str):
                pieces.append(self.lay_text(part, scored=True))
                continue
            image, _ = self._content(part)
            if not image:
                raise PageError(
                    f"{part.name} stands in a question but has no image that {self.backbone.family.name} can take. Put "
                    "text into a question as str.",
                    source=part.doc_id,
                    page=part.index,
                )
            pieces.append(LaidPiece(self._axes))
            self._add_image(pieces[-1], part, part.pixels())
            if not images_look:
                pieces[-1].scored = []
        if not any(piece.scored for piece in pieces[1:]):
            raise QuestionError("The question has no tokens that look for the evidence. Ask something in words.")
        return [piece for piece in pieces if len(piece)]

    def lay_null_question(self) -> LaidPiece:
        """The uninformative question that calibrates the others."""
        return self.lay_question(self.options.null_question)

    def lay_tail(self) -> LaidPiece:
        """What the template puts behind the question before the model answers."""
        piece = LaidPiece(self._axes)
        piece.add_text(self._after)
        return piece

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        # halves of surrogate pairs, as broken files have them, become question marks
        readable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        if not any(readable):
            return [[] for _ in readable]
        with self._tokenizer_lock:
            return list(self.tokenizer(readable, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _reserved_ids(self) -> frozenset[int]:
        """Ids that must never come out of plain text: the tokenizer's special tokens and the image tokens."""
        config = self.backbone.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = {getattr(config, name, None) for name in (*names, "boi_token_index", "eoi_token_index")}
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        special -= {self.tokenizer.unk_token_id}
        return frozenset(int(number) for number in ids | special if number is not None)

    def _chat_template(self) -> tuple[list[int], list[int]]:
        """Ids before and behind the user's turn."""
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            begin = tokenizer.bos_token_id
            return ([begin] if begin is not None else []), []
        parts: list[Any] = [_SLOT, [{"type": "text", "text": _SLOT}]]
        if self.backbone.family.layout is not None:
            parts.reverse()
        problem: Exception | None = None
        for content in parts:
            try:
                rendered = tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            except (TemplateError, TypeError, ValueError, KeyError) as error:
                problem = problem or error
                continue
            if rendered.count(_SLOT) == 1:
                before, _, after = rendered.partition(_SLOT)
                with self._tokenizer_lock:
                    ids = [
                        list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])
                        if text
                        else []
                        for text in (before, after)
                    ]
                return ids[0], ids[1]
        raise UnsupportedModelError(
            "The chat template can't hold a plain user turn: expected the turn's text once in what it renders"
            f"{f', got {problem!r}' if problem else ''}. Set tokenizer.chat_template to a working one, or to None."
        )
