"""Encode pages once, then ask: windows of pages whose keys and values are kept, and tails of questions.

The pages stand before the question, so under causal attention nothing of them depends on it. A window's pages
run through the decoder once, in passes of a few, and no deeper than the deepest selected head; a question's tokens
then run alone on the kept keys, several questions at once under a mask that hides them from one another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.encoding.page_feed import LaidPage, PageFeed, no_memory
from mmrh_retriever.encoding.page_store import ModelPages, StoredPage
from mmrh_retriever.encoding.question_tree import PrefixTree
from mmrh_retriever.errors import AttentionCaptureError, ContextOverflowError, PageError
from mmrh_retriever.heads.sets import HeadId
from mmrh_retriever.model.attention_seam import PassPlan
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.kv_cache import PageCache
from mmrh_retriever.model.prompts import LaidPiece, Prompter
from mmrh_retriever.model.recording import HeadsByLayer, Recording
from mmrh_retriever.model.vision import Features, Vision
from mmrh_retriever.types import Page, PatchGrid, TokenSpan

TAIL_CELLS = 32 * 1024 * 1024
"""Question tokens times keys in one tail pass; more questions are split over several passes."""
LEAST_TOKENS = 8
"""Tokens that a question counts for at the least, also where it shares them: what it pays each key is held."""
PASS_TOKENS = 1024
"""Tokens of pages that see one another, up to which several run in one pass (fewer where many keys are kept)."""
UNLIMITED = 1 << 30
"""Token budget of windows of independent pages that only memory limits."""
TAIL_ROOM = 512
"""Tokens of room that a window keeps for questions when it is filled with pages."""


@dataclass(frozen=True, slots=True)
class LaidPlace:
    """Where one page stands in its window: all its tokens, the visual ones, and the rotary positions it takes."""

    span: TokenSpan
    visual: tuple[int, ...]
    grid: PatchGrid | None
    extent: int


@dataclass(slots=True)
class Window:
    """Pages that were encoded together.

    ``members`` are the pages' places in the caller's list and ``places`` where each stands; ``owner`` gives for each
    token the place in ``members`` of the page that it counts for, or -1. ``standing`` says where each token stands in
    its own context (all before it, or the head and its page alone); the question stands at ``next_standing``, at the
    rotary position ``next_position``. ``chain`` is a digest of the pages so far.
    """

    members: list[int] = field(default_factory=list)
    places: list[LaidPlace] = field(default_factory=list)
    cache: PageCache | None = None
    next_standing: int = 0
    next_position: int = 0
    chain: bytes = b""
    _length: int = 0
    _owners: list[Tensor] = field(default_factory=list)
    _standings: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return self._length

    @property
    def owner(self) -> Tensor:
        """``(tokens,)`` long."""
        return _joined(self._owners)

    @property
    def standing(self) -> Tensor:
        """``(tokens,)`` long."""
        return _joined(self._standings)

    def add_tokens(self, owner: Tensor, standing: Tensor) -> None:
        """Note whom the next tokens count for and where they stand."""
        self._owners.append(owner)
        self._standings.append(standing)
        self._length += owner.numel()


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts that follow each other as one, joined when they are read and not with every part that is added."""
    if len(parts) != 1:
        parts[:] = [torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)]
    return parts[0]


@dataclass(frozen=True, slots=True)
class Attention:
    """What questions paid a window.

    ``mass`` is ``(questions, heads, pages)``; ``tokens`` is ``(questions, window tokens)``, averaged over the
    heads, or ``None`` if it wasn't asked for.
    """

    mass: Tensor
    tokens: Tensor | None


class Engine:
    """Runs one model for one selection of heads.

    Args:
        prompter: lays pages and questions for the model.
        heads: the selected heads, in the order in which their results are given.
        token_budget: the longest window, in tokens; at most the model's context, unless pages are independent.
        independent: encode each page as if it stood alone behind the head of the prompt. Every page then starts at the
            same position, costs the same whatever stands beside it, and a question attends to all of them at once.
        vision: the model's vision tower with its memory; one of our own if ``None``.
        kept: where pages encoded before are found; nowhere if ``None``.
    """

    def __init__(
        self,
        prompter: Prompter,
        heads: Sequence[HeadId],
        token_budget: int,
        *,
        independent: bool = False,
        vision: Vision | None = None,
        kept: ModelPages | None = None,
    ) -> None:
        self.prompter = prompter
        self.backbone: Backbone = prompter.backbone
        self.heads = HeadsByLayer.of(heads)
        self.independent = independent
        self.token_budget = token_budget if independent else min(token_budget, self.backbone.context)
        self.vision = Vision(prompter.backbone) if vision is None else vision
        self.kept = kept
        self._head = prompter.lay_head()
        limit = min(self.token_budget, self.backbone.context)
        self._feed = PageFeed(prompter, self.vision, kept, limit - TAIL_ROOM - len(self._head), ahead=independent)

    @property
    def room(self) -> int:
        """Tokens of pages that one window takes."""
        return self.token_budget - TAIL_ROOM - len(self._head)

    def windows(self, pages: Iterable[tuple[int, Page]], *, numbers: Sequence[int], count: int = 0) -> Iterator[Window]:
        """Encode pages in their order and give each window once it is full.

        Pages are rendered and laid as far ahead as the vision tower and a pass take several at once, and no further.

        Args:
            pages: places in the caller's list and the pages.
            numbers: the label's number of each place.
            count: how many pages come, if known, so that room can be made for them at once.

        Raises:
            PageError: a page that can't be read.
            ContextOverflowError: a single page longer than a window.
        """
        window: Window | None = None
        waiting: list[LaidPage] = []
        tokens = seen = 0
        for number, laid in enumerate(self._feed.pages(pages, numbers), start=1):
            size = len(laid.piece)
            seen += size
            if window is not None and len(window) + tokens + size > self.token_budget - TAIL_ROOM:
                self._append(window, waiting)
                yield window
                window, waiting, tokens = None, [], 0
            if window is None:
                window = self._open_window()
            together = tokens + size
            cells = together * (len(window) + together)
            if waiting and (self.independent or together > PASS_TOKENS or cells > TAIL_CELLS):
                self._append(window, waiting)
                waiting, tokens = [], 0
            waiting.append(laid)
            tokens += size
            if window.cache is not None:
                to_come = 9 * seen * max(0, count - number) // (8 * number)  # pages a little longer than those so far
                window.cache.expect(min(len(window) + tokens + to_come, self.token_budget) + TAIL_ROOM)
        if window is not None:
            self._append(window, waiting)
            yield window

    def gather(self, windows: Sequence[Window], places: Sequence[int]) -> Window:
        """A window of independent pages that other windows hold: their keys are copied, the prompt's head alone runs.

        Args:
            windows: windows that :meth:`windows` gave.
            places: the pages, by their places in the caller's list.

        Raises:
            ContextOverflowError: a page that none of the windows still holds, or more tokens than a window takes.
            PageError: too little memory for another window.
            AttentionCaptureError: pages are not encoded independently.
        """
        if not self.independent:
            raise AttentionCaptureError(
                "Only independent pages can be taken out of their windows: these saw the pages before them. Encode "
                "them again, together."
            )
        held = {
            place: (window, laid)
            for window in windows
            for place, laid in zip(window.members, window.places, strict=True)
        }
        gathered = self._open_window()
        for place in places:
            window, laid = held.get(place, (None, None))
            if window is None or laid is None or window.cache is None or gathered.cache is None:
                raise ContextOverflowError(
                    f"Page {place} is in none of the {len(windows)} windows, or its window was dropped from memory; "
                    "encode it again.",
                    tokens=0,
                    allowed=0,
                )
            asked, room = len(gathered) + len(laid.span), self.token_budget - TAIL_ROOM
            if asked > room:
                raise ContextOverflowError(
                    f"Page {place} ends at {asked} tokens; a window takes {room}. Gather fewer pages.",
                    tokens=asked,
                    allowed=room,
                )
            try:
                gathered.cache.append_from(window.cache, laid.span.start, laid.span.stop)
            except torch.OutOfMemoryError as error:
                raise PageError(
                    f"The keys of page {place} ({len(laid.span)} tokens) do not fit in memory beside the windows' own. "
                    "Lower final_heat or memory_budget."
                ) from error
            counts = window.owner[laid.span.start : laid.span.stop] >= 0
            visual = tuple(token - laid.span.start for token in laid.visual)
            self._note(gathered, place, counts, visual, laid.grid, laid.extent)
        return gathered

    def encode(self, pieces: Iterable[LaidPiece]) -> Window:
        """Encode pieces that are laid already as one window, behind the prompt's head.

        Each ``scored`` span of each piece is a member of its own, so that parts of a piece can be told apart.

        Raises:
            ContextOverflowError: more tokens than a window holds.
        """
        window = self._open_window()
        for place, piece in enumerate(pieces):
            asked = len(window) + len(piece)
            if asked > self.token_budget:
                raise ContextOverflowError(
                    f"The context takes {asked} tokens or more; a window holds {self.token_budget}. Shorten it, or "
                    f"raise token_budget up to the model's {self.backbone.context}.",
                    tokens=asked,
                    allowed=self.token_budget,
                )
            self._run_pieces(window, [piece])
            self._take_in(window, piece, place)
            added = len(window) - len(piece)
            for number, span in enumerate(piece.scored):
                window.owner[added + span.start : added + span.stop] = len(window.members) - 1 + number
            window.members[-1:] = [place] * len(piece.scored)
        return window

    def extend(self, window: Window, pieces: Iterable[LaidPiece]) -> None:
        """Put pieces behind everything that a window holds, for good: they see all of it and count for no member.

        Raises:
            ContextOverflowError: more tokens than the model's context, or a window that was dropped.
        """
        for piece in pieces:
            self._check_room(window, len(window), len(piece))
            plan = self._tail_plan(window, len(window), len(piece), twosided=piece.twosided, stop_at=self.heads.deepest)
            self._run(
                window.cache,
                piece.ids,
                piece.all_positions() + window.next_position,
                plan,
                inputs=self.vision.model_inputs([piece]),
            )
            nobody = torch.full((len(piece),), -1, dtype=torch.long)
            window.add_tokens(nobody, torch.arange(len(piece)) + window.next_standing)
            window.next_standing += len(piece)
            window.next_position += piece.extent

    def hidden_states(self, window: Window, texts: Sequence[LaidPiece]) -> list[Tensor]:
        """The decoder's last hidden states, ``(tokens, width)`` each, of texts that each stand alone behind a window.

        The engine's heads must reach the last layer, so that the window keeps every layer's keys.

        Raises:
            ContextOverflowError: a text too long for what is left of the context.
            AttentionCaptureError: the engine ends before the last layer.
        """
        if self.heads.deepest != self.backbone.layers - 1:
            raise AttentionCaptureError(
                f"Hidden states need all {self.backbone.layers} layers; this engine ends at layer "
                f"{self.heads.deepest}. Make it with heads of the last layer."
            )
        tree = PrefixTree()
        for text in texts:
            self._check_room(window, len(window), len(text))
            tree.add(text.ids)
        with self.backbone.seam.lock:
            try:
                states = self._run_tree(window, tree)
            finally:
                if window.cache is not None:
                    window.cache.crop_to(len(window))
        if states is None:
            raise AttentionCaptureError("The decoder gave no hidden states; expected last_hidden_state.")
        return [states[0, list(path)] for path in tree.paths]

    def ask_in_pieces(self, window: Window, question: Sequence[LaidPiece]) -> Attention:
        """The attention that one question pays a window, its pieces (texts and images) run one after the other.

        Raises:
            ContextOverflowError: a question too long for what is left of the context.
            AttentionCaptureError: NaN, no tokens that look, or a layer that did not report.
        """
        if window.cache is None:
            raise ContextOverflowError("The window was dropped from memory; encode it again.", tokens=0, allowed=0)
        looking = sum(len(span) for piece in question for span in piece.scored)
        mass = torch.zeros(1, self.heads.count, len(window.members))
        past, position = len(window), window.next_position
        with self.backbone.seam.lock:
            try:
                for piece in question:
                    self._check_room(window, past, len(piece))
                    rows = [range(span.start, span.stop) for span in piece.scored]
                    recording = Recording(self.heads, rows, window.owner, len(window.members)) if rows else None
                    plan = self._tail_plan(
                        window, past, len(piece), twosided=piece.twosided, stop_at=self.heads.deepest
                    )
                    places = piece.all_positions() + position
                    inputs = self.vision.model_inputs([piece])
                    self._run(window.cache, piece.ids, places, plan, recording=recording, inputs=inputs)
                    if recording is not None:
                        share = torch.tensor([len(span) / looking for span in rows])  # (spans,)
                        mass[0] += torch.einsum("s,shm->hm", share, recording.mass)
                    past, position = past + len(piece), position + piece.extent
            finally:
                window.cache.crop_to(len(window))
        return Attention(mass, None)

    def ask(self, window: Window, questions: Sequence[LaidPiece], *, tokens: bool = False) -> Attention:
        """The attention that questions pay a window's pages; exact as if each were asked alone.

        There is one row of results for each ``scored`` span of each question: one a question, unless it was laid with
        several.

        Raises:
            ContextOverflowError: a question too long for what is left of the context.
            AttentionCaptureError: NaN, or a layer that did not report.
        """
        if window.cache is None:
            raise ContextOverflowError("The window was dropped from memory; encode it again.", tokens=0, allowed=0)
        masses, token_masses = [], []
        for tree, group in self._groups(window, questions):
            rows = [
                path[span.start : span.stop]
                for path, asked in zip(tree.paths, group, strict=True)
                for span in asked.scored
            ]
            recording = Recording(self.heads, rows, window.owner, len(window.members), tokens=tokens)
            with self.backbone.seam.lock:
                try:
                    self._run_tree(window, tree, stop_at=self.heads.deepest, recording=recording)
                finally:
                    window.cache.crop_to(len(window))
            masses.append(recording.mass)
            if recording.token_mass is not None:
                token_masses.append(recording.token_mass)
        return Attention(torch.cat(masses), torch.cat(token_masses) if tokens else None)

    def _open_window(self) -> Window:
        window = Window(cache=PageCache(self.heads.deepest + 1, capacity=min(self.token_budget, 4096)))
        self._run_pieces(window, [self._head])
        window.add_tokens(torch.full((len(self._head),), -1, dtype=torch.long), torch.arange(len(self._head)))
        window.next_position = self._head.extent
        window.next_standing = len(self._head)
        return window

    def _append(self, window: Window, pages: Sequence[LaidPage]) -> None:
        """Put pages behind a window: kept ones are taken from the store, neighbours of the others run at once."""
        fresh: list[LaidPage] = []
        for laid in pages:
            if self.kept is not None and not self.independent:
                window.chain = hashlib.blake2b(window.chain + laid.digest, digest_size=16).digest()
                laid = replace(laid, digest=window.chain, stored=self.kept.get(window.chain))
            if laid.stored is None or window.cache is None:
                fresh.append(laid)
                continue
            self._append_fresh(window, fresh)
            fresh = []
            try:
                window.cache.append(laid.stored.keys, laid.stored.values)
            except torch.OutOfMemoryError as error:
                raise no_memory(laid, len(window)) from error
            self._take_in(window, laid.piece, laid.place)
        self._append_fresh(window, fresh)

    def _append_fresh(self, window: Window, pages: Sequence[LaidPage]) -> None:
        """Run pages behind a window, in one pass, or in several where that does not fit in memory."""
        groups = [pages] if pages else []
        while groups:
            group = groups.pop(0)
            try:
                self._run_pieces(window, [laid.piece for laid in group], [laid.features for laid in group])
            except torch.OutOfMemoryError as error:
                if len(group) == 1:
                    raise no_memory(group[0], len(window)) from error
                half = len(group) // 2
                groups[:0] = [group[:half], group[half:]]
                continue
            for laid in group:
                self._keep(window, laid.piece, laid.digest)
                self._take_in(window, laid.piece, laid.place)

    def _keep(self, window: Window, piece: LaidPiece, digest: bytes) -> None:
        """Put the page that a pass has just put behind the window into the store."""
        if self.kept is not None and window.cache is not None:
            keys, values = window.cache.part(len(window), len(window) + len(piece))
            self.kept.put(digest, StoredPage(replace(piece, inputs={}), keys, values))

    def _take_in(self, window: Window, piece: LaidPiece, place: int) -> None:
        """Note whom the tokens count for that a pass has just put behind the window."""
        counts = torch.zeros(len(piece), dtype=torch.bool)
        for span in piece.scored:
            counts[span.start : span.stop] = True
        self._note(window, place, counts, piece.visual, piece.grid, piece.extent)

    def _note(
        self, window: Window, place: int, counts: Tensor, visual: Sequence[int], grid: PatchGrid | None, extent: int
    ) -> None:
        """One more member: of its tokens, ``counts`` says which are scored and ``visual`` which ones are visual."""
        span = TokenSpan(len(window), len(window) + len(counts))
        start, position = self._next_page(window)
        window.places.append(LaidPlace(span, tuple(token + span.start for token in visual), grid, extent))
        window.add_tokens(torch.where(counts, len(window.members), -1), torch.arange(len(span)) + start)
        window.members.append(place)
        window.next_standing = max(window.next_standing, start + len(span))
        window.next_position = max(window.next_position, position + extent)

    def _next_page(self, window: Window) -> tuple[int, int]:
        """Where the next page stands in its context, and its rotary position."""
        if self.independent and len(window):
            return len(self._head), self._head.extent
        return len(window), window.next_position

    def _tail_plan(self, window: Window, past: int, length: int, **options: Any) -> PassPlan:
        """A pass behind the window's pages, of which ``past - len(window)`` tokens have run already."""
        behind = torch.arange(past - len(window)) + window.next_standing
        places = torch.cat([window.standing, behind])
        return PassPlan(past, length, places=places, start=window.next_standing + len(behind), **options)

    def _run_pieces(
        self, window: Window, pieces: Sequence[LaidPiece], features: Sequence[Features | None] = ()
    ) -> None:
        """One pass over pieces that see the window and those before them; independent ones come one at a time."""
        start, position = self._next_page(window)
        positions: list[Tensor] = []
        twosided: list[TokenSpan] = []
        length = 0
        for piece in pieces:
            positions.append(piece.all_positions() + position)
            twosided += [span.shifted(length) for span in piece.twosided]
            length += len(piece)
            position += piece.extent
        plan = PassPlan(
            len(window), length, twosided=tuple(twosided), stop_at=self.heads.deepest, visible=start, start=start
        )
        ids = [number for piece in pieces for number in piece.ids]
        inputs = self.vision.model_inputs(pieces, features)
        try:
            self._run(window.cache, ids, torch.cat(positions, dim=1), plan, inputs=inputs)
        except BaseException:
            if window.cache is not None:
                window.cache.crop_to(len(window))
            raise

    def _run_tree(
        self, window: Window, tree: PrefixTree, *, stop_at: int | None = None, recording: Recording | None = None
    ) -> Tensor | None:
        """One pass over texts that each stand alone behind the window."""
        plan = self._tail_plan(window, len(window), len(tree), paths=tuple(tree.paths), stop_at=stop_at)
        axes = 3 if self.backbone.family.three_axes else 1
        positions = torch.tensor(tree.depths).expand(axes, -1) + window.next_position
        return self._run(window.cache, tree.ids, positions, plan, recording=recording)

    def _run(
        self,
        cache: PageCache | None,
        ids: Sequence[int],
        positions: Tensor,
        plan: PassPlan,
        *,
        recording: Recording | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Tensor | None:
        """One pass; gives the last hidden states, ``(1, tokens, width)``, if it went through all layers."""
        backbone = self.backbone
        device = backbone.device
        dtype = backbone.model.dtype
        # A four-dimensional mask is handed through untouched; the plan lays the real one in each layer.
        mask = torch.zeros(1, 1, 1, 1, device=device, dtype=dtype)
        order = positions.unsqueeze(1) if backbone.family.three_axes else positions
        with torch.inference_mode(), backbone.seam.running(plan, recording):
            output = backbone.base(
                input_ids=torch.tensor([list(ids)], device=device),
                position_ids=order.to(device),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **(inputs or {}),
            )
            return output.last_hidden_state  # type: ignore[no-any-return]
        return None  # the plan ended the pass

    def _groups(self, window: Window, questions: Sequence[LaidPiece]) -> Iterator[tuple[PrefixTree, list[LaidPiece]]]:
        """Questions that go through one tail pass: as many as the memory and the context allow."""
        tree = PrefixTree()
        group: list[LaidPiece] = []
        answers = 0
        for question in questions:
            self._check_room(window, len(window), len(question))
            own = len(question.scored)
            size = max(len(tree) + tree.fresh(question.ids), (answers + own) * LEAST_TOKENS)
            if group and size * (len(window) + size) > TAIL_CELLS:
                yield tree, group
                tree, group, answers = PrefixTree(), [], 0
            tree.add(question.ids)
            group.append(question)
            answers += own
        if group:
            yield tree, group

    def _check_room(self, window: Window, past: int, asked: int) -> None:
        """Whether ``asked`` tokens behind ``past`` ones still stand within the context that the model was made for."""
        stands = window.next_standing + past - len(window)
        if stands + asked > self.backbone.context:
            raise ContextOverflowError(
                f"A question of {asked} tokens behind {stands} tokens of pages is over the model's context of "
                f"{self.backbone.context}. Shorten the question or lower token_budget.",
                tokens=stands + asked,
                allowed=self.backbone.context,
            )
