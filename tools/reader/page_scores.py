"""The package's own score of pages, with gradients for the question's side: pages are encoded once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from mmrh_retriever import HeadSet
from mmrh_retriever.encoding.scoring import page_scores
from tools.reader.dialogue import NULL_QUESTION, PromptWriter, ShownPage
from tools.reader.fast_independent import Look, pages_alone, turns
from tools.reader.shelf import KeptPage, Shelf


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """What questions see of a page behind the prompt prefix, in the layers down to the deepest selected head."""

    page: KeptPage  # without its visual tokens
    keys: torch.Tensor  # (layers, heads, tokens, size) bfloat16; the prefix comes first
    values: torch.Tensor  # likewise
    begin: int  # of the tokens that count
    end: int
    extent: int  # rotary position behind it


class PageScores:
    """Scores of pages by a few heads' calibrated attention, as `Reranker` gives them for independent pages.

    A question's tokens and those of its label count by `token_weights`, (vocabulary,).
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        heads: HeadSet,
        token_weights: torch.Tensor,
        kept_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.text = model.model.language_model
        self.layers = self.text.layers[: heads.deepest_layer + 1]
        self.heads = heads
        self.writer = PromptWriter(tokenizer)
        self._weights = token_weights
        self._kept_dtype = kept_dtype

    @torch.no_grad()
    def encode(self, page: KeptPage, number: int) -> EncodedPage:
        """Encode a page under the label of this number, in float32."""
        prompt = self.writer.write([ShownPage(page.columns, page.rows)], [], first=number)
        embedded = self.text.embed_tokens(torch.from_numpy(np.maximum(prompt.ids, 0)))
        embedded[torch.from_numpy(prompt.ids < 0)] = page.tokens.to(embedded.dtype)
        positions = torch.from_numpy(prompt.positions)[:, None]
        turn = turns(self.text, embedded, positions, embedded.dtype)
        kept = pages_alone(self.layers, embedded[None], turn)
        keys, values = (torch.cat(parts).to(self._kept_dtype) for parts in zip(*kept, strict=True))
        extent = int(prompt.positions.max()) + 1
        return EncodedPage(replace(page, tokens=page.tokens[:0]), keys, values, *prompt.pages[0], extent)

    def __call__(self, pages: Sequence[EncodedPage], questions: Sequence[str]) -> torch.Tensor:
        """Each question's score of each page, (questions, pages) float64."""
        ids, weights = self._rows([*questions, NULL_QUESTION])
        embedded = self.text.embed_tokens(ids)
        order = torch.arange(ids.shape[1]) + max(page.extent for page in pages)
        turn = turns(self.text, embedded, order.expand(3, *ids.shape), embedded.dtype)
        page_of = self._page_of(pages)
        states, found = embedded, {}
        for number, layer in enumerate(self.layers):
            look = Look.of(layer, states, turn, self._seen([page.keys[number] for page in pages]))
            found[number] = look.mass(weights, page_of)
            if number < self.heads.deepest_layer:
                states = look.move(layer, states, self._seen([page.values[number] for page in pages]))
        mass = torch.stack([found[head.layer][:, head.head] for head in self.heads], dim=1)
        return page_scores(mass[:-1], mass[-1])

    def _rows(self, questions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids, (questions, tokens), padded on the right, and how much each counts; a row's weights sum to 1."""
        asked = [torch.tensor(self.writer.asked(question)) for question in questions]
        ids = torch.nn.utils.rnn.pad_sequence(asked, batch_first=True)
        there = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in asked], batch_first=True)
        weights = self._weights[ids] * there
        return ids, weights / weights.sum(1, keepdim=True)

    def _page_of(self, pages: Sequence[EncodedPage]) -> torch.Tensor:
        """(keys, pages): 1 where a key counts for a page."""
        prefix = self.writer.prefix_length
        counts = torch.zeros(prefix + sum(page.keys.shape[2] - prefix for page in pages), len(pages))
        start = prefix
        for number, page in enumerate(pages):
            counts[start + page.begin - prefix : start + page.end - prefix, number] = 1.0
            start += page.keys.shape[2] - prefix
        return counts

    def _seen(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """One layer's keys or values of pages as one stretch behind one prefix, (heads, keys, size) float32."""
        prefix = self.writer.prefix_length
        return torch.cat([states[0][:, :prefix], *(state[:, prefix:] for state in states)], dim=1).float()


def encode_documents(scores: PageScores, shelf: Shelf, count: int) -> list[list[EncodedPage]]:
    """The pages of `count` documents, each document's numbered from 1; they fill the shelf."""
    while len(shelf.documents) < count:
        shelf.renew()
    return [
        [scores.encode(page, number) for number, page in enumerate(document, start=1)] for document in shelf.documents
    ]
