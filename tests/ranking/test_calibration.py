"""Probabilities: the formula, what they depend on, and where a calibration holds."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrh_retriever import DataError, HeadSet, Page, Reranker, SettingsError
from mmrh_retriever.heads.published import HEADS_FILE
from mmrh_retriever.ranking.calibration import (
    ATTENTION,
    CALIBRATION_FILE,
    HYBRID,
    Calibration,
    Logistic,
    features,
    passing,
)
from tests.factories import page_image, tiny

TEXTS = ["Revenue grew by nine percent.", "Staff numbers and water use.", "", "The report shows emissions of revenue."]
QUESTION = "How did revenue grow?"


def logistic(names: tuple[str, ...], intercept: float, *weights: float) -> Logistic:
    return Logistic(intercept=intercept, weights=dict(zip(names, weights, strict=True)))


def reranker(**options: Any) -> Reranker:
    model = tiny("qwen3_vl")
    return Reranker(model.model, (model.tokenizer, model.image_processor), "all", independent=True, **options)


def calibration_of(one: Reranker, **changes: Any) -> Calibration:
    given = {
        "model": one.backbone.name,
        "heads": [str(head) for head in one.heads],
        "settings": one.calibrated_settings,
        "source": "a test",
        "attention": logistic(ATTENTION, -1.0, 40.0, 20.0),
        "hybrid": logistic(HYBRID, -2.0, 30.0, 10.0, 1.0, 0.5),
    }
    return Calibration(**{**given, **changes})


def pages() -> list[Page]:
    return [Page(image=page_image(n), text=text or None, doc_id="a", index=n) for n, text in enumerate(TEXTS)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_features_are_a_pages_scores_and_how_far_they_are_above_the_others() -> None:
    attention, text = np.array([0.1, 0.4, -0.1]), np.array([2.0, np.nan, 5.0])
    np.testing.assert_allclose(features(attention), [[0.1, -0.3], [0.4, 0.3], [-0.1, -0.5]])
    np.testing.assert_allclose(features(attention, text), [[0.1, -0.3, 2, -3], [0.4, 0.3, 0, -5], [-0.1, -0.5, 5, 3]])
    assert features(np.array([0.2, 0.2, 0.1]))[:, 1].tolist() == pytest.approx([0, 0, -0.1])  # equals
    assert features(np.array([0.2])).tolist() == [[0.2, 0.2]]  # nothing but the null question to compare with


def test_a_list_by_images_alone_takes_the_function_of_attention() -> None:
    one = reranker(hybrid=False)
    found = one.with_calibration(calibration_of(one)).rank(QUESTION, pages())
    scores = [scored.score for scored in found]
    for rank, scored in enumerate(found):
        above = scored.score - max(scores[:rank] + scores[rank + 1 :])
        assert scored.probability == pytest.approx(sigmoid(-1 + 40 * scored.score + 20 * above))
    assert [scored.probability for scored in one.rank(QUESTION, pages())] == [None] * 4


def test_in_a_hybrid_list_pages_with_text_take_the_other_function() -> None:
    one = reranker(hybrid=True)
    found = one.with_calibration(calibration_of(one)).rank(QUESTION, pages())
    for scored in found:
        others = [other for other in found if other is not scored]
        attention = scored.attention_score or 0.0
        above = attention - max(other.attention_score or 0.0 for other in others)
        if scored.text_score is None:
            expected = sigmoid(-1 + 40 * attention + 20 * above)
        else:
            text_above = scored.text_score - max(other.text_score or 0.0 for other in others)
            expected = sigmoid(-2 + 30 * attention + 10 * above + scored.text_score + 0.5 * text_above)
        assert scored.probability == pytest.approx(expected)
    assert {scored.text_score is None for scored in found} == {True, False}
    images = one.with_calibration(calibration_of(one, hybrid=None)).rank(QUESTION, pages())
    assert all((scored.probability is None) == (scored.text_score is not None) for scored in images)


def test_a_pages_position_does_not_count() -> None:
    one = reranker(hybrid=True)
    one = one.with_calibration(calibration_of(one))
    given = pages()
    found = {scored.page.index: scored.probability for scored in one.rank(QUESTION, given)}
    turned = {scored.page.index: scored.probability for scored in one.encode(given[::-1]).rank(QUESTION)}
    assert turned == pytest.approx(found, abs=1e-6)
    (alone,) = one.rank(QUESTION, given[2:3])
    assert alone.probability == pytest.approx(sigmoid(-1 + 60 * alone.score))


def test_a_file_beside_the_model_is_found_if_it_holds(tmp_path: Path) -> None:
    fresh = tiny("qwen3_vl")
    for part in (fresh.model, fresh.tokenizer, fresh.image_processor):
        part.save_pretrained(tmp_path)
    HeadSet.all_heads(3, 4).save(tmp_path / HEADS_FILE)
    plain = Reranker.from_pretrained(tmp_path, independent=True)
    assert plain.calibration is None
    assert plain.uncalibrated.startswith("no mmrh_calibration.json stands beside the model")
    calibration_of(plain).save(tmp_path / CALIBRATION_FILE)
    found = Reranker.from_pretrained(tmp_path, independent=True)
    assert found.calibration == calibration_of(plain)
    assert found.with_hybrid(True).calibration == found.calibration
    assert Reranker.from_pretrained(tmp_path, independent=True, calibration=None).calibration is None
    together = Reranker.from_pretrained(tmp_path, independent=False)
    assert together.calibration is None
    assert "does not hold here: it was learned with independent: True, here it is False" in together.uncalibrated
    few = found.with_heads(HeadSet.parse(["1-1"]))
    assert few.calibration is None
    assert "it was learned for 12 heads (0-0, 0-1, 0-2, 0-3, 1-0 ...), not for 1 heads (1-1)" in few.uncalibrated
    assert found.with_heads(found.heads).calibration == found.calibration


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "org/another"}, "it was learned for the model org/another, not for Qwen3VL"),
        ({"heads": ["1-1"]}, r"it was learned for 1 heads \(1-1\), not for 12 heads"),
        ({"settings": {"calibrate": False}}, "it was learned with calibrate: False, here it is True"),
    ],
)
def test_a_given_calibration_that_does_not_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    one = reranker()
    other = calibration_of(one, **{**changes, "settings": one.calibrated_settings | changes.get("settings", {})})
    with pytest.raises(SettingsError, match=expected):
        one.with_calibration(other)
    other.save(tmp_path / "other.json")
    with pytest.raises(SettingsError, match=f"other.json does not hold here: {expected}"):
        reranker(calibration=tmp_path / "other.json")


def test_files_that_are_no_calibration_are_refused(tmp_path: Path) -> None:
    content = json.loads(calibration_of(reranker()).model_dump_json())
    for change, expected in [
        ({"attention": content["hybrid"]}, "expected weights of attention, attention_margin, got attention, "),
        ({"format": "mmrh-head-set"}, "format: Input should be 'mmrh-calibration'"),
        ({"heads": []}, "heads: List should have at least 1 item"),
    ]:
        (tmp_path / "wrong.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=f"wrong.json: not a valid calibration: .*{expected}"):
            reranker(calibration=tmp_path / "wrong.json")


def test_probabilities_need_no_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    one = reranker()
    found = one.with_calibration(calibration_of(one)).rank(QUESTION, pages())
    assert all(scored.probability is not None for scored in found)


def test_pages_that_pass(caplog: pytest.LogCaptureFixture) -> None:
    assert passing([0.2, 0.5, 0.9], 0.5, "") == [False, True, True]
    assert passing([], 0.5, "") == []
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert passing([0.2, 0.31], 0.5, "") == [False, False]
    assert caplog.messages == [
        "None of 2 pages is evidence with a probability of 0.5 or more; the most probable has 0.31."
    ]
    with pytest.raises(SettingsError, match="min_probability=0.5 needs a calibration: none stands there"):
        passing([None], 0.5, "none stands there")
    with pytest.raises(SettingsError, match="holds none for pages with a text layer"):
        passing([0.3, None], 0.5, "")
