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

from mmrh_retriever.errors import QuestionError, SettingsError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.image_tokens import ImageTokens
from mmrh_retriever.model.tokenizing import TextTokenizer
from mmrh_retriever.pdf.drawn_text import LONGEST, drawn_text
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page, PatchGrid, TokenSpan

MAX_QUESTION_TOKENS = 4096
"""Tokens of a question with its label. Longer ones are no questions, and their attention takes gigabytes."""


@dataclass(slots=True)
class PromptSegment:
    """A stretch of the prompt as tokens.

    ``positions`` are rotary positions relative to the segment's start: ``(axes, tokens)``, with three axes for M-RoPE
    families and one for the others. The next segment starts ``extent`` further on. ``scored`` are the spans whose
    attention counts for the page or, in a question, the spans that look. ``visual[i]`` is the offset of the visual
    token that sees ``grid.boxes[i]``. ``inputs`` is what the vision tower is given. ``weights`` say how much each token
    counts among those that look; all alike if ``None``.
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
    weights: tuple[float, ...] | None = None

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

    def looking(self) -> list[Tensor]:
        """The weights of the tokens of each ``scored`` span, ``(tokens,)`` each."""
        weights = torch.tensor(self.weights or [1.0] * len(self), dtype=torch.float32)
        return [weights[span.start : span.stop] for span in self.scored]


class Prompter:
    """Writes pages and questions as prompt segments, for one model.

    ``answer_ids`` are what the chat template puts behind the question, where the model's answer begins.
    ``token_weights`` is ``(tokens of the vocabulary,)``: how much each counts in a question; all alike if ``None``, and
    in prompters with other options.

    Raises:
        SettingsError: weights of fewer tokens than the tokenizer has.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Any,
        image_processor: Any = None,
        options: PromptOptions | None = None,
        *,
        token_weights: Tensor | None = None,
    ) -> None:
        self.backbone = backbone
        self.text = TextTokenizer(backbone, tokenizer)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.options = options or PromptOptions()
        if token_weights is not None and len(token_weights) < len(tokenizer):
            raise SettingsError(
                f"There are weights of {len(token_weights):,} tokens, and the tokenizer has {len(tokenizer):,}. "
                "Expected one for each: count the tokens of this tokenizer, or use question_weights='uniform'."
            )
        self.token_weights = token_weights
        self._before, self._opening, self.answer_ids = self.text.chat_template()

    def with_options(self, options: PromptOptions) -> Prompter:
        """A prompter for the same model with another wording."""
        return Prompter(self.backbone, self.tokenizer, self.image_processor, options)

    # Pages

    def prefix_segment(self) -> PromptSegment:
        """What stands before the first page: the template's opening and the instruction."""
        text = self._opening + self.options.instruction + self.options.separator
        ids, _ = self.text.joined(text, opens=not self._opening and not self.tokenizer.chat_template)
        segment = self.empty()
        segment.add_text([*self._before, *ids])
        return segment

    def image_shown(self, page: Page) -> Image.Image | None:
        """The page's image, decoded, if the model is shown it; its text drawn, if the model reads images alone."""
        image, text = self._content(page)
        if image:
            return page.pixels()
        if text is None or not self.backbone.reads_images_alone:
            return None
        drawn = drawn_text(text)
        if drawn is None:
            raise page.error(
                f"The text of {page.name} has {len(text)} characters. {self.backbone.name} reads images alone, and a "
                f"text drawn as one may fill {LONGEST:g} pages. Split it into parts, or use a model that reads text."
            )
        return drawn

    def page_segment(self, page: Page, number: int, pixels: Image.Image | None = None) -> PromptSegment:
        """One page: its label (not scored), its image and / or text (scored), the separator.

        A model that reads images alone gets text as an image (:func:`~mmrh_retriever.pdf.drawn_text.drawn_text`).
        ``pixels`` is what :meth:`image_shown` gave for it, if it was asked already.
        """
        image, text = self._content(page)
        pixels = self.image_shown(page) if pixels is None else pixels
        label = self._label(page, number)
        separator, asked = self.options.separator, self.options.question_label
        segment = self.empty()
        if pixels is None:
            self._add_texts(segment, label, text or "", separator, after=separator, before=asked, scored=1)
            return segment
        shown = self._image(page, pixels)
        self._add_texts(segment, label + shown.text_before, after=separator)
        segment.add_image(shown, count_markers=self.options.count_image_markers)
        if not image:  # drawn text has no spots on the page
            segment.visual, segment.grid, text = (), None, None
        if text is None:
            self._add_texts(segment, shown.text_behind + separator, before=asked)
        else:
            self._add_texts(segment, shown.text_behind + "\n", text, separator, before=asked, scored=1)
        return segment

    def page_digest(self, page: Page, number: int, pixels: Image.Image | None = None) -> bytes:
        """A digest of everything that :meth:`page_segment` depends on beside model, processor and options.

        The bytes of image files are taken as they are, undecoded, and the key of an image that has one (see
        :class:`~mmrh_retriever.types.ImageSource`); other images by their pixels.
        """
        image, text = self._content(page)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self._label(page, number)!r} {image} {text!r} ".encode("utf-8", "replace"))
        if image and isinstance(page.image, bytes):
            digest.update(b"file" + page.image)
        elif image and page.pixels_key is not None:
            digest.update(b"key" + page.pixels_key)
        elif image:
            pixels = page.pixels() if pixels is None else pixels
            digest.update(f"{pixels.size}".encode() + pixels.tobytes())
        return digest.digest()

    # Questions

    def question_segment(self, question: str) -> PromptSegment:
        """A question with its label; ``scored`` holds the tokens that look."""
        return self.question_segments([question])[0]

    def question_segments(self, questions: Sequence[str]) -> list[PromptSegment]:
        """Several questions, each as :meth:`question_segment` gives it.

        Raises:
            QuestionError: a question that is no text or empty, or of more than :data:`MAX_QUESTION_TOKENS`.
        """
        for question in questions:
            if not isinstance(question, str):
                raise QuestionError(f"A question is text, got {type(question).__name__}.")
            if not question.strip():
                raise QuestionError("The question is empty. Ask something: its tokens are what looks for the evidence.")
        found = []
        for question in questions:
            asked = question.strip() if self.options.strip_question else question
            segment, own = self._labelled(asked)
            if not own:
                raise QuestionError(f"The question {asked!r} has no tokens in this model's vocabulary.")
            if len(segment) > MAX_QUESTION_TOKENS:
                raise QuestionError(
                    f"The question {asked[:60]!r}... has {len(segment):,} tokens; at most {MAX_QUESTION_TOKENS:,} are "
                    "taken (MAX_QUESTION_TOKENS). Ask for what the pages should hold, not with whole documents."
                )
            if self.token_weights is not None:
                segment.weights = tuple(self.token_weights[segment.ids].tolist())
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
        """A stretch of plain text alone, without label or separator."""
        segment = self.empty()
        segment.add_text(self.text.plain(text), scored=scored)
        return segment

    def opening_segment(self, text: str) -> PromptSegment:
        """The question's label and what the question begins with, as running text behind the last page.

        The label counts if it is to count, without blanks in front of it, as does a token that reaches from it into the
        text.
        """
        return self._labelled(text)[0]

    def _labelled(self, text: str) -> tuple[PromptSegment, TokenSpan]:
        """:meth:`opening_segment`, and the tokens that hold some of the text."""
        label = self.options.question_label
        named = label.lstrip()
        blanks = label.removesuffix(named)
        ids, (_, called, own) = self.text.joined(blanks, named, text, after=self.options.separator)
        segment = self.empty()
        segment.add_text(ids)
        counted = [span for span in (called if self.options.count_question_label else own, own) if span]
        segment.scored = [TokenSpan(counted[0].start, counted[-1].stop)] if counted else []
        return segment, own

    def texts_segment(self, texts: Sequence[str]) -> PromptSegment:
        """Texts that follow one another, tokenised as one, and the separator; each text has a scored span of its own.

        A token that reaches over two texts counts for the first. A text without tokens has an empty span.
        """
        separator = self.options.separator
        ids, spans = self.text.joined(*texts, separator, after=separator, before=self.options.question_label)
        segment = self.empty()
        segment.add_text(ids)
        stop = 0
        for span in spans[:-1]:
            segment.scored.append(TokenSpan(max(stop, span.start), max(stop, span.stop)))
            stop = segment.scored[-1].stop
        return segment

    def image_segment(self, page: Page) -> PromptSegment:
        """A page's image alone, without label or separator."""
        if not self._content(page)[0]:
            raise page.error(
                f"{page.name} has no image that {self.backbone.family.name} can take, where one is to be shown. Put "
                "text into a question as str."
            )
        shown = self._image(page, page.pixels())
        segment = self.empty()
        self._add_texts(segment, shown.text_before)
        segment.add_image(shown, count_markers=self.options.count_image_markers)
        self._add_texts(segment, shown.text_behind)
        return segment

    def _add_texts(
        self, segment: PromptSegment, *parts: str, after: str = "", before: str = "", scored: int | None = None
    ) -> None:
        """Put texts at the end, tokenised as one between two others; the tokens of the part ``scored`` count."""
        ids, spans = self.text.joined(*parts, after=after, before=before)
        start = len(segment)
        segment.add_text(ids)
        if scored is not None and spans[scored]:
            segment.scored.append(spans[scored].shifted(start))

    def _label(self, page: Page, number: int) -> str:
        """What stands in front of a page."""
        names = {"number": number - 1 + self.options.first_number}
        try:
            return self.options.page_label.format_map({**page.metadata, **names})
        except (KeyError, ValueError, TypeError) as error:
            raise page.error(
                f"page_label is {self.options.page_label!r}; {page.name} has the metadata {sorted(page.metadata)} "
                f"({error!r}). Give every page what the label names."
            ) from error

    def _image(self, page: Page, pixels: Image.Image) -> ImageTokens:
        """A page's image as tokens."""
        write: Any = self.backbone.family.writer
        try:
            image: ImageTokens = write(pixels, self.image_processor, self.backbone.config, self.text)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise page.error(
                f"The image of {page.name}, {pixels.width} x {pixels.height} pixels, is refused by "
                f"{type(self.image_processor).__name__}: {error!r}. Use the image processor that ships with the model, "
                "or a page of a usual size."
            ) from error
        dtype = self.backbone.vision_dtype  # what the tower is given; half of it is half to keep and to digest
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in image.inputs.items()}
        return replace(image, inputs=inputs)

    def _content(self, page: Page) -> tuple[bool, str | None]:
        """Whether the page's image is shown, and its text if that is shown."""
        wanted = self.options.content
        takes_images = self.backbone.takes_images and self.image_processor is not None
        text = page.text if page.text is not None and page.text.strip() else None
        image = page.image is not None and takes_images and wanted != "text"
        if wanted == "image" or (wanted == "auto" and image):
            text = None
        if image and text is not None and self.backbone.reads_images_alone:
            raise page.error(
                f"content='both' was asked for; {self.backbone.name} reads images alone. Use content='image' or "
                "'text', which is then drawn as an image."
            )
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
