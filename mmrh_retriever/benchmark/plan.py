"""What ranking pages with a model takes, before any weight is loaded: tokens, windows, bytes and operations.

All of it comes from the model's configuration, its tokenizer and its image processor. The pages are written, and the
heads and budgets chosen, by the code that a run uses; the model stands on torch's meta device, without content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmrh_retriever.benchmark.flops import decoder_flops, pass_flops, recording_flops, vision_flops
from mmrh_retriever.encoding.engine import TAIL_ROOM
from mmrh_retriever.errors import ContextOverflowError, HeadSetError, PageError, UnsupportedModelError
from mmrh_retriever.heads.sets import HeadSet
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.loading import load_without_weights, model_path
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.settings import RerankSettings
from mmrh_retriever.types import Page

LETTER = (1243, 1608)
"""Pixels of a Letter page as ``read_pdf`` draws it."""
QUESTION = "How did the revenue of the company change in the last three years?"
"""The question that operations are counted for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What ranking some pages takes.

    ``tokens`` are the pages' and the prompt prefixes' over all ``windows``; ``page_tokens`` are the first page's.
    ``kept_bytes`` are the keys and values of all of them in the layers before ``deepest``, and there the keys that the
    heads read, without the spare room of buffers; ``page_bytes`` are the first page's. A ``page_memory`` of so many
    bytes holds ``page_memory_pages`` such pages. Operations count a multiplication and an addition as two: of encoding
    the pages, of a further question on them, and of the paper's procedure, two full passes per question.
    """

    model: str
    family: str
    dtype: str
    layers: int
    heads: int
    heads_of: str
    deepest: int
    weights: int
    weight_bytes: int
    pages: int
    page_tokens: int
    tokens: int
    context: int
    token_budget: int
    independent: bool
    windows: int
    kept_bytes: int
    page_bytes: int
    page_memory: int
    page_memory_pages: int
    encode_flops: int
    question_flops: int
    plain_flops: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``."""
        return asdict(self)

    def table(self) -> Table:
        """One row per figure."""
        kept_at = "each as if alone" if self.independent else "together"
        ratio = self.plain_flops / self.question_flops
        rows = [
            ("heads", f"{self.heads} of {self.heads_of}, layers 0 to {self.deepest} of {self.layers}"),
            ("weights", f"{self.weights / 1e6:,.0f} million, {_size(self.weight_bytes)} in {self.dtype}"),
            ("a page", f"{self.page_tokens:,} tokens, {_size(self.page_bytes)} of keys and values"),
            (f"{self.pages} pages, {kept_at}", f"{self.tokens:,} tokens, {_size(self.kept_bytes)} of keys and values"),
            ("windows", f"{self.windows} of at most {self.token_budget:,} tokens (context {self.context:,})"),
            ("encoding the pages", f"{_flops(self.encode_flops)}"),
            ("each further question", f"{_flops(self.question_flops)}"),
            ("the paper's two full passes per question", f"{_flops(self.plain_flops)}, {ratio:,.0f} times"),
            (
                f"page_memory of {_size(self.page_memory)}, where pages stand alone",
                f"holds {self.page_memory_pages:,} such pages",
            ),
        ]
        return Table.of(f"{self.model} ({self.family})", ("", "planned"), rows, notes=self.notes, text_columns=2)


def empty_reranker(
    model: str | None, heads: str | Path | HeadSet = "published", *, images: bool = True, settings: RerankSettings
) -> tuple[Reranker, tuple[str, ...]]:
    """A reranker on a model without content, by hub id or folder, and notes on it.

    Where no heads are published it has all heads, which a note says. Without ``images`` it needs no image processor.
    It writes pages and says what they take; it can't rank. Errors as for :meth:`Reranker.from_pretrained`.
    """
    path, _ = model_path(model)
    given = {name: getattr(settings, name) for name in ("dtype", "max_pixels", "revision", "cache_dir")}
    made, processors = load_without_weights(
        path, text_only=not images, local_files_only=settings.local_files_only, **given
    )
    notes: tuple[str, ...] = ()
    if getattr(made.config, "quantization_config", None) is not None:
        notes = ("The weights are stored quantised: they take fewer bytes than is said here.",)
    try:
        return Reranker(made, processors, heads, settings=settings, check=False), notes
    except HeadSetError as error:
        if heads != "published":
            raise
        return Reranker(made, processors, "all", settings=settings, check=False), (*notes, str(error))


def plan(
    reranker: Reranker,
    *,
    pages: int,
    page_size: tuple[int, int] = LETTER,
    page_tokens: int | None = None,
    page_memory: int,
    notes: Sequence[str] = (),
) -> Plan:
    """What it takes to rank ``pages`` page images of ``page_size`` pixels, or pages of ``page_tokens`` tokens each.

    Args:
        reranker: any, also an :func:`empty_reranker`.
        pages: how many.
        page_size: width and height.
        page_tokens: where pages are text. What is in front of them on their lines is among the tokens.
        page_memory: bytes of encoded pages that an adapter keeps.
        notes: to be shown with the plan.

    Raises:
        ContextOverflowError: the page is longer than a window.
        PageError: a model that takes no images, and no ``page_tokens``.
        UnsupportedModelError: a model that keeps anything else than keys and values of each layer's own projections.
    """
    backbone, engine = reranker.backbone, reranker.engine()
    _check_projections(backbone)
    if page_tokens is None and not backbone.takes_images:
        raise PageError(f"{backbone.family.name} takes text alone. Say how many tokens a page has (page_tokens).")
    deepest = engine.heads.deepest
    prefix = len(reranker.prompter.prefix_segment())
    image = None if page_tokens else reranker.prompter.page_segment(Page(image=Image.new("RGB", page_size, "white")), 1)
    sizes = _page_tokens(reranker, pages, image) if image else [page_tokens or 0] * pages
    windows = _windows(sizes, engine.room, min(engine.room, backbone.context - TAIL_ROOM - prefix))
    tokens = prefix * len(windows) + sum(sizes)
    per_token = _bytes_per_token(reranker, deepest)
    weights = list(backbone.model.parameters())
    seen = pages * vision_flops(backbone, image) if image else 0
    layers = decoder_flops(backbone)
    question = len(reranker.prompter.question_segment(QUESTION))
    encode, ask, plain = seen, 0, 2 * seen
    for window in windows:
        held = prefix + sum(window)
        alone = window if engine.independent else [sum(window)]
        encode += pass_flops(layers, 0, prefix, deepest)
        encode += sum(pass_flops(layers, prefix, part, deepest) for part in alone)
        ask += pass_flops(layers, held, question, deepest)
        ask += recording_flops(layers, reranker.heads, held, question)
        plain += 2 * pass_flops(layers, 0, held + question)
    return Plan(
        model=backbone.name,
        family=backbone.family.name,
        dtype=str(backbone.model.dtype).removeprefix("torch."),
        layers=backbone.layers,
        heads=len(reranker.heads),
        heads_of=reranker.heads.model_id or reranker.heads.source or "a head set",
        deepest=deepest,
        weights=sum(weight.numel() for weight in weights),
        weight_bytes=sum(weight.nbytes for weight in weights),
        pages=pages,
        page_tokens=sizes[0],
        tokens=tokens,
        context=backbone.context,
        token_budget=engine.token_budget,
        independent=engine.independent,
        windows=len(windows),
        kept_bytes=tokens * per_token,
        page_bytes=sizes[0] * per_token,
        page_memory=page_memory,
        page_memory_pages=page_memory // (sizes[0] * per_token),
        encode_flops=encode,
        question_flops=ask,
        plain_flops=plain,
        notes=tuple(notes),
    )


def _page_tokens(reranker: Reranker, pages: int, first: PromptSegment) -> list[int]:
    """Each page's tokens: they differ by the number on the label alone."""
    text = [len(reranker.prompter.page_segment(Page(text="x"), number)) for number in range(1, pages + 1)]
    return [len(first) + own - text[0] for own in text]


def _windows(sizes: Sequence[int], room: int, longest: int) -> list[list[int]]:
    """The pages' tokens, window by window, as the engine fills them."""
    if max(sizes) > longest:
        raise ContextOverflowError(
            f"A page takes {max(sizes)} tokens; a window has room for {longest}. Plan for smaller pages (max_pixels, "
            "page size), or raise token_budget up to the model's context.",
            tokens=max(sizes),
            allowed=longest,
        )
    windows: list[list[int]] = [[]]
    for size in sizes:
        if sum(windows[-1]) + size > room:
            windows.append([])
        windows[-1].append(size)
    return windows


def _check_projections(backbone: Backbone) -> None:
    projections = [
        getattr(module, name, None)
        for module in backbone.seam.modules.values()
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    if backbone.recurrent_layers or None in projections:
        raise UnsupportedModelError(
            f"{backbone.name} does not keep keys and values of each layer's own projections alone, but states, latents "
            "or another layer's keys: a plan can't count these. Encode a few pages and see EncodedPages.nbytes."
        )


def _bytes_per_token(reranker: Reranker, deepest: int) -> int:
    """Bytes that are kept of a token: keys and values, and of the deepest layer the recorded heads' keys alone."""
    modules: dict[int, Any] = reranker.backbone.seam.modules
    before = [module for layer, module in modules.items() if layer < deepest]
    width = sum(module.k_proj.weight.shape[0] + module.v_proj.weight.shape[0] for module in before)
    last, facts = modules[deepest], reranker.backbone.facts
    key_heads = last.k_proj.weight.shape[0] // last.head_dim
    recorded = {head.head * key_heads // facts.n_heads for head in reranker.heads if head.layer == deepest}
    return int((width + len(recorded) * last.head_dim) * reranker.backbone.model.dtype.itemsize)


def _size(count: float) -> str:
    return f"{count / 1024**3:.2f} GiB" if count >= 1024**3 else f"{count / 1024**2:.1f} MiB"


def _flops(count: float) -> str:
    return f"{count / 1e12:.3g} TFLOP"
