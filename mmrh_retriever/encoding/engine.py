"""The engine: pages encoded once in windows, and questions asked of the kept keys.

The pages stand before the question, so under causal attention nothing of them depends on it. A window's pages run
through the decoder once, in passes of a few, no deeper than the deepest selected head. A question's tokens then run
alone on the kept keys, several questions at once under a mask that hides them from one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from mmrh_retriever.encoding.page_feed import PageFeed, PreparedPage, no_memory
from mmrh_retriever.encoding.page_files import StoredPage
from mmrh_retriever.encoding.page_store import ModelPages
from mmrh_retriever.encoding.passes import Passes
from mmrh_retriever.encoding.question_tree import QuestionTree
from mmrh_retriever.encoding.window import Attention, Window
from mmrh_retriever.errors import AttentionCaptureError, UnsupportedModelError
from mmrh_retriever.heads.scores import HeadId
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.model.recording import HeadsByLayer, Recording
from mmrh_retriever.model.vision import Vision
from mmrh_retriever.types import Candidate

TAIL_CELLS = 32 * 1024 * 1024
"""Question tokens times keys in one pass; more questions are split over several passes."""
LEAST_TOKENS = 8
"""Tokens that a question counts for at the least, also where it shares them: what it pays each key is held."""
PASS_TOKENS = 1024
"""Tokens of pages that see one another, up to which several run in one pass (fewer where many keys are kept)."""
UNLIMITED = 1 << 30
"""Token budget of windows of independent pages that only memory limits; pages of a window that only tokens limit."""
TAIL_ROOM = 512
"""Tokens of room that a window keeps for questions when it is filled with pages."""
_FIRST_CAPACITY = 4096


class Engine:
    """Runs one model for one selection of heads, in whose order results are given.

    A window has at most ``window_pages`` pages and ``token_budget`` tokens, and the model's context unless pages are
    independent: then each page is encoded as if it stood alone behind the prompt prefix. It starts at the same position
    and costs the same whatever stands beside it, and a question attends to all pages at once. Pages encoded before are
    found in ``kept``.
    """

    def __init__(
        self,
        prompter: Prompter,
        heads: Sequence[HeadId],
        token_budget: int,
        *,
        independent: bool = False,
        window_pages: int | None = None,
        vision: Vision | None = None,
        kept: ModelPages | None = None,
    ) -> None:
        self.prompter = prompter
        self.backbone = prompter.backbone
        self.heads = HeadsByLayer.of(heads)
        self.independent = independent
        if independent and self.backbone.recurrent_layers:
            raise UnsupportedModelError(
                f"{self.backbone.name} has layers without attention, as {self.backbone.family.name} has: their states "
                "can't be put together from pages encoded independently. Leave independent=True out."
            )
        self.window_pages = UNLIMITED if window_pages is None else window_pages
        self.token_budget = token_budget if independent else min(token_budget, self.backbone.context)
        self.vision = Vision(prompter.backbone) if vision is None else vision
        self.passes = Passes(self.backbone, self.vision, self.heads.deepest)
        self.kept = kept
        self._prefix = prompter.prefix_segment()
        limit = min(self.token_budget, self.backbone.context)
        self._feed = PageFeed(prompter, self.vision, kept, limit - TAIL_ROOM - len(self._prefix), ahead=independent)

    @property
    def room(self) -> int:
        """Tokens of pages that one window takes."""
        return self.token_budget - TAIL_ROOM - len(self._prefix)

    def open_window(self, *, only_asked: bool = False) -> Window:
        """A window that holds the prompt prefix alone.

        One that is ``only_asked`` takes no passes but those over pages and :meth:`ask`; of the deepest layer it keeps
        what is recorded.
        """
        capacity = min(self.token_budget, _FIRST_CAPACITY)
        recorded = (
            [head for head, _ in self.heads.columns[self.heads.deepest]]
            if only_asked and self.backbone.keeps_plain_keys
            else ()
        )
        return self.passes.open_window(self._prefix, capacity=capacity, independent=self.independent, recorded=recorded)

    def windows(self, candidates: Iterable[Candidate], *, count: int = 0) -> Iterator[Window]:
        """Encode pages in their order and give each window once it is full.

        Pages are drawn as far ahead as the vision tower and a pass take several at once, and no further. ``count`` says
        how many come, if known, so that memory can be taken for them at once.
        """
        window: Window | None = None
        waiting: list[PreparedPage] = []
        tokens = seen = 0
        for number, prepared in enumerate(self._feed.pages(candidates), start=1):
            size = len(prepared.segment)
            seen += size
            full = window is not None and len(window.pages) + len(waiting) == self.window_pages
            if window is not None and (full or len(window) + tokens + size > self.token_budget - TAIL_ROOM):
                self._append(window, waiting)
                yield window
                window, waiting, tokens = None, [], 0
            if window is None:
                window = self.open_window(only_asked=True)
            together = tokens + size
            cells = together * (len(window) + together)
            if waiting and (self.independent or together > PASS_TOKENS or cells > TAIL_CELLS):
                self._append(window, waiting)
                waiting, tokens = [], 0
            waiting.append(prepared)
            tokens += size
            left = min(max(0, count - number), self.window_pages - len(window.pages) - len(waiting))
            to_come = 9 * seen * left // (8 * number)  # pages a little longer than those so far
            window.cache.expect(min(len(window) + tokens + to_come, self.token_budget) + TAIL_ROOM)
        if window is not None:
            self._append(window, waiting)
            yield window

    def gather(self, windows: Sequence[Window], indices: Sequence[int]) -> Window:
        """A window of independent pages that other windows hold: their keys are copied, the prefix alone runs.

        The pages are in these windows, and fit in one.
        """
        if not self.independent:
            raise AttentionCaptureError(
                "Only independent pages can be taken out of their windows: these saw the pages before them. Encode "
                "them again, together."
            )
        held = {page.candidate.index: (window, page) for window in windows for page in window.pages}
        gathered = self.open_window(only_asked=True)
        for index in indices:
            window, page = held[index]
            try:
                gathered.add_copy(window, page)
            except torch.OutOfMemoryError as error:
                raise page.candidate.page.error(
                    f"The keys of {page.candidate.page.name} ({len(page.span)} tokens) do not fit in memory beside the "
                    "windows' own. Lower final_round or memory_budget."
                ) from error
        return gathered

    def ask(self, window: Window, questions: Sequence[PromptSegment], *, tokens: bool = False) -> Attention:
        """The attention that questions pay a window's spans; exact as if each were asked alone.

        There is one row of results for each ``scored`` span of each question: one per question, unless it has several.
        """
        masses, token_masses = [], []
        for tree, group in self._groups(window, questions):
            rows = [
                path[span.start : span.stop]
                for path, asked in zip(tree.paths, group, strict=True)
                for span in asked.scored
            ]
            weights = [part for asked in group for part in asked.looking()]
            recording = Recording(self.heads, rows, window.owners(), window.spans, weights=weights, tokens=tokens)
            self.passes.run_tree(window, tree, stop_at=self.heads.deepest, recording=recording)
            masses.append(recording.mass)
            if recording.token_mass is not None:
                token_masses.append(recording.token_mass)
        return Attention(torch.cat(masses), torch.cat(token_masses) if tokens else None)

    def ask_with_null(
        self, window: Window, questions: Sequence[PromptSegment], null: PromptSegment | None, *, tokens: bool = False
    ) -> tuple[Attention, Attention | None]:
        """What questions pay a window, and what the null question pays, which runs with them unless it is remembered.

        Without a null question the second part is ``None``. For the rest see :meth:`ask`.
        """
        known = window.null
        if null is None or (known is not None and (known.tokens is not None or not tokens)):
            return self.ask(window, questions, tokens=tokens), None if null is None else known
        both = self.ask(window, [*questions, null], tokens=tokens)
        asked, known = both.split(sum(len(question.scored) for question in questions))
        window.remember_null(known)
        return asked, known

    def _append(self, window: Window, pages: Sequence[PreparedPage]) -> None:
        """Put pages behind a window: kept ones are taken from the store, neighbours of the others run at once."""
        fresh: list[PreparedPage] = []
        for prepared in pages:
            if self.kept is not None and not self.independent:
                digest = window.extend_chain(prepared.digest)
                prepared = replace(prepared, digest=digest, stored=self.kept.get(digest))
            if prepared.stored is None:
                fresh.append(prepared)
                continue
            self._append_fresh(window, fresh)
            fresh = []
            try:
                window.cache.append(prepared.stored.parts)
            except torch.OutOfMemoryError as error:
                raise no_memory(prepared, len(window)) from error
            window.add_page(prepared.candidate, prepared.segment)
        self._append_fresh(window, fresh)

    def _append_fresh(self, window: Window, pages: Sequence[PreparedPage]) -> None:
        """Run pages behind a window, in one pass, or in several where that does not fit in memory."""
        groups = [pages] if pages else []
        if self.kept is not None and self.backbone.recurrent_layers:  # a page is kept with the states behind it
            groups = [[page] for page in pages]
        while groups:
            group = groups.pop(0)
            try:
                segments = [prepared.segment for prepared in group]
                self.passes.run_pages(window, segments, [prepared.features for prepared in group])
            except torch.OutOfMemoryError as error:
                if len(group) == 1:
                    raise no_memory(group[0], len(window)) from error
                half = len(group) // 2
                groups[:0] = [group[:half], group[half:]]
                continue
            for prepared in group:
                self._keep(window, prepared)
                window.add_page(prepared.candidate, prepared.segment)

    def _keep(self, window: Window, prepared: PreparedPage) -> None:
        """Put the page that a pass has just put behind the window into the store."""
        if self.kept is not None:
            parts = window.cache.part(len(window), len(window) + len(prepared.segment))
            self.kept.put(prepared.digest, StoredPage(replace(prepared.segment, inputs={}), parts))

    def _groups(
        self, window: Window, questions: Sequence[PromptSegment]
    ) -> Iterator[tuple[QuestionTree, list[PromptSegment]]]:
        """Questions that go through one pass: as many as the memory and the context allow."""
        tree = QuestionTree()
        group: list[PromptSegment] = []
        answers = 0
        for question in questions:
            self.passes.check_room(window, len(question))
            own = len(question.scored)
            size = max(len(tree) + tree.new_tokens(question.ids), (answers + own) * LEAST_TOKENS)
            full = size * (len(window) + size) > TAIL_CELLS
            if group and (full or self.backbone.recurrent_layers):
                yield tree, group
                tree, group, answers = QuestionTree(), [], 0
            tree.add(question.ids)
            group.append(question)
            answers += own
        if group:
            yield tree, group
