"""Bootstrap intervals and paired differences against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrh_retriever.runs.bootstrap import bootstrap_interval, paired_bootstrap


def test_intervals_hold_the_mean_and_repeat_with_the_seed() -> None:
    values = np.random.default_rng(0).random(200)
    found = bootstrap_interval(values, seed=5)
    assert found == bootstrap_interval(values, seed=5)
    assert found.mean == pytest.approx(values.mean())
    assert found.low < found.mean < found.high
    # the normal approximation of the same interval
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.05)
    constant = bootstrap_interval([0.5] * 7)
    assert (constant.low, constant.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_macro_intervals_and_clusters() -> None:
    values = [1.0, 1.0, 1.0, 0.0]
    macro = bootstrap_interval(values, domains=["a", "a", "a", "b"])
    assert (macro.mean, macro.low, macro.high) == pytest.approx((0.5, 0.5, 0.5))
    one_document = bootstrap_interval([1.0, 0.0, 1.0], clusters=["d", "d", "d"])
    assert one_document.low == one_document.high == pytest.approx(2 / 3)
    rng = np.random.default_rng(1)
    same_within = np.repeat(rng.random(20) > 0.5, 10).astype(float)
    wide = bootstrap_interval(same_within, clusters=np.repeat(np.arange(20), 10).tolist())
    narrow = bootstrap_interval(same_within)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_paired_bootstrap_sees_a_difference_and_none() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(300)
    better = paired_bootstrap(base + 0.1 + 0.1 * rng.standard_normal(300), base)
    assert better.p < 0.001
    assert 0 < better.low < better.difference < better.high
    noise = paired_bootstrap(base + 0.1 * rng.standard_normal(300), base)
    assert noise.p > 0.01
    assert noise.low < 0 < noise.high
    same = paired_bootstrap(base, base)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_paired_p_values_are_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(4)
    found = [paired_bootstrap(rng.random(30), rng.random(30), samples=300, seed=i).p for i in range(150)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.12
    assert 0.4 < np.mean(found) < 0.6


def test_bootstrap_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="one value"):
        bootstrap_interval([1.0], clusters=["a", "b"])
    with pytest.raises(ValueError, match="one value"):
        bootstrap_interval([])
