"""Forward passes behind a window's kept keys: over pages, over questions side by side, over what follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrh_retriever.encoding.question_tree import QuestionTree
from mmrh_retriever.encoding.window import Window
from mmrh_retriever.errors import ContextOverflowError, MMRHError, UnsupportedModelError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.kv_cache import PageCache, cache_argument
from mmrh_retriever.model.pass_plan import PassPlan
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.model.recording import Recording
from mmrh_retriever.model.vision import Features, Vision
from mmrh_retriever.types import TokenSpan


class Passes:
    """Runs one model's decoder up to the layer ``deepest``; keys of the layers up to it are kept."""

    def __init__(self, backbone: Backbone, vision: Vision, deepest: int) -> None:
        self.backbone = backbone
        self.vision = vision
        self.deepest = deepest
        self._cache_name = cache_argument(backbone.base)

    def open_window(
        self, prefix: PromptSegment, *, capacity: int, independent: bool, recorded: Collection[int] = ()
    ) -> Window:
        """A window that holds the prompt prefix alone; for ``recorded`` see :class:`PageCache`."""
        backbone = self.backbone
        cache = PageCache(self.deepest + 1, capacity, backbone.recurrent_layers, recorded=recorded, of=backbone.heads)
        plan = PassPlan(0, len(prefix), stop_at=self.deepest)
        self._run(cache, prefix.ids, prefix.all_positions(), plan)
        cache.keep()
        return Window(prefix, cache, independent=independent)

    def run_pages(
        self, window: Window, segments: Sequence[PromptSegment], features: Sequence[Features | None] = ()
    ) -> None:
        """One pass over segments that see the window and those before them; independent ones come one at a time.

        Their keys are in the window's cache afterwards, and the window has yet to take them in.
        """
        start, position = window.page_start
        positions: list[Tensor] = []
        bidirectional: list[TokenSpan] = []
        length = 0
        for segment in segments:
            positions.append(segment.all_positions() + position)
            bidirectional += [span.shifted(length) for span in segment.bidirectional]
            length += len(segment)
            position += segment.extent
        plan = PassPlan(
            len(window),
            length,
            bidirectional=tuple(bidirectional),
            locally=self.backbone.family.locally,
            stop_at=self.deepest,
            visible=start,
            start=start,
        )
        ids = [number for segment in segments for number in segment.ids]
        inputs = self.vision.model_inputs(segments, features)
        try:
            self._run(window.cache, ids, torch.cat(positions, dim=1), plan, inputs=inputs)
        except BaseException:
            window.cache.crop_to(len(window))
            raise
        window.cache.keep()

    def run_behind(
        self,
        window: Window,
        segment: PromptSegment,
        *,
        tokens: int = 0,
        extent: int = 0,
        recording: Recording | None = None,
    ) -> None:
        """One pass over a segment behind everything that a window holds.

        ``tokens`` have run behind the window already, in passes of this kind, and take the rotary room ``extent``.
        """
        plan = self._tail_plan(window, tokens, len(segment), bidirectional=segment.bidirectional, stop_at=self.deepest)
        positions = segment.all_positions() + window.next_position + extent
        inputs = self.vision.model_inputs([segment])
        self._run(window.cache, segment.ids, positions, plan, recording=recording, inputs=inputs)

    def run_tree(
        self, window: Window, tree: QuestionTree, *, stop_at: int | None = None, recording: Recording | None = None
    ) -> Tensor | None:
        """One pass over texts that each stand alone behind the window; their keys are forgotten.

        Where layers are recurrent there is one text: several can't share a state.

        Gives the last hidden states, ``(1, tokens, width)``, or ``None`` if the pass ended at ``stop_at``.
        """
        plan = self._tail_plan(window, 0, len(tree), paths=tuple(tree.paths), stop_at=stop_at)
        positions = torch.tensor(tree.depths).expand(self.backbone.axes, -1) + window.next_position
        with self.backbone.seam.lock:
            try:
                return self._run(window.cache, tree.ids, positions, plan, recording=recording)
            finally:
                window.cache.crop_to(len(window))

    def check_room(self, window: Window, asked: int, *, tokens: int = 0) -> None:
        """Raise :class:`ContextOverflowError` if ``asked`` tokens behind ``tokens`` others exceed the context."""
        before = window.next_offset + tokens
        if before + asked > self.backbone.context:
            raise ContextOverflowError(
                f"A question of {asked} tokens behind {before} tokens of pages is over the model's context of "
                f"{self.backbone.context_described}. Shorten the question or lower token_budget.",
                tokens=before + asked,
                allowed=self.backbone.context,
            )

    def _tail_plan(self, window: Window, tokens: int, length: int, **options: Any) -> PassPlan:
        """A pass behind the window, of which ``tokens`` have run already."""
        offsets = torch.cat([window.offsets(), torch.arange(tokens) + window.next_offset])
        start = window.next_offset + tokens
        locally = self.backbone.family.locally
        return PassPlan(len(window) + tokens, length, locally=locally, offsets=offsets, start=start, **options)

    def _run(
        self,
        cache: PageCache,
        ids: Sequence[int],
        positions: Tensor,
        plan: PassPlan,
        *,
        recording: Recording | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Tensor | None:
        """One pass; gives the last hidden states, ``(1, tokens, width)``, if it went through all layers."""
        backbone = self.backbone
        backbone.check_evaluating()
        device = backbone.device
        # A four-dimensional mask is handed through untouched; the plan applies the real one in each layer.
        mask = torch.zeros(1, 1, 1, 1, device=device, dtype=backbone.dtype)
        order = positions.unsqueeze(1) if backbone.family.three_axes else positions
        try:
            with torch.inference_mode(), backbone.seam.running(plan, recording):
                output = backbone.base(
                    input_ids=torch.tensor([list(ids)], device=device),
                    position_ids=order.to(device),
                    attention_mask=mask,
                    use_cache=True,
                    **{self._cache_name: cache},
                    **(inputs or {}),
                )
                return output.last_hidden_state  # type: ignore[no-any-return]
        except RuntimeError as error:
            if isinstance(error, (MMRHError, torch.OutOfMemoryError)) or backbone.vision_dtype is backbone.dtype:
                raise
            raise UnsupportedModelError(
                f"{backbone.name} has a vision tower in {backbone.vision_dtype} and a text decoder in "
                f"{backbone.dtype}, which it can't join: {error}. Expected one type for both; call "
                f"model.to({backbone.dtype}) first."
            ) from error
        return None  # the plan ended the pass
