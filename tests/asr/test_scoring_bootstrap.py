from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.scoring.bootstrap import Bootstrap, f1, precision, ratio, recall


def test_sums_are_those_of_really_drawn_utterances() -> None:
    rng = np.random.default_rng(3)
    columns = rng.integers(0, 9, size=(17, 3)).astype(float)
    sums = Bootstrap(17, samples=130, seed=5).sums(columns)
    again = np.random.default_rng(5)
    drawn = [again.integers(17, size=17) for _ in range(130)]
    np.testing.assert_array_equal(sums, [columns[d].sum(axis=0) for d in drawn])


def test_interval_holds_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        lengths = rng.integers(5, 20, size=150)
        columns = np.stack([rng.binomial(lengths, 0.2), lengths], axis=1).astype(float)
        found = Bootstrap(150, samples=300, seed=trial).interval(columns, ratio)
        held += found.low <= 0.2 <= found.high
    assert 180 <= held <= 198


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=30)
def test_bounds_hold_the_value_of_a_constant_and_repeat_with_the_seed(
    rows: list[tuple[int, int]], seed: int
) -> None:
    columns = np.array(rows, dtype=float)
    first = Bootstrap(len(rows), samples=50, seed=seed).interval(columns, ratio)
    assert first == Bootstrap(len(rows), samples=50, seed=seed).interval(columns, ratio)
    assert first.value == pytest.approx(columns[:, 0].sum() / columns[:, 1].sum())
    assert columns[:, 0].min() / 9 <= first.low <= first.high <= 5
    same = Bootstrap(len(rows), samples=50, seed=seed).interval(columns[:, [1, 1]], ratio)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_f1_is_the_harmonic_mean(tp: int, fp: int, fn: int) -> None:
    sums = np.array([[tp, fp, fn]], dtype=float)
    p, r, both = precision(sums)[0], recall(sums)[0], f1(sums)[0]
    if tp:
        assert both == pytest.approx(2 / (1 / p + 1 / r))
    elif fp + fn:
        assert both == 0
    else:
        assert math.isnan(both)


def test_undefined_figures_are_nan_and_undefined_resamples_are_left_out() -> None:
    boot = Bootstrap(4, samples=200)
    nothing = boot.interval(np.zeros((4, 2)), ratio)
    assert all(math.isnan(x) for x in (nothing.value, nothing.low, nothing.high))
    assert nothing.to_dict() == {"value": None, "low": None, "high": None}
    rare = boot.interval(np.array([[1, 2], [0, 0], [0, 0], [0, 0]], dtype=float), ratio)
    assert (rare.value, rare.low, rare.high) == (0.5, 0.5, 0.5)


def test_paired_difference_sees_what_intervals_of_each_do_not() -> None:
    rng = np.random.default_rng(1)
    lengths = np.full(200, 10.0)
    errors = rng.integers(0, 9, size=200).astype(float)
    worse = np.stack([errors + (rng.random(200) < 0.2), lengths], axis=1)
    better = np.stack([errors, lengths], axis=1)
    boot = Bootstrap(200, samples=1000)
    a, b = boot.interval(worse, ratio), boot.interval(better, ratio)
    assert b.high > a.low, "the two intervals overlap"
    found = boot.difference(worse, better, ratio)
    assert found.value == pytest.approx(b.value - a.value)
    assert found.low <= found.value <= found.high < 0
    assert found.share < 0.001
    back = boot.difference(better, worse, ratio)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_no_difference_is_an_even_chance() -> None:
    columns = np.array([[1, 4], [0, 3], [2, 5]], dtype=float)
    found = Bootstrap(3, samples=100).difference(columns, columns, ratio)
    assert (found.value, found.low, found.high, found.share) == (0, 0, 0, 0.5)


@pytest.mark.parametrize(("utterances", "samples", "level"), [(0, 10, 0.9), (3, 0, 0.9), (3, 10, 1.0)])
def test_impossible_bootstraps_are_refused(utterances: int, samples: int, level: float) -> None:
    with pytest.raises(ValueError, match="need"):
        Bootstrap(utterances, samples=samples, level=level)
