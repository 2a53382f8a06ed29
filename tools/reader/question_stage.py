"""Stage 3: the question's side learns by the package's own score of pages that are encoded once.

Only the rows of word pieces that questions hold and no page does (labels and the prompt's beginning stand beside pages)
and the queries of the deepest selected layer are trained. So what is kept of pages stays valid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mmrh_retriever.runs.bootstrap import paired_bootstrap
from tools.reader.page_questions import QuestionMaker
from tools.reader.page_scores import EncodedPage, PageScores
from tools.reader.shelf import draw_pages

logger = logging.getLogger(__name__)

LARGEST = 16_000_000  # keys of a list times question tokens in one step: their attention is held for all heads
AT_ONCE = 8  # held-out questions

Documents = Sequence[Sequence[EncodedPage]]


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """How stage 3 runs."""

    seconds: float
    embedding_rate: float = 1e-4
    query_rate: float = 3e-5
    temperature: float = 0.03  # of the cross-entropy over pages, in units of the score
    decay_share: float = 0.5
    warmup_steps: int = 10
    pages: int = 14  # of one list
    questions: int = 24  # about one list, in one step, at most
    checkpoint_seconds: float = 90.0
    log_steps: int = 20


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Lists of pages that are never trained on, with questions about each."""

    lists: tuple[tuple[tuple[EncodedPage, ...], tuple[tuple[str, int], ...]], ...]

    @classmethod
    def of(cls, documents: Documents, maker: QuestionMaker, lists: int, pages: int, questions: int) -> HeldOut:
        """`lists` lists of `pages` pages, each with as many questions."""
        found = []
        for _ in range(lists):
            drawn = draw_pages(documents, pages, maker.rng)
            asked = maker.questions([encoded.page for encoded in drawn], questions)
            found.append((tuple(drawn), tuple(asked)))
        return cls(tuple(found))

    @torch.no_grad()
    def ranks(self, scores: PageScores) -> np.ndarray:
        """Each question's rank of its page, from 0; equals count half: (questions,)."""
        found = []
        for pages, asked in self.lists:
            questions = [question for question, _ in asked]
            parts = [scores(pages, questions[start : start + AT_ONCE]) for start in range(0, len(asked), AT_ONCE)]
            scored = torch.cat(parts)
            gold = scored.gather(1, torch.tensor([[index] for _, index in asked]))
            found.append((scored > gold).sum(1) + ((scored == gold).sum(1) - 1) / 2)
        return torch.cat(found).numpy()

    def clusters(self) -> list[int]:
        """Each question's list."""
        return [number for number, (_, asked) in enumerate(self.lists) for _ in asked]


class QuestionTrainer:
    """Trains the question's side, step by step.

    `trained` is what it changes, by name: the embedding, save the rows of `page_side`, and the deepest layer's queries.
    """

    def __init__(
        self, scores: PageScores, documents: Documents, maker: QuestionMaker, settings: QuestionSettings
    ) -> None:
        self.scores = scores
        self.settings = settings
        self.state = {"step": 0, "seconds": 0.0}
        self._documents = documents
        self._maker = maker
        self._page_side = scores.writer.page_side
        scores.text.requires_grad_(False)
        self._embedding = scores.text.embed_tokens.weight.requires_grad_(True)
        queries = dict(scores.layers[-1].self_attn.q_proj.requires_grad_(True).named_parameters())
        self.trained = {"embedding": self._embedding, **{f"queries {name}": each for name, each in queries.items()}}
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [self._embedding], "share": settings.embedding_rate},
                {"params": list(queries.values()), "share": settings.query_rate},
            ],
            betas=(0.9, 0.98), weight_decay=0.0,
        )  # fmt: skip

    def loss(self) -> torch.Tensor:
        """Cross-entropy of the right page among the pages of one list, by their scores."""
        pages = draw_pages(self._documents, self.settings.pages, self._maker.rng)
        asked = self._maker.questions([encoded.page for encoded in pages], self.settings.questions)
        keys = sum(page.keys.shape[2] for page in pages)
        asked = self._maker.examples.affordable(asked, keys, LARGEST) or asked[:1]
        logits = self.scores(pages, [question for question, _ in asked]).float() / self.settings.temperature
        return functional.cross_entropy(logits, torch.tensor([gold for _, gold in asked]))

    def step(self) -> float:
        """One step; gives its loss."""
        settings = self.settings
        left = 1 - self.state["seconds"] / settings.seconds
        rate = min(1.0, (self.state["step"] + 1) / settings.warmup_steps, left / settings.decay_share + 0.02)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["share"]
        loss = self.loss()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._embedding.grad[self._page_side] = 0.0  # without weight decay AdamW leaves these rows as they are
        nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        self._optimiser.step()
        self.state["step"] += 1
        return float(loss.detach())

    def run(self, checkpoint: Path) -> None:
        """Train for the given seconds, from the checkpoint where there is one."""
        if checkpoint.exists():
            self._load(checkpoint)
        before, started = self.state["seconds"], time.monotonic()
        last_save, losses = started, []
        while self.state["seconds"] < self.settings.seconds:
            losses.append(self.step())
            self.state["seconds"] = before + time.monotonic() - started
            if self.state["step"] % self.settings.log_steps == 0:
                logger.info("questions %s: loss %.3f", self.state, sum(losses) / len(losses))
                losses.clear()
            finished = self.state["seconds"] >= self.settings.seconds
            if time.monotonic() - last_save > self.settings.checkpoint_seconds or finished:
                last_save = time.monotonic()
                self._save(checkpoint)

    @torch.no_grad()
    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set what is trained."""
        for name, parameter in self.trained.items():
            parameter.copy_(values[name])

    def copies(self) -> dict[str, torch.Tensor]:
        """What is trained, as it is now."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def _save(self, checkpoint: Path) -> None:
        saved = {"trained": self.copies(), "optimiser": self._optimiser.state_dict(), "state": self.state}
        torch.save(saved, checkpoint)

    def _load(self, checkpoint: Path) -> None:
        saved = torch.load(checkpoint, weights_only=True)
        self.put(saved["trained"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self.state = saved["state"]
        logger.info("questions: resumed at %s", self.state)


def improve(trainer: QuestionTrainer, held_out: HeldOut, folder: Path) -> bool:
    """Train, and say whether held-out questions find more pages than before; if not, all is put back as it was.

    What is measured is what a bfloat16 file will hold.
    """
    first, before = trainer.copies(), held_out.ranks(trainer.scores)
    logger.info("questions: held-out before %s", _recall(before))
    trainer.run(folder / "questions.pt")
    trainer.put({name: value.bfloat16() for name, value in trainer.copies().items()})
    after = held_out.ranks(trainer.scores)
    found = paired_bootstrap(after == 0, before == 0, clusters=held_out.clusters())
    logger.info(
        "questions: held-out after %s; recall@1 %+.1f (95 %% %+.1f to %+.1f)",
        _recall(after), 100 * found.difference, 100 * found.low, 100 * found.high,
    )  # fmt: skip
    better = found.difference > 0
    if not better:
        trainer.put(first)
    return better


def _recall(ranks: np.ndarray) -> str:
    shares = ", ".join(f"@{depth} {100 * np.mean(ranks < depth):.1f}" for depth in (1, 3, 5))
    return f"recall {shares} on {len(ranks)} questions"
