"""Held-out real pages, whole, through the stock image processor and the stock model: which heads find the page."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pymupdf
import torch
from PIL import Image
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from tools.reader.dialogue import NULL_QUESTION, Layer, ShownPage, as_question
from tools.reader.labels import MERGE
from tools.reader.model import image_processor
from tools.reader.pages import PageReader, ReadablePage, open_pdf

logger = logging.getLogger(__name__)

PAGE_DPI = 110


@dataclass(frozen=True, slots=True)
class Case:
    """Pages and questions about them."""

    pages: tuple[tuple[int, int], ...]  # (document, page) as indices into `HeldOut`
    questions: tuple[tuple[str, int], ...]  # with the gold page's place in `pages`


class HeldOut:
    """Pages of PDFs that training never sees, and questions made of their words."""

    def __init__(
        self, pdfs: Sequence[Path], layer: Layer, reader: PageReader, common: frozenset[str], seed: int
    ) -> None:
        self._rng = random.Random(seed)
        self._layer = layer
        self._common = common
        self.paths = list(pdfs)
        self._rng.shuffle(self.paths)
        self._reader = reader
        self._tokens: dict[tuple[int, int], tuple[torch.Tensor, int, int]] = {}

    def _pages(self, number: int, most: int) -> dict[tuple[int, int], ReadablePage]:
        """Upright pages of running text of one document."""
        found: dict[tuple[int, int], ReadablePage] = {}
        with open_pdf(self.paths[number]) as document:
            indices = list(range(len(document)))
            self._rng.shuffle(indices)
            for index in indices[: 2 * most]:
                page = self._reader.read(document[index], drawn=False)
                if 80 <= len(page.words) <= 1200 and page.width < page.height < 1.6 * page.width:
                    found[number, index] = page
        return dict(list(found.items())[:most])

    def cases(self, count: int, pages: int, questions: int = 5) -> list[Case]:
        """Alternately of one document and of several."""
        made: list[Case] = []
        mixed: dict[tuple[int, int], ReadablePage] = {}
        for number in range(len(self.paths)):
            found = self._pages(number, pages)
            if len(made) % 2 == 0 and len(found) == pages:
                made.append(self._case(found, questions))
            else:
                mixed.update(list(found.items())[:3])
            if len(mixed) >= pages and len(made) % 2:
                made.append(self._case(dict(list(mixed.items())[:pages]), questions))
                mixed.clear()
            if len(made) >= count:
                return made
        raise ValueError(
            f"got {len(made)} groups of {pages} pages out of {len(self.paths)} held-out PDFs; expected {count}: "
            "give more --documents"
        )

    def _case(self, pages: dict[tuple[int, int], ReadablePage], questions: int) -> Case:
        asked = []
        for _ in range(questions):
            gold = self._rng.randrange(len(pages))
            words = list(pages.values())[gold].words
            start = self._rng.randrange(len(words) - 14)
            snippet = words[start : start + self._rng.randint(8, 14)]
            asked.append((as_question(snippet, self._rng, self._common), gold))
        return Case(tuple(pages), tuple(asked))

    @torch.no_grad()
    def tokens(self, model: Qwen2_5_VLForConditionalGeneration, key: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        """Visual tokens of a page with its columns and rows."""
        if key not in self._tokens:
            with open_pdf(self.paths[key[0]]) as document:
                pixmap = document[key[1]].get_pixmap(dpi=PAGE_DPI, alpha=False, colorspace=pymupdf.csRGB)
            image = Image.frombytes("RGB", (pixmap.width, pixmap.height), pixmap.samples)
            inputs = image_processor()(images=[image], return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                found = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
            _, height, width = inputs["image_grid_thw"][0].tolist()
            self._tokens[key] = (found.float(), width // MERGE, height // MERGE)
        return self._tokens[key]

    def forget(self) -> None:
        """Drop the pages' visual tokens; the tower has changed."""
        self._tokens.clear()


@torch.no_grad()
def page_masses(
    model: Qwen2_5_VLForConditionalGeneration, held_out: HeldOut, layer: Layer, case: Case
) -> list[torch.Tensor]:
    """Of each question the null-calibrated attention mass of its tokens on each page: (layers, heads, pages).

    Pages are encoded one by one behind the prompt's head; questions see all of them. Plain `output_attentions`.
    """
    text = model.model.language_model
    shown = [held_out.tokens(model, key) for key in case.pages]
    pages = [ShownPage(columns, rows, np.zeros((0, 2), np.int64)) for _, columns, rows in shown]
    laid = layer.lay(pages, [*case.questions, (NULL_QUESTION, 0)])
    embedded = text.embed_tokens(torch.from_numpy(np.maximum(laid.ids, 0)))
    embedded[torch.from_numpy(laid.ids < 0)] = torch.cat([tokens for tokens, _, _ in shown]).to(embedded.dtype)
    places = torch.from_numpy(laid.positions)[:, None]
    head = np.flatnonzero(laid.segments == 0)
    stacks: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    text.set_attn_implementation("sdpa")
    for number in range(1, len(pages) + 1):
        chosen = torch.from_numpy(np.concatenate([head, np.flatnonzero(laid.segments == -number)]))
        cache = DynamicCache()
        with torch.autocast("cpu", torch.bfloat16):
            text(
                inputs_embeds=embedded[None, chosen],
                position_ids=places[:, :, chosen],
                past_key_values=cache,
                use_cache=True,
            )
        skip = 0 if number == 1 else len(head)
        stacks.append([(one.keys[:, :, skip:].float(), one.values[:, :, skip:].float()) for one in cache.layers])
    joined = [
        tuple(torch.cat(parts, dim=2) for parts in zip(*layers, strict=True)) for layers in zip(*stacks, strict=True)
    ]
    text.set_attn_implementation("eager")
    masses = []
    for begin, end in laid.questions:
        out = text(
            inputs_embeds=embedded[None, begin:end].float(),
            position_ids=places[:, :, begin:end],
            past_key_values=DynamicCache(joined),
            use_cache=True,
            output_attentions=True,
        )
        rows = torch.stack([weights[0].mean(1) for weights in out.attentions])  # (layers, heads, tokens)
        masses.append(torch.stack([rows[:, :, left:right].sum(-1) for left, right in laid.pages], dim=-1))
    text.set_attn_implementation("sdpa")
    return [mass - masses[-1] for mass in masses[:-1]]


@dataclass(frozen=True, slots=True)
class HeadTable:
    """What validation found, head by head."""

    scores: np.ndarray  # (layers, heads): mean calibrated mass on the gold page
    recall: np.ndarray  # (layers, heads): share of cases whose gold page gets the most
    all_heads: float
    best_heads: float
    examples: int

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(
            json.dumps(
                {
                    "examples": self.examples,
                    "recall@1_all_heads": self.all_heads,
                    "recall@1_best_heads": self.best_heads,
                    "mean_score": self.scores.round(5).tolist(),
                    "recall@1": self.recall.round(4).tolist(),
                },
                indent=1,
            )
        )


def validate(
    model: Qwen2_5_VLForConditionalGeneration, held_out: HeldOut, layer: Layer, cases: Sequence[Case], best: int = 6
) -> HeadTable:
    """Head by head, all heads together, and the best heads: chosen on even questions, counted on odd ones."""
    started = time.monotonic()
    held_out.forget()
    masses = np.stack([mass.numpy() for case in cases for mass in page_masses(model, held_out, layer, case)])
    gold = np.array([gold for case in cases for _, gold in case.questions])
    recall = (masses.argmax(-1) == gold[:, None, None]).mean(0)
    on_gold = np.take_along_axis(masses, gold[:, None, None, None], axis=-1)[..., 0]
    chosen = np.argsort(-on_gold[::2].mean(0).ravel())[:best]
    flat = masses.reshape(len(masses), -1, masses.shape[-1])
    of_best = (flat[:, chosen].sum(1).argmax(-1) == gold)[1::2].mean()
    of_all = (flat.sum(1).argmax(-1) == gold).mean()
    logger.info(
        "validation: %d questions about %d pages, recall@1 all heads %.2f, best %d heads %.2f, best head %.2f; %.0f s",
        len(masses), masses.shape[-1], of_all, best, of_best, recall.max(), time.monotonic() - started,
    )  # fmt: skip
    return HeadTable(on_gold.mean(0), recall, float(of_all), float(of_best), len(masses))
