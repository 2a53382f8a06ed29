"""Pages and a question as model inputs. Every token span is known, because we write the prompt ourselves.

The chat template is rendered once, around a slot. Our own text and the pages' text are tokenised as plain text, so
that a special token written on a page is never one. Image tokens come from the family's writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrh_retriever.errors import QuestionError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.image_tokens import ImageTokens
from mmrh_retriever.model.tokenizing import TextTokenizer
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page, PatchGrid, TokenSpan


@dataclass(slots=True)
class PromptSegment:
    """A stretch of the prompt as tokens.

    ``positions`` are rotary positions relative to the segment's start: ``(axes, tokens)``, with three axes for M-RoPE
    families and one for the others. The next segment starts ``extent`` further on. ``scored`` are the spans whose
    attention counts for the page or, in a question, the spans that look. ``visual[i]`` is the offset of the visual
    token that sees ``grid.boxes[i]``. ``inputs`` is what the vision tower is given.
    """

    axes: int
    ids: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    extent: int = 0
    scored: list[TokenSpan] = field(default_factory=list)
    visual: tuple[int, ...] = ()
    grid: PatchGrid | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    bidirectional: tuple[TokenSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def add_text(self, ids: Sequence[int], *, scored: bool = False) -> None:
        """Put text tokens at the end."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions.append(torch.arange(len(ids)).expand(self.axes, -1) + self.extent)
        self.extent += len(ids)
        if scored and ids:
            self.scored.append(TokenSpan(start, len(self.ids)))

    def add_image(self, image: ImageTokens, *, count_markers: bool) -> None:
        """Put an image's tokens at the end."""
        start = len(self.ids)
        self.ids.extend(image.ids)
        own = image.positions if image.positions is not None else torch.arange(len(image.ids))
        self.positions.append(own.expand(self.axes, -1) + self.extent)
        self.extent += image.extent
        span = TokenSpan(0, len(image.ids)) if count_markers else image.inner
        self.scored.append(span.shifted(start))
        self.visual = tuple(offset + start for offset in image.visual)
        self.grid = image.grid
        self.inputs = image.inputs
        if image.bidirectional is not None:
            self.bidirectional = (image.bidirectional.shifted(start),)

    def all_positions(self) -> Tensor:
        """``(axes, tokens)`` relative positions."""
        return torch.cat(self.positions, dim=1) if self.positions else torch.zeros(self.axes, 0, dtype=torch.long)


class Prompter:
    """Writes pages and questions as prompt segments, for one model.

    ``answer_ids`` are what the chat template puts behind the question, where the model's answer begins.
    """

    def __init__(
        self, backbone: Backbone, tokenizer: Any, image_processor: Any = None, options: PromptOptions | None = None
    ) -> None:
        self.backbone = backbone
        self.text = TextTokenizer(backbone, tokenizer)
        self.tokenizer = self.text.tokenizer
        self.image_processor = image_processor
        self.options = options or PromptOptions()
        self._before, self.answer_ids = self.text.chat_template()
        self._question_label = self.text.plain(self.options.question_label)

    def with_options(self, options: PromptOptions) -> Prompter:
        """A prompter for the same model with another wording."""
        return Prompter(self.backbone, self.tokenizer, self.image_processor, options)

    # Pages

    def prefix_segment(self) -> PromptSegment:
        """What stands before the first page: the template's opening and the instruction."""
        segment = self.empty()
        segment.add_text([*self._before, *self.text.plain(self.options.instruction + "\n")])
        return segment

    def image_shown(self, page: Page) -> Image.Image | None:
        """The page's image, decoded, if the model is shown it."""
        return page.pixels() if self._content(page)[0] else None

    def page_segment(self, page: Page, number: int, pixels: Image.Image | None = None) -> PromptSegment:
        """One page: its label (not scored), its image and / or text (scored), a newline.

        ``pixels`` is what :meth:`image_shown` gave for it, if it was asked already.
        """
        image, text = self._content(page)
        segment = self.text_segment(self.options.page_label.format(number=number))
        if image:
            self._add_image(segment, page, page.pixels() if pixels is None else pixels)
        if text is not None:
            if image:
                segment.add_text(self.text.plain("\n"))
            segment.add_text(self.text.plain(text), scored=True)
        segment.add_text(self.text.plain("\n"))
        return segment

    def page_digest(self, page: Page, number: int, pixels: Image.Image | None = None) -> bytes:
        """A digest of everything that :meth:`page_segment` depends on beside model, processor and options.

        The bytes of image files are taken as they are, undecoded; other images by their pixels.
        """
        image, text = self._content(page)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{number} {image} {text!r} ".encode("utf-8", "replace"))
        if image and isinstance(page.image, bytes):
            digest.update(b"file" + page.image)
        elif image:
            pixels = page.pixels() if pixels is None else pixels
            digest.update(f"{pixels.size}".encode() + pixels.tobytes())
        return digest.digest()

    # Questions

    def question_segment(self, question: str) -> PromptSegment:
        """A question with its label; ``scored`` holds the tokens that look."""
        return self.question_segments([question])[0]

    def question_segments(self, questions: Sequence[str]) -> list[PromptSegment]:
        """Several questions, each as :meth:`question_segment` gives it."""
        for question in questions:
            if not isinstance(question, str):
                raise QuestionError(f"A question is text, got {type(question).__name__}.")
            if not question.strip():
                raise QuestionError("The question is empty. Ask something: its tokens are what looks for the evidence.")
        label = self._question_label
        first = 0 if self.options.count_question_label else len(label)
        found = []
        words = self.text.plain_each([question.strip() for question in questions])
        for question, ids in zip(questions, words, strict=True):
            if not ids:
                raise QuestionError(f"The question {question!r} has no tokens in this model's vocabulary.")
            segment = self.empty()
            segment.add_text([*label, *ids])
            segment.scored = [TokenSpan(first, len(segment))]
            found.append(segment)
        return found

    def null_segment(self) -> PromptSegment:
        """The uninformative question that calibrates the others."""
        return self.question_segment(self.options.null_question)

    # Anything else

    def empty(self) -> PromptSegment:
        """A segment without tokens."""
        return PromptSegment(self.backbone.axes)

    def text_segment(self, text: str, *, scored: bool = False) -> PromptSegment:
        """A stretch of plain text alone, without label or newline."""
        segment = self.empty()
        segment.add_text(self.text.plain(text), scored=scored)
        return segment

    def image_segment(self, page: Page) -> PromptSegment:
        """A page's image alone, without label or newline."""
        if not self._content(page)[0]:
            raise page.error(
                f"{page.name} has no image that {self.backbone.family.name} can take, where one is to be shown. Put "
                "text into a question as str."
            )
        segment = self.empty()
        self._add_image(segment, page, page.pixels())
        return segment

    def _add_image(self, segment: PromptSegment, page: Page, pixels: Image.Image) -> None:
        write: Any = self.backbone.family.writer
        try:
            image = write(pixels, self.image_processor, self.backbone.config, self.text)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise page.error(
                f"The image of {page.name}, {pixels.width} x {pixels.height} pixels, is refused by "
                f"{type(self.image_processor).__name__}: {error!r}. Use the image processor that ships with the model, "
                "or a page of a usual size."
            ) from error
        dtype = self.backbone.vision_dtype  # what the tower is given; half of it is half to keep and to digest
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in image.inputs.items()}
        segment.add_image(replace(image, inputs=inputs), count_markers=self.options.count_image_markers)

    def _content(self, page: Page) -> tuple[bool, str | None]:
        """Whether the page's image is shown, and its text if that is shown."""
        wanted = self.options.content
        takes_images = self.backbone.takes_images and self.image_processor is not None
        text = page.text if page.text is not None and page.text.strip() else None
        image = page.image is not None and takes_images and wanted != "text"
        if wanted == "image" or (wanted == "auto" and image):
            text = None
        if not image and text is None:
            has = " and ".join(
                name for name, there in (("an image", page.image is not None), ("text", bool(page.text))) if there
            )
            takes = "images and text" if takes_images else "text alone"
            raise page.error(
                f"{page.name} has {has}; {self.backbone.family.name} takes {takes}, and content={wanted!r} was asked "
                "for. Give the page what is missing, or change content=."
            )
        return image, text
