"""Stage 2: the text tower learns to say what pages say; heads that look up the evidence grow sharp on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.reader.examples import ExampleMaker, shape_at
from tools.reader.fast_independent import independent_losses

logger = logging.getLogger(__name__)

LOOKING = ("q_proj", "k_proj", "norm")


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """How stage 2 runs."""

    seconds: float
    peak_rate: float = 1.5e-4  # of queries, keys and norms
    other_share: float = 0.3  # of that rate, for everything else: what cells say must stay legible
    decay_share: float = 0.4
    warmup_steps: int = 30
    looking_weight: float = 2.0  # of the helper loss on attention; 0 is without
    first_documents: int = 30  # encoded before the first step
    renew_steps: int = 24  # a new document on the shelf every so many steps
    checkpoint_seconds: float = 90.0
    log_steps: int = 25


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    maker: ExampleMaker,
    settings: LanguageSettings,
    folder: Path,
    evaluate: Callable[[Qwen2_5_VLForConditionalGeneration], str] | None = None,
    evaluate_steps: int = 150,
) -> None:
    """Train the text tower for the given seconds, from the checkpoint in `folder` where there is one.

    Its embedding stays as the vision stage made it. There are two losses: the next words of a question made of what a
    page says, and a helper, by which the page that a question is about gets the most attention.
    """
    text = model.model.language_model
    text.embed_tokens.weight.requires_grad_(False)
    parameters = list(text.parameters())
    looking = [value for name, value in text.named_parameters() if any(part in name for part in LOOKING)]
    chosen = {id(value) for value in looking}
    others = [value for value in parameters if id(value) not in chosen]
    optimiser = torch.optim.AdamW(
        [{"params": looking, "share": 1.0}, {"params": others, "share": settings.other_share}],
        lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01,
    )  # fmt: skip
    state = {"step": 0, "seconds": 0.0}
    checkpoint = folder / "language.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        text.load_state_dict(saved["text"])
        optimiser.load_state_dict(saved["optimiser"])
        state = saved["state"]
        logger.info("language: resumed at %s", state)
    if state["seconds"] >= settings.seconds:
        return
    while len(maker.shelf.documents) < settings.first_documents:
        maker.shelf.renew()
    logger.info("language: %d documents on the shelf", len(maker.shelf.documents))
    before, started = state["seconds"], time.monotonic()
    last_save, word_sum, looked_sum = started, 0.0, {}
    while state["seconds"] < settings.seconds:
        progress = state["seconds"] / settings.seconds
        rate = min(1.0, (state["step"] + 1) / settings.warmup_steps, (1 - progress) / settings.decay_share + 0.02)
        for group in optimiser.param_groups:
            group["lr"] = rate * settings.peak_rate * group["share"]
        if state["step"] % settings.renew_steps == 0:
            maker.shelf.renew()
        shape = shape_at(progress, maker.shelf.rng)
        example, tokens = maker.make(shape)
        word_loss, looked = independent_losses(model, example, tokens)
        optimiser.zero_grad(set_to_none=True)
        (word_loss + settings.looking_weight * torch.stack(looked).mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        word_sum += float(word_loss.detach())
        for number, loss in enumerate(looked):
            looked_sum.setdefault(number, []).append(float(loss.detach()))
        state["step"] += 1
        state["seconds"] = before + time.monotonic() - started
        if state["step"] % settings.log_steps == 0:
            by_layer = " ".join(f"{sum(losses) / len(losses):.2f}" for losses in looked_sum.values())
            logger.info(
                "language step %d seconds %.0f word loss %.2f looking loss by layer %s rate %.2g",
                state["step"], state["seconds"], word_sum / settings.log_steps, by_layer, rate * settings.peak_rate,
            )  # fmt: skip
            word_sum = 0.0
            looked_sum.clear()
        if evaluate is not None and state["step"] % evaluate_steps == 0:
            logger.info("language step %d: %s", state["step"], evaluate(model))
        if time.monotonic() - last_save > settings.checkpoint_seconds or state["seconds"] >= settings.seconds:
            last_save = time.monotonic()
            torch.save({"text": text.state_dict(), "optimiser": optimiser.state_dict(), "state": state}, checkpoint)
