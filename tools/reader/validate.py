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
    """A question about one of several pages."""

    pages: tuple[tuple[int, int], ...]  # (document, page) as indices into `HeldOut`
    gold: int
    question: str


class HeldOut:
    """Pages of PDFs that training never sees, and questions made of their words."""

    def __init__(self, pdfs: Sequence[Path], layer: Layer, reader: PageReader, common: frozenset[str], seed: int) -> None:
        self._rng = random.Random(seed)
        self._layer = layer
        self._common = common
        self.paths = list(pdfs)
        self._rng.shuffle(self.paths)
        self._reader = reader
        self._read: dict[tuple[int, int], ReadablePage] = {}
        self._tokens: dict[tuple[int, int], tuple[torch.Tensor, int, int]] = {}

    def cases(self, count: int, pages: int) -> list[Case]:
        """Half of the cases have all pages from one document."""
        documents: dict[int, list[int]] = {}
        for number, path in enumerate(self.paths):
            with open_pdf(path) as document:
                numbers = list(range(len(document)))
                self._rng.shuffle(numbers)
                good = []
                for index in numbers[: 3 * pages]:
                    page = self._reader.read(document[index], drawn=False)
                    if 80 <= len(page.words) <= 1200 and page.width < page.height < 1.6 * page.width:
                        self._read[number, index] = page
                        good.append(index)
            if good:
                documents[number] = good[:pages]
            if sum(map(len, documents.values())) >= 160:
                break
        whole = [number for number, found in documents.items() if len(found) >= pages]
        every = [(number, index) for number, found in documents.items() for index in found]
        made: list[Case] = []
        while len(made) < count:
            if whole and len(made) % 2:
                number = self._rng.choice(whole)
                chosen = [(number, index) for index in self._rng.sample(documents[number], pages)]
            else:
                chosen = self._rng.sample(every, pages)
            gold = self._rng.randrange(pages)
            words = self._read[chosen[gold]].words
            start = self._rng.randrange(len(words) - 14)
            asked = as_question(words[start : start + self._rng.randint(8, 14)], self._rng, self._common)
            made.append(Case(tuple(chosen), gold, asked))
        return made

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
) -> torch.Tensor:
    """Null-calibrated attention mass of the question's tokens on each page: (layers, heads, pages)."""
    text = model.model.language_model
    shown = [held_out.tokens(model, key) for key in case.pages]
    blank = np.zeros((0, 2), np.int64)
    pages = [ShownPage(columns, rows, blank) for _, columns, rows in shown]
    laid = [layer.lay(pages, question, case.gold) for question in (case.question, NULL_QUESTION)]
    start = laid[0].question[0]
    ids = torch.from_numpy(np.maximum(laid[0].ids, 0))
    embedded = text.embed_tokens(ids)
    embedded[torch.from_numpy(laid[0].ids < 0)] = torch.cat([tokens for tokens, _, _ in shown])
    cache = DynamicCache()
    text.set_attn_implementation("sdpa")
    places = torch.from_numpy(laid[0].positions)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        text(inputs_embeds=embedded[None, :start], position_ids=places[:, :, :start], past_key_values=cache, use_cache=True)
    text.set_attn_implementation("eager")
    masses = []
    for one in laid:
        begin, end = one.question
        tail = text.embed_tokens(torch.from_numpy(one.ids[begin:end]))[None]
        where = torch.from_numpy(one.positions[:, begin:end])[:, None]
        cached = [(layer.keys.float(), layer.values.float()) for layer in cache.layers]
        out = text(
            inputs_embeds=tail, position_ids=where, past_key_values=DynamicCache(cached), use_cache=True, output_attentions=True
        )
        rows = torch.stack([weights[0].mean(1) for weights in out.attentions])  # (layers, heads, tokens)
        masses.append(torch.stack([rows[:, :, left:right].sum(-1) for left, right in one.pages], dim=-1))
    return masses[0] - masses[1]


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
    """Head by head, all heads together, and the best heads, chosen on the even cases and counted on the odd ones."""
    started = time.monotonic()
    held_out.forget()
    masses = np.stack([page_masses(model, held_out, layer, case).numpy() for case in cases])
    gold = np.array([case.gold for case in cases])
    recall = (masses.argmax(-1) == gold[:, None, None]).mean(0)
    on_gold = np.take_along_axis(masses, gold[:, None, None, None], axis=-1)[..., 0]
    chosen = np.argsort(-on_gold[::2].mean(0).ravel())[:best]
    flat = masses.reshape(len(masses), -1, masses.shape[-1])
    of_best = (flat[:, chosen].sum(1).argmax(-1) == gold)[1::2].mean()
    of_all = (flat.sum(1).argmax(-1) == gold).mean()
    logger.info(
        "validation: %d cases of %d pages, recall@1 all heads %.2f, best %d heads %.2f, best head %.2f; %.0f s",
        len(cases), masses.shape[-1], of_all, best, of_best, recall.max(), time.monotonic() - started,
    )  # fmt: skip
    return HeadTable(on_gold.mean(0), recall, float(of_all), float(of_best), len(cases))
