"""A question over a document as one HTML file: ranked thumbnails, heat maps, scores, heads and settings."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

import mmrh_retriever
from mmrh_retriever.errors import PageError
from mmrh_retriever.explain.heat_maps import RAMP, draw_regions, full_colour, heat_map
from mmrh_retriever.model.loading import BUNDLED_FOLDER
from mmrh_retriever.ranking.question_attention import Explanation, QuestionAttention
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.types import ScoredPage, ScoredRegion

PICTURE_SIDE = 1000
"""The longer side of a heat map in the report, in pixels."""
_THUMB_SIDE = 320
_TOKEN_SIDE = 240
_TOKEN_MAPS = 6  # of the tokens that look most at a page
_BOXES = 5  # listed and drawn on a page
_SNIPPET = 180  # characters of a box's text
_HEADS_NAMED = 400
_HEAD_MAP_WIDTH = 420


def html_report(
    question: str,
    ranked: Sequence[ScoredPage],
    path: str | Path,
    *,
    regions: Sequence[ScoredRegion] = (),
    attention: Sequence[QuestionAttention] = (),
    reranker: Reranker | None = None,
    settings: Mapping[str, object] | None = None,
    pictures: int = 6,
    thumbnails: int = 24,
) -> Path:
    """Write what a ranking found as one HTML file that needs nothing else: no script, no font, no request.

    Args:
        question: the text that was asked.
        ranked: the ranking, best first; pages ranked with ``with_tokens=True`` get heat maps, all under one scale.
        path: the file to write; folders that are missing are made.
        regions: ranked boxes, such as :meth:`Reranker.rank_regions` gives for the same pages; the best of each page
            are drawn and listed.
        attention: for pages whose heat is wanted by token of the question, see
            :meth:`EncodedPages.question_attention`.
        reranker: whose model, heads and settings are shown.
        settings: more to show, by name.
        pictures: so many of the best pages get a large picture.
        thumbnails: so many get a small one; all stand in the table of scores.

    Returns:
        The path.

    Raises:
        PageError: an empty ranking, or a page that can't be drawn.
        OSError: the file can't be written.
    """
    if not ranked:
        raise PageError("There is nothing to report: the ranking is empty. Give at least one scored page.")
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrh_retriever", "data"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.jinja")
    view = _View(ranked, regions, attention)
    pages = [view.row(scored) for scored in ranked]
    details = [row | view.detail(scored) for row, scored in zip(pages, ranked[:pictures], strict=False)]
    thumbs = [
        row | {"thumb": view.thumb(scored), "detailed": place < pictures}
        for place, (row, scored) in enumerate(zip(pages, ranked[:thumbnails], strict=False))
        if scored.page.image is not None
    ]
    text = template.render(
        question=question,
        summary=_summary(ranked, reranker),
        pages=pages,
        details=[detail for detail in details if detail["picture"]],
        thumbs=thumbs,
        scale=f"{view.scale:.3g}" if view.scale > 0.0 else "",
        ramp=", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*colour) for colour in RAMP),
        heads=None if reranker is None else _heads(reranker),
        settings=_settings(reranker, settings or {}),
        version=mmrh_retriever.__version__,
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def report_on(explanation: Explanation, question: str, path: str | Path, *, reranker: Reranker) -> Path:
    """Write :func:`html_report` with all there is to show of a question that was asked.

    All pages with heat maps, the boxes of pages that were read with their layout, and the best page by token.

    Raises:
        OSError: the file can't be written.
    """
    attention = [] if explanation.attention is None else [explanation.attention]
    return html_report(
        question,
        explanation.ranking,
        path,
        regions=explanation.regions(),
        attention=attention,
        reranker=reranker,
    )


class _View:
    """What the template shows of each page."""

    def __init__(
        self, ranked: Sequence[ScoredPage], regions: Sequence[ScoredRegion], attention: Sequence[QuestionAttention]
    ) -> None:
        self.best = max((scored.score for scored in ranked), default=0.0)
        self.score = _Numbers(scored.score for scored in ranked)
        self.box_score = _Numbers(region.score for region in regions)
        self.scale = full_colour(ranked)
        self.one_document = len({scored.page.doc_id for scored in ranked}) == 1
        self.regions: dict[int, list[ScoredRegion]] = {}
        for region in regions:
            self.regions.setdefault(id(region.page), []).append(region)
        self.attention = {id(item.page): item for item in attention}

    def row(self, scored: ScoredPage) -> dict[str, Any]:
        page = scored.page
        short = f"page {page.label or page.number}" if self.one_document else page.name
        share = round(100 * min(1.0, max(0.0, scored.score / self.best)), 1) if self.best > 0 else 0
        return {
            "rank": scored.rank,
            "name": page.name,
            "short": short,
            "score": self.score(scored.score),
            "share": share,
        }

    def detail(self, scored: ScoredPage) -> dict[str, Any]:
        boxes = self.regions.get(id(scored.page), [])[:_BOXES]
        found: dict[str, Any] = {"picture": None, "tokens": [], "token_maps": []}
        found["boxes"] = [
            {"rank": box.rank, "kind": box.kind, "score": self.box_score(box.score), "text": _snippet(box.region.text)}
            for box in boxes
        ]
        if scored.page.image is not None:
            found["picture"] = _data_uri(self.drawn(scored, PICTURE_SIDE, boxes))
        by_token = self.attention.get(id(scored.page))
        if by_token is not None:
            found |= _by_token(by_token)
        return found

    def thumb(self, scored: ScoredPage) -> str:
        return _data_uri(self.drawn(scored, _THUMB_SIDE, ()))

    def drawn(self, scored: ScoredPage, side: int, boxes: Sequence[ScoredRegion]) -> Image.Image:
        if scored.token_scores is not None:
            return heat_map(scored, regions=boxes, scale=self.scale, max_side=side)
        image = scored.page.pixels()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return draw_regions(image, boxes)


def _by_token(attention: QuestionAttention) -> dict[str, Any]:
    """The question's tokens with what each pays the page, and the heat maps of those that pay most."""
    pages = [attention.of_token(place) for place in range(len(attention.tokens))]
    top = max((page.score for page in pages), default=0.0)
    number = _Numbers(page.score for page in pages)
    tokens = [
        {
            "text": text,
            "score": number(page.score),
            "share": round(80 * max(0.0, page.score / top)) if top > 0 else 0,
        }
        for text, page in zip(attention.tokens, pages, strict=True)
    ]
    best = sorted(range(len(pages)), key=lambda place: -pages[place].score)[:_TOKEN_MAPS]
    maps = [
        tokens[place] | {"picture": _data_uri(heat_map(pages[place], max_side=_TOKEN_SIDE))} for place in sorted(best)
    ]
    return {"tokens": tokens, "token_maps": maps}


def _summary(ranked: Sequence[ScoredPage], reranker: Reranker | None) -> str:
    documents = sorted({scored.page.doc_id for scored in ranked if scored.page.doc_id})
    parts = [f"{len(ranked)} {'page' if len(ranked) == 1 else 'pages'} ranked"]
    if documents:
        parts.append(documents[0] if len(documents) == 1 else f"{len(documents)} documents")
    if reranker is not None:
        parts += [_model_name(reranker), f"{len(reranker.heads)} heads"]
    return " · ".join(parts)


def _heads(reranker: Reranker) -> dict[str, Any]:
    heads, backbone = reranker.heads, reranker.backbone
    cell = max(3, min(12, _HEAD_MAP_WIDTH // max(backbone.heads, backbone.layers)))
    names = [str(head) for head in heads]
    about = [f"{len(names)} of {backbone.layers * backbone.heads} heads"]
    about += [f"from {heads.source}"] if heads.source else []
    about += [f"tasks: {', '.join(heads.tasks)}"] if heads.tasks else []
    about += [f"detected at {heads.context_length:,} tokens"] if heads.context_length else []
    everything = len(names) == backbone.layers * backbone.heads
    listed = ", ".join(names[:_HEADS_NAMED]) + (" ..." if len(names) > _HEADS_NAMED else "")
    return {
        "count": len(names),
        "layers": backbone.layers,
        "per_layer": backbone.heads,
        "cell": cell,
        "width": backbone.heads * cell + 28,
        "height": backbone.layers * cell + 28,
        "cells": [(20 + head * cell, 20 + layer * cell) for layer, head in heads],
        "about": "; ".join(about) + ".",
        "names": "" if everything else f"Layer and head, best first: {listed}",
    }


def _settings(reranker: Reranker | None, more: Mapping[str, object]) -> list[tuple[str, str]]:
    rows: list[tuple[str, object]] = []
    if reranker is not None:
        options = reranker.prompter.options
        backbone = reranker.backbone
        rows = [
            ("Model", _model_name(reranker)),
            ("Family", backbone.family.name),
            ("Number format", str(backbone.model.dtype).removeprefix("torch.")),
            ("Device", backbone.device),
            ("Longest window", f"{reranker.token_budget:,} tokens"),
            ("Pages encoded", "each alone" if reranker.independent else "one after the other"),
            ("Null question", f"{options.null_question!r}, subtracted" if reranker.settings.calibrate else "not used"),
            ("Instruction", options.instruction),
            ("Content", options.content),
        ]
    return [(name, str(value)) for name, value in (*rows, *more.items())]


def _model_name(reranker: Reranker) -> str:
    name = str(getattr(reranker.backbone.config, "_name_or_path", "") or reranker.heads.model_id or "")
    if Path(name) == BUNDLED_FOLDER:
        return "bundled model"
    return (Path(name).name if Path(name).is_dir() else name) or type(reranker.backbone.model).__name__


class _Numbers:
    """Writes numbers that stand together: with as many decimals as give the largest three digits that count."""

    def __init__(self, values: Iterable[float]) -> None:
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        self.decimals = min(9, max(2, 2 - math.floor(math.log10(largest)))) if largest > 0.0 else 2

    def __call__(self, value: float) -> str:
        return f"{value:.{self.decimals}f}".replace("-", "−")


def _snippet(text: str | None) -> str:
    words = " ".join((text or "").split())
    return words if len(words) <= _SNIPPET else words[: _SNIPPET - 1].rstrip() + "…"


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=84, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
