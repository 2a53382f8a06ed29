"""What encoding once saves: our way against the paper's procedure written plainly on transformers, in one run.

The procedure (Li et al. 2026, arXiv 2605.27243) runs two full passes over all candidate pages for every question,
one with the question and one with the null question, through every layer, taking attention rows of all heads.
Both sides use the same weights, the same pages and the same attention kernel; they take turns, and what is
reported is the ratio of each pair with its spread, which holds on another machine better than seconds do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmrh_retriever.encoding.page_store import PageStore
from mmrh_retriever.errors import AttentionCaptureError
from mmrh_retriever.model.pass_plan import PassPlan
from mmrh_retriever.model.prompts import PromptSegment
from mmrh_retriever.model.recording import HeadsByLayer, Recording
from mmrh_retriever.model.vision import joined_inputs
from mmrh_retriever.ranking.reranker import Reranker
from mmrh_retriever.types import Page, ScoredPage, TokenSpan

_WORDS = (
    "harbour",
    "revenue",
    "emission",
    "storm",
    "ticket",
    "vessel",
    "crew",
    "island",
    "battery",
    "refund",
    "winter",
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer the first side of a pair took than the second, over several rounds.

    The last row of a benchmark is the other way round to read: what a recording pass takes of a bare one's time.
    """

    name: str
    median: float
    low: float
    high: float
    seconds: float  # median seconds of the second side, ours

    @classmethod
    def of(cls, name: str, slow: Sequence[float], fast: Sequence[float]) -> Ratio:
        """From the seconds of both sides, round by round."""
        ratios = [one / other for one, other in zip(slow, fast, strict=True)]
        return cls(name, statistics.median(ratios), min(ratios), max(ratios), statistics.median(fast))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The ratios of one run, and what they were measured on.

    ``deepest`` is the last layer that runs, of ``layers``; ``tokens_per_second`` those of pages as they are encoded;
    ``peak_bytes`` the most memory that an accelerator gave (0 on a CPU).
    """

    model: str
    device: str
    pages: int
    tokens: int
    questions: int
    rounds: int
    heads: int
    layers: int
    deepest: int
    tokens_per_second: float
    peak_bytes: int
    ratios: tuple[Ratio, ...]

    def as_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``."""
        return asdict(self)


def sample_pages(count: int, *, side: tuple[int, int] = (510, 660), seed: int = 0) -> list[Page]:
    """Pages of drawn words, all different, ``side`` pixels wide and high."""
    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(15)
    words = np.array(_WORDS)
    pages = []
    for index in range(count):
        image = Image.new("RGB", side, "white")
        pen = ImageDraw.Draw(image)
        for top in range(30, side[1] - 40, 24):
            pen.text((30, top), " ".join(rng.choice(words, 7)) + f" {rng.integers(10_000)}", fill="black", font=font)
        pages.append(Page(image=image, index=index))
    return pages


def sample_questions(count: int, *, seed: int = 0) -> list[str]:
    """Questions of a usual length, begun in several ways."""
    rng = np.random.default_rng(seed)
    words = np.array(_WORDS)
    begun = ("How did the", "Which", "What was the", "When did", "Who wrote about the", "Where does the")
    return [
        f"{begun[number % len(begun)]} {' '.join(rng.choice(words, 4, replace=False))} change in {1990 + number}?"
        for number in range(count)
    ]


def rank_anew(reranker: Reranker, question: str, pages: Sequence[Page]) -> list[ScoredPage]:
    """A first question: as if no page had been seen before."""
    reranker.vision.clear()
    return reranker.rank(question, pages)


class PlainProcedure:
    """The paper's way: question and null question, each a full pass, all heads' rows, nothing kept.

    It runs through plain causal passes of the same seam, so that both sides use the same kernel and the same float32
    rows. Beside what it computes it differs from ours in that nothing is done to the model: patches are convolved, and
    attention is not taken in parts.
    """

    def __init__(self, reranker: Reranker, pages: Sequence[Page]) -> None:
        self.reranker = reranker
        self.backbone = reranker.backbone
        self.pages = pages
        heads = [(layer, head) for layer in self.backbone.global_layers for head in range(self.backbone.heads)]
        self._heads = HeadsByLayer.of(heads)

    def rank(self, question: str) -> Tensor:
        """``(pages,)`` calibrated scores of all heads; two full passes."""
        prompter = self.reranker.prompter
        before = self.prompt()
        asked = self._pass([*before, prompter.question_segment(question)])
        null = self._pass([*before, prompter.null_segment()])
        return (asked - null).mean(dim=0)

    def prompt(self) -> list[PromptSegment]:
        """The prompt prefix and the pages."""
        prompter = self.reranker.prompter
        return [prompter.prefix_segment(), *(prompter.page_segment(page, page.number) for page in self.pages)]

    def _pass(self, segments: Sequence[PromptSegment]) -> Tensor:
        recording = self.full_pass(segments, self._heads)
        if recording is None:
            raise AttentionCaptureError("A full pass that was to record gave no recording.")
        return recording.mass[0]

    def full_pass(
        self, segments: Sequence[PromptSegment], heads: HeadsByLayer | None, stop_at: int | None = None
    ) -> Recording | None:
        """One plain causal pass over all segments, the last of which asks; it records nothing without heads."""
        ids = [number for segment in segments for number in segment.ids]
        owner = torch.full((len(ids),), -1, dtype=torch.long)
        positions, offset, position = [], 0, 0
        bidirectional: list[TokenSpan] = []
        for number, segment in enumerate(segments):
            positions.append(segment.all_positions() + position)
            for span in segment.scored:
                owner[span.start + offset : span.stop + offset] = number - 1
            bidirectional += [span.shifted(offset) for span in segment.bidirectional]
            offset, position = offset + len(segment), position + segment.extent
        question = segments[-1]
        start = len(ids) - len(question)
        owner[start:] = -1
        looking = question.scored[0].shifted(start)
        rows = [range(looking.start, looking.stop)]
        recording = None if heads is None else Recording(heads, rows, owner, len(self.pages))
        backbone = self.backbone
        order = torch.cat(positions, dim=1)
        plan = PassPlan(0, len(ids), bidirectional=tuple(bidirectional), stop_at=stop_at)
        with torch.inference_mode(), backbone.seam.running(plan, recording):
            backbone.base(
                input_ids=torch.tensor([ids], device=backbone.device),
                position_ids=(order.unsqueeze(1) if backbone.family.three_axes else order).to(backbone.device),
                attention_mask=torch.zeros(1, 1, 1, 1, device=backbone.device, dtype=backbone.model.dtype),
                use_cache=False,
                **joined_inputs(backbone, segments),
            )
        return recording


def run_benchmark(
    reranker: Reranker,
    *,
    pages: int = 20,
    questions: int = 16,
    rounds: int = 3,
    side: tuple[int, int] = (510, 660),
) -> Benchmark:
    """Measure the ratios, both sides in turn.

    Args:
        reranker: the model and heads to measure with.
        pages: page images.
        questions: questions asked together and singly.
        rounds: how often each pair is measured, after one round that does not count.
        side: width and height of a page in pixels.
    """
    shown = sample_pages(pages, side=side)
    asked = sample_questions(questions)
    plain = PlainProcedure(reranker, shown)
    encoded = reranker.encode(shown)
    stored = reranker.with_store(PageStore())
    whole = [*plain.prompt(), reranker.prompter.question_segment(asked[0])]
    heads = HeadsByLayer.of(list(reranker.heads))
    device = reranker.backbone.device
    seconds: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object], *, seen_before: bool = False) -> None:
        if not seen_before:
            reranker.vision.clear()
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(rounds + 1):
        timed("plain", lambda: plain.rank(asked[0]))
        timed("first", lambda: reranker.rank(asked[0], shown))
        timed("seen", lambda: reranker.rank(asked[0], shown), seen_before=True)
        timed("stored", lambda: stored.rank(asked[0], shown))
        timed("further", lambda: encoded.rank(asked[0]))
        timed("singly", lambda: [encoded.rank(question) for question in asked])
        timed("together", lambda: encoded.rank_many(asked))
        timed("bare", lambda: plain.full_pass(whole, None, heads.deepest))
        timed("recording", lambda: plain.full_pass(whole, heads, heads.deepest))
        timed("encode", lambda: reranker.encode(shown))
    kept = {name: values[1:] for name, values in seconds.items()}
    return Benchmark(
        model=reranker.backbone.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        pages=pages,
        tokens=encoded.tokens,
        questions=questions,
        rounds=rounds,
        heads=len(reranker.heads),
        layers=reranker.backbone.layers,
        deepest=heads.deepest,
        tokens_per_second=encoded.tokens / statistics.median(kept["encode"]),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        ratios=(
            Ratio.of("first question", kept["plain"], kept["first"]),
            Ratio.of("each further question", kept["plain"], kept["further"]),
            Ratio.of(f"{questions} questions together, against singly", kept["singly"], kept["together"]),
            Ratio.of("first question, images seen before", kept["plain"], kept["seen"]),
            Ratio.of("first question, pages in a store", kept["plain"], kept["stored"]),
            Ratio.of("a pass that records, against a bare one", kept["recording"], kept["bare"]),
        ),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
