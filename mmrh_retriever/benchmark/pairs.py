"""What encoding pages once saves: our way against the paper's procedure on plain transformers, in one run.

For every question the procedure (Li et al. 2026, arXiv 2605.27243) runs two full passes over all candidate pages, one
with the question and one with the null question. Both go through every layer and take the attention rows of all heads.
Both sides use the same weights, the same pages and the same attention kernel, and they take turns. What is reported is
the ratio of each pair with its spread: it holds on another machine better than seconds do.
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
from mmrh_retriever.runs.tables import Table
from mmrh_retriever.types import Page, ScoredPage, TokenSpan

_WORDS = np.array(
    ["harbour", "revenue", "emission", "storm", "ticket", "vessel", "crew", "island", "battery", "refund", "winter"]
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer the slow side of a pair took than the fast one, over several rounds.

    ``seconds`` is the fast side's median.
    """

    name: str
    median: float
    low: float
    high: float
    seconds: float

    @classmethod
    def of(cls, name: str, slow: Sequence[float], fast: Sequence[float]) -> Ratio:
        """From the seconds of both sides, one of each per round."""
        ratios = [one / other for one, other in zip(slow, fast, strict=True)]
        return cls(name, statistics.median(ratios), min(ratios), max(ratios), statistics.median(fast))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The ratios of one run, and what they were measured on.

    ``deepest`` is the last of ``layers`` layers that runs. ``tokens_per_second`` counts tokens of pages as they are
    encoded. ``peak_bytes`` is the most memory taken on an accelerator, 0 on a CPU.
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

    def table(self) -> Table:
        """One row per ratio: its median, its spread, and the fast side's seconds."""
        peak = f"Peak memory {self.peak_bytes / 1024**3:.1f} GiB"
        return Table.of(
            f"{self.pages} pages, {self.tokens} tokens, {self.device}; {self.heads} heads, layers 0 to {self.deepest} "
            f"of {self.layers}; {self.tokens_per_second:,.0f} tokens per second",
            ("name", "median", "spread", "seconds"),
            [
                (one.name, _times(one.median), f"{_times(one.low)} to {_times(one.high)}", f"{one.seconds:.3f}")
                for one in self.ratios
            ],
            notes=[peak] if self.peak_bytes else [],
        )


def sample_pages(count: int, *, side: tuple[int, int] = (510, 660), seed: int = 0) -> list[Page]:
    """Pages of drawn words, all different, ``side`` pixels wide and high."""
    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(15)
    pages = []
    for index in range(count):
        image = Image.new("RGB", side, "white")
        pen = ImageDraw.Draw(image)
        for top in range(30, side[1] - 40, 24):
            pen.text((30, top), " ".join(rng.choice(_WORDS, 7)) + f" {rng.integers(10_000)}", fill="black", font=font)
        pages.append(Page(image=image, index=index))
    return pages


def sample_questions(count: int, *, seed: int = 0) -> list[str]:
    """Questions of a usual length with different beginnings."""
    rng = np.random.default_rng(seed)
    starts = ("How did the", "Which", "What was the", "When did", "Who wrote about the", "Where does the")
    return [
        f"{starts[number % len(starts)]} {' '.join(rng.choice(_WORDS, 4, replace=False))} change in {1990 + number}?"
        for number in range(count)
    ]


def rank_anew(reranker: Reranker, question: str, pages: Sequence[Page]) -> list[ScoredPage]:
    """Rank as if no page had been seen before."""
    reranker.vision.clear()
    return reranker.rank(question, pages)


class PlainProcedure:
    """The paper's procedure: a full pass for the question and one for the null question, all heads' rows, nothing kept.

    The plain causal passes go through the same attention seam, so that both sides use the same kernel and the same
    float32 rows. The model runs as transformers has it: patches are convolved, and attention is not taken in parts.
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
        mass = self._mass([*before, prompter.question_segment(question)])
        null_mass = self._mass([*before, prompter.null_segment()])
        return (mass - null_mass).mean(dim=0)

    def prompt(self) -> list[PromptSegment]:
        """The prompt prefix and the pages."""
        prompter = self.reranker.prompter
        return [prompter.prefix_segment(), *(prompter.page_segment(page, page.number) for page in self.pages)]

    def _mass(self, segments: Sequence[PromptSegment]) -> Tensor:
        """``(heads, pages)``."""
        recording = self.full_pass(segments, self._heads)
        if recording is None:
            raise AttentionCaptureError("A full pass that was to record gave no recording.")
        return recording.mass[0]

    def full_pass(
        self, segments: Sequence[PromptSegment], heads: HeadsByLayer | None, stop_at: int | None = None
    ) -> Recording | None:
        """One plain causal pass over all segments, the question last. Without heads it records nothing."""
        *_, question = segments
        ids = [number for segment in segments for number in segment.ids]
        start = len(ids) - len(question)
        owner = torch.full((len(ids),), -1, dtype=torch.long)
        positions, offset, position = [], 0, 0
        bidirectional: list[TokenSpan] = []
        for number, segment in enumerate(segments):
            positions.append(segment.all_positions() + position)
            for span in segment.scored:
                owner[span.start + offset : span.stop + offset] = number - 1
            bidirectional += [span.shifted(offset) for span in segment.bidirectional]
            offset, position = offset + len(segment), position + segment.extent
        owner[start:] = -1
        looking = question.scored[0].shifted(start)
        rows = [range(looking.start, looking.stop)]
        recording = None if heads is None else Recording(heads, rows, owner, len(self.pages))
        backbone = self.backbone
        order = torch.cat(positions, dim=1)
        locally = self.backbone.family.locally
        plan = PassPlan(0, len(ids), bidirectional=tuple(bidirectional), locally=locally, stop_at=stop_at)
        with torch.inference_mode(), backbone.seam.running(plan, recording):
            backbone.base(
                input_ids=torch.tensor([ids], device=backbone.device),
                position_ids=(order.unsqueeze(1) if backbone.family.three_axes else order).to(backbone.device),
                attention_mask=torch.zeros(1, 1, 1, 1, device=backbone.device, dtype=backbone.dtype),
                use_cache=False,
                **joined_inputs(backbone, segments),
            )
        return recording


def run_benchmark(
    reranker: Reranker, *, pages: int = 20, questions: int = 16, rounds: int = 3, side: tuple[int, int] = (510, 660)
) -> Benchmark:
    """Measure the ratios on page images of ``side`` pixels; both sides take turns.

    ``questions`` are asked together and singly. Each pair is measured ``rounds`` times, after one round that does not
    count.
    """
    images = sample_pages(pages, side=side)
    texts = sample_questions(questions)
    plain = PlainProcedure(reranker, images)
    encoded = reranker.encode(images)
    stored = reranker.with_store(PageStore())
    whole = [*plain.prompt(), reranker.prompter.question_segment(texts[0])]
    heads = HeadsByLayer.of(list(reranker.heads))
    device = reranker.backbone.device
    on_cuda = device.type == "cuda"
    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.rank(texts[0]),
        "first": lambda: reranker.rank(texts[0], images),
        "seen": lambda: reranker.rank(texts[0], images),
        "stored": lambda: stored.rank(texts[0], images),
        "further": lambda: encoded.rank(texts[0]),
        "singly": lambda: [encoded.rank(question) for question in texts],
        "together": lambda: encoded.rank_many(texts),
        "bare": lambda: plain.full_pass(whole, None, heads.deepest),
        "recording": lambda: plain.full_pass(whole, heads, heads.deepest),
        "encode": lambda: reranker.encode(images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name != "seen":
                reranker.vision.clear()
            taken = _timed(run, device)
            seconds[name] += [taken] if number else []

    def ratio(name: str, slow: str, fast: str) -> Ratio:
        return Ratio.of(name, seconds[slow], seconds[fast])

    return Benchmark(
        model=reranker.backbone.name,
        device=torch.cuda.get_device_name(device) if on_cuda else str(device),
        pages=pages,
        tokens=encoded.tokens,
        questions=questions,
        rounds=rounds,
        heads=len(reranker.heads),
        layers=reranker.backbone.layers,
        deepest=heads.deepest,
        tokens_per_second=encoded.tokens / statistics.median(seconds["encode"]),
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_cuda else 0,
        ratios=(
            ratio("first question", "plain", "first"),
            ratio("each further question", "plain", "further"),
            ratio(f"{questions} questions together, against singly", "singly", "together"),
            ratio("first question, images seen before", "plain", "seen"),
            ratio("first question, pages in a store", "plain", "stored"),
            ratio("a pass that records, against a bare one", "recording", "bare"),
        ),
    )


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """The seconds that a run takes until the accelerator is done."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.3f}"
