"""The calibration that the bundled model brings."""

from __future__ import annotations

import hashlib

import pytest

from mmrh_retriever import Page, Reranker
from mmrh_retriever.model.loading import BUNDLED_FOLDER
from tests.factories import page_image

WEIGHTS = BUNDLED_FOLDER / "model.safetensors"
LEARNED_WITH = "50b2847aab863d40"
"""The weights' SHA-256, its beginning."""

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the bundled model is not installed")


def test_it_was_learned_with_these_weights() -> None:
    found = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]
    assert found == LEARNED_WITH, "other weights: learn mmrh_calibration.json anew, as docs/calibration.md says"


def test_it_holds_for_the_bundled_models_settings() -> None:
    reranker = Reranker.from_pretrained(check=False)
    assert reranker.calibration is not None, reranker.uncalibrated
    assert "generated questions" in reranker.calibration.source
    pages = [Page(image=page_image(number), text="revenue" * number, index=number) for number in range(3)]
    for hybrid in (True, False):
        found = reranker.with_hybrid(hybrid).rank("How did revenue change?", pages)
        assert all(scored.probability is not None and 0 < scored.probability < 1 for scored in found)
    assert reranker.with_heads("all").calibration is None
