"""Pages on their way into windows: written as tokens, seen by the vision tower several at once, or found in a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from mmrh_retriever.encoding.page_files import StoredPage
from mmrh_retriever.encoding.page_store import ModelPages
from mmrh_retriever.errors import ContextOverflowError, PageError
from mmrh_retriever.model.cpu_heap import give_back_memory
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.model.vision import Features, Vision, pixels_of
from mmrh_retriever.types import Candidate

_GIVE_BACK_PIXELS = 1_000_000


@dataclass(slots=True)
class PreparedPage:
    """A page as tokens, with its vision features or its kept keys and values if they are there.

    ``digest`` stands for its content where pages are kept.
    """

    candidate: Candidate
    segment: PromptSegment
    digest: bytes = b""
    features: Features | None = None
    stored: StoredPage | None = None


class PageFeed:
    """Prepares pages in their order, as far ahead as the vision tower takes several at once.

    A page may take ``room`` tokens. ``ahead`` says that pages are encoded independently, so that whether one is kept is
    known from the page alone.
    """

    def __init__(self, prompter: Prompter, vision: Vision, kept: ModelPages | None, room: int, *, ahead: bool) -> None:
        self.prompter = prompter
        self.vision = vision
        self.kept = kept
        self.room = room
        self.ahead = ahead

    def pages(self, candidates: Iterable[Candidate]) -> Iterator[PreparedPage]:
        """The pages, prepared; errors as for :meth:`Engine.windows`."""
        batch: list[PreparedPage] = []
        pixels, since = 0, 0
        for candidate in candidates:
            prepared = self._prepared(candidate)
            # a page kept behind other pages is found once its window is known, and then needs no features
            looked_at = bool(prepared.segment.inputs) and (self.kept is None or self.ahead)
            size = pixels_of(prepared.segment)
            if batch and (not looked_at or pixels + size > self.vision.pixel_budget):
                yield from self._seen(batch)
                batch, pixels = [], 0
            if not looked_at:
                yield prepared
                continue
            batch.append(prepared)
            pixels += size
            if pixels >= self.vision.pixel_budget:  # no other page's pixels are drawn beside these
                yield from self._seen(batch)
                batch, pixels = [], 0
            since += size
            if since >= _GIVE_BACK_PIXELS and self.vision.backbone.device.type == "cpu":
                give_back_memory()
                since = 0
        yield from self._seen(batch)

    def _prepared(self, candidate: Candidate) -> PreparedPage:
        page, number = candidate.page, candidate.number
        digest, stored, image = b"", None, None
        if self.kept is not None:
            # an image file's bytes tell it from others, or a key; other images are drawn for that, then not once more
            known = isinstance(page.image, bytes) or page.pixels_key is not None
            image = None if known else self.prompter.image_shown(page)
            digest = self.prompter.page_digest(page, number, image)
            stored = self.kept.get(digest) if self.ahead else None
        segment = self.prompter.page_segment(page, number, image) if stored is None else stored.segment
        if len(segment) > self.room:
            raise ContextOverflowError(
                f"{page.name} takes {len(segment)} tokens; a window has room for {self.room} (token_budget, or the "
                f"model's context of {self.prompter.backbone.context_described}). Render it smaller (max_pixels), "
                "shorten its text, or raise token_budget up to the model's context.",
                tokens=len(segment),
                allowed=self.room,
            )
        return PreparedPage(candidate, segment, digest, stored=stored)

    def _seen(self, batch: Sequence[PreparedPage]) -> Iterator[PreparedPage]:
        """The same pages, looked at by the vision tower."""
        if not batch:
            return
        try:
            features = self.vision.of([prepared.segment for prepared in batch])
        except torch.OutOfMemoryError as error:
            raise no_memory(batch[0], 0) from error
        for prepared, own in zip(batch, features, strict=True):
            prepared.features = own
            prepared.segment = replace(prepared.segment, inputs={})
            yield prepared


def no_memory(prepared: PreparedPage, before: int) -> PageError:
    """The error for a page that did not fit in memory beside the tokens before it."""
    page = prepared.candidate.page
    return page.error(
        f"{page.name} ({len(prepared.segment)} tokens) does not fit in memory beside the {before} tokens before it. "
        "Lower token_budget or max_pixels."
    )
