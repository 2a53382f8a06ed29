"""What other versions of transformers change: nothing they announce is used, and what they take away is an error."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

from mmrh_retriever import AttentionCaptureError, Page, UnsupportedModelError
from mmrh_retriever.model.cpu_split_attention import attend
from mmrh_retriever.model.kv_cache import cache_argument
from tests.encoding.test_changed_models import QUESTION, reranker_for
from tests.encoding.test_full_pass import some_pages
from tests.factories import BUILDERS, TEXT_ONLY, tiny


class Heard(logging.Handler):
    """Everything that a logger says from a warning on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.mark.parametrize("name", list(BUILDERS))
def test_nobody_is_warned(name: str) -> None:
    model, heard = tiny(name), Heard()
    logger = logging.getLogger("transformers")
    logger.addHandler(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reranker = reranker_for(model)
            encoded = reranker.encode(some_pages(name, "mixed"))
            encoded.rank_many([QUESTION, "Which table shows revenue?"])
            if name not in TEXT_ONLY:
                encoded.explain(QUESTION)
    finally:
        logger.removeHandler(heard)
    assert heard.said == []


@pytest.mark.parametrize("name", ["qwen3_vl", "llama"])
def test_keys_that_the_model_does_not_take_are_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrh_retriever.encoding.passes.cache_argument", lambda _: "another_name")
    with pytest.raises(AttentionCaptureError, match=r"Layer 0 attends to \d+ keys; expected \d+ kept and \d+ new"):
        reranker_for(tiny(name)).rank(QUESTION, [Page(text="Revenue grew.")])


def test_attention_over_no_keys_is_an_error() -> None:
    query, key = torch.zeros(1, 2, 3, 8), torch.zeros(1, 1, 0, 8)
    with pytest.raises(AttentionCaptureError, match="no keys"):
        attend(query, key, key, scaling=1.0)


def test_a_decoder_that_takes_no_keys_by_either_name_is_refused() -> None:
    assert cache_argument(tiny("llama").model.model) in ("cache", "past_key_values")
    with pytest.raises(UnsupportedModelError, match="Linear takes neither cache nor past_key_values"):
        cache_argument(nn.Linear(1, 1))
