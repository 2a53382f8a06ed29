"""The report: one question over a document as one HTML file with heat maps, scores, heads and settings."""

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
from mmrh_retriever.files import make_folder, write_atomically
from mmrh_retriever.model.loading import BUNDLED_FOLDER
from mmrh_retriever.ranking.encoded_pages import EncodedPages
from mmrh_retriever.ranking.question_attention import Explanation, QuestionAttention
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.types import ScoredPage, ScoredRegion

_TOKEN_SIDE = 240
_TOKEN_MAPS = 6  # for the tokens that look most at a page
_BOXES = 5  # listed and drawn per page


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
    """Write a ranking as one HTML file that needs nothing else: no script, no font, no request.

    Args:
        question: the text that was asked.
        ranked: the ranking, best first. Pages ranked with ``with_tokens=True`` get heat maps, all under one scale.
        path: the file to write; folders that are missing are made.
        regions: ranked boxes, such as :meth:`Reranker.rank_regions` gives for the same pages. The best of each page
            are drawn and listed.
        attention: for pages that get one heat map per token of the question, see
            :meth:`EncodedPages.question_attention`.
        reranker: its model, heads and settings are shown.
        settings: more to show, by name.
        pictures: how many of the best pages get a large picture.
        thumbnails: how many get a small one. All pages stand in the table of scores.

    Returns:
        The path.

    Raises:
        PageError: an empty ranking, or a page that can't be drawn.
        DataError: the file can't be written; one that was there stays as it is.
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
    text = template.render(
        question=question,
        ranked=ranked,
        pictures=pictures,
        thumbnails=thumbnails,
        view=_View(ranked, regions, attention),
        ramp=", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*colour) for colour in RAMP),
        reranker=reranker,
        model=None if reranker is None else _model_name(reranker),
        settings=settings or {},
        version=mmrh_retriever.__version__,
    )
    target = Path(path)
    make_folder(target.parent)
    write_atomically(target, text.encode("utf-8", "backslashreplace"))  # names may hold bytes that are no text
    return target


def report_on(
    asked: Explanation | EncodedPages, question: str, path: str | Path, *, reranker: Reranker | None = None
) -> Path:
    """Write :func:`html_report` with all there is to show of a question; it is asked once.

    The report holds all pages with heat maps, the boxes of pages that were read with their layout, and the best page
    by token of the question.

    Args:
        asked: what :meth:`EncodedPages.explain` gave for the question, or encoded pages, which are asked here.
        question: the text that was asked.
        path: the file to write.
        reranker: its model, heads and settings are shown; the encoded pages' own by default.

    Returns:
        The path.

    Raises:
        QuestionError: an empty question.
        PageError: a page that can't be drawn, or one with boxes that the model read as text.
        ContextOverflowError: a question too long.
        DataError: the file can't be written.
    """
    if isinstance(asked, EncodedPages):
        reranker = reranker or asked.reranker
        asked = asked.explain(question)
    return html_report(
        question,
        asked.ranking,
        path,
        regions=asked.regions(),
        attention=[] if asked.attention is None else [asked.attention],
        reranker=reranker,
    )


class _View:
    """What the template asks about pages: numbers as text, shares in percent, pictures as data addresses."""

    def __init__(
        self, ranked: Sequence[ScoredPage], regions: Sequence[ScoredRegion], attention: Sequence[QuestionAttention]
    ) -> None:
        self.number = _Numbers(scored.score for scored in ranked)
        self.box_number = _Numbers(region.score for region in regions)
        self.scale = full_colour(ranked)
        self._best = max(scored.score for scored in ranked)
        self._regions = regions
        self._attention = {id(item.page): item for item in attention}

    def share(self, scored: ScoredPage) -> float:
        return round(100 * min(1.0, max(0.0, scored.score / self._best)), 1) if self._best > 0 else 0

    def boxes(self, scored: ScoredPage) -> list[ScoredRegion]:
        return [region for region in self._regions if region.page is scored.page][:_BOXES]

    def picture(self, scored: ScoredPage, side: int, boxes: Sequence[ScoredRegion] = ()) -> str:
        if scored.token_scores is not None:
            return _data_uri(heat_map(scored, regions=boxes, scale=self.scale, max_side=side))
        image = scored.page.pixels()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return _data_uri(draw_regions(image, boxes))

    def tokens(self, scored: ScoredPage) -> list[dict[str, Any]]:
        """The question's tokens, what each pays the page, and heat maps of those that pay most."""
        attention = self._attention.get(id(scored.page))
        if attention is None:
            return []
        pages = [attention.of_token(index) for index in range(len(attention.tokens))]
        top = max(page.score for page in pages)
        number = _Numbers(page.score for page in pages)
        best = sorted(range(len(pages)), key=lambda index: -pages[index].score)[:_TOKEN_MAPS]
        return [
            {
                "text": attention.tokens[index],
                "score": number(page.score),
                "share": round(80 * max(0.0, page.score / top)) if top > 0 else 0,
                "picture": _data_uri(heat_map(page, max_side=_TOKEN_SIDE)) if index in best else None,
            }
            for index, page in enumerate(pages)
        ]


def _model_name(reranker: Reranker) -> str:
    name = str(getattr(reranker.backbone.config, "_name_or_path", "") or reranker.heads.model_id or "")
    if Path(name) == BUNDLED_FOLDER:
        return "bundled model"
    return (Path(name).name if Path(name).is_dir() else name) or type(reranker.backbone.model).__name__


class _Numbers:
    """Writes numbers that stand together, with as many decimals as give the largest three significant digits."""

    def __init__(self, values: Iterable[float]) -> None:
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        self.decimals = min(9, max(2, 2 - math.floor(math.log10(largest)))) if largest > 0.0 else 2

    def __call__(self, value: float) -> str:
        rounded = round(value, self.decimals) + 0.0  # no minus before a zero
        return f"{rounded:.{self.decimals}f}".replace("-", "−")


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=84, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
