"""What settings leave open and the model's config decides, in ``mmrh_independent`` and the like."""

from __future__ import annotations

from typing import Any

from mmrh_retriever.encoding.engine import TAIL_ROOM
from mmrh_retriever.errors import ContextOverflowError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.settings import DEFAULT_TOKEN_BUDGET, RerankSettings


def with_model_defaults(given: RerankSettings, backbone: Backbone) -> RerankSettings:
    """The settings, with what the model's config decides."""
    defaults = (
        ("independent", None, False),
        ("token_budget", None, DEFAULT_TOKEN_BUDGET),
        ("hybrid", "auto", False),
        ("question_weights", "auto", "uniform"),
    )
    found: dict[str, Any] = {
        name: getattr(backbone.config, f"mmrh_{name}", default)
        for name, left_open, default in defaults
        if getattr(given, name) == left_open
    }
    return RerankSettings.of(given, found)


def check_room(settings: RerankSettings, prefix: PromptSegment) -> None:
    """Raise :class:`ContextOverflowError` if the token budget leaves no room for a page."""
    least = len(prefix) + TAIL_ROOM
    if settings.token_budget is not None and settings.token_budget <= least:
        raise ContextOverflowError(
            f"token_budget={settings.token_budget} leaves no room for a page: the prompt prefix and the room kept for "
            f"questions take {least} tokens. Raise it.",
            tokens=least,
            allowed=settings.token_budget,
        )
