"""Intervals and p-values against enumeration, hand examples and their own promises."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation import significance
from recbole_meta.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_gain,
    wilcoxon_p,
)


def all_resampled_means(values):
    return np.array([np.mean(drawn) for drawn in product(values, repeat=len(values))])


def test_interval_is_the_percentiles_of_all_resamples():
    values = [0.0, 0.1, 0.4, 0.2, 1.0, 0.7]
    mean, low, high = bootstrap_interval(values, resamples=100_000, level=0.8)
    assert mean == pytest.approx(0.4)
    expected = np.quantile(all_resampled_means(values), [0.1, 0.9])
    np.testing.assert_allclose([low, high], expected, atol=0.01)  # 1st and 99th: .3 away


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    drawn = rng.exponential(size=(400, 100))
    covered = 0
    for values in drawn:
        found = bootstrap_interval(values, resamples=400, level=0.8)
        covered += found.low <= 1 <= found.high
    assert 0.72 <= covered / 400 <= 0.84


def test_interval_of_equal_values_has_no_width():
    assert bootstrap_interval([0.5] * 30) == (0.5, 0.5, 0.5)
    assert bootstrap_interval([0.25]) == (0.25, 0.25, 0.25)


def test_tasks_without_a_value_are_left_out():
    values = np.random.default_rng(2).random(20)
    holes = np.insert(values, [0, 7, 20], np.nan)
    assert bootstrap_interval(holes) == bootstrap_interval(values)
    # A task that is nan in either of the two leaves both.
    a, b = np.array([1.0, np.nan, 3.0, 5.0]), np.array([0.5, 9.0, np.nan, 2.0])
    assert paired_gain(a, b).mean == pytest.approx((0.5 + 3.0) / 2)


def test_gain_is_paired():
    # The tasks differ widely, the gain hardly: unpaired, the interval would be 50 times as wide.
    rng = np.random.default_rng(3)
    baseline = rng.normal(size=300)
    values = baseline + 0.01 + 0.01 * rng.normal(size=300)
    found = paired_gain(values, baseline)
    assert found.mean == pytest.approx(np.mean(values - baseline))
    assert 0 < found.low < found.mean < found.high < 0.02
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.01 / 300**0.5, rel=0.15)
    other_way = paired_gain(baseline, values)
    np.testing.assert_allclose([other_way.low, other_way.high], [-found.high, -found.low])


def test_same_seed_same_numbers_and_another_seed_others():
    values, baseline = np.random.default_rng(4).random((2, 50))
    assert paired_gain(values, baseline, seed=5) == paired_gain(values, baseline, seed=5)
    assert paired_gain(values, baseline, seed=5) != paired_gain(values, baseline, seed=6)


def test_every_chunk_is_drawn_anew(monkeypatch):
    monkeypatch.setattr(significance, "CHUNK", 100)  # three resamples at a time, one in the last
    values = np.random.default_rng(5).random(30)
    means = significance._resampled_means(values, seed=0, resamples=1000)
    assert len(np.unique(means)) > 990
    assert means.std() == pytest.approx(values.std() / 30**0.5, rel=0.1)


def test_memory_does_not_grow_with_tasks_times_resamples():
    values = np.random.default_rng(5).random(20_000)
    tracemalloc.start()
    bootstrap_interval(values, resamples=500)  # 120 MB if held at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_wilcoxon_p_by_hand():
    # Six gains of one sign: two of 2^6 sign patterns are as extreme.
    gains = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert wilcoxon_p(gains, np.zeros(6)) == pytest.approx(2 / 64)
    assert wilcoxon_p(np.zeros(6), gains) == pytest.approx(2 / 64)
    assert wilcoxon_p([*gains, np.nan], np.zeros(7)) == pytest.approx(2 / 64)


def test_differences_by_rounding_are_no_differences():
    baseline = np.random.default_rng(8).random(40)
    assert wilcoxon_p(baseline, baseline) == 1.0
    one_ulp_more = np.nextafter(baseline, 2)
    assert wilcoxon_p(one_ulp_more, baseline) == 1.0
    assert paired_gain(one_ulp_more, baseline) == (0, 0, 0)
    assert wilcoxon_p(baseline * (1 + 1e-9), baseline) < 1e-6  # small, but a difference


def test_holm_by_hand():
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04, the last raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.6, ("b", 3): 0.02, "c": 0.5}) == pytest.approx(
        {"a": 1.0, ("b", 3): 0.06, "c": 1.0}
    )


@given(
    p=st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.02])), min_size=1, max_size=12)
)
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    adjusted = holm(p)
    assert np.all(adjusted >= p) and np.all(adjusted <= 1)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)
    for alpha in (0.0173, 0.0519, 0.2111):
        rejected = 0
        for value in sorted(p):  # while p <= alpha / (hypotheses left)
            if value * (len(p) - rejected) > alpha:
                break
            rejected += 1
        assert np.sum(adjusted <= alpha) == rejected


def test_holm_keeps_shape_and_keys():
    grid = np.array([[0.01, 0.2], [0.5, 0.001]])
    np.testing.assert_allclose(holm(grid), [[0.03, 0.4], [0.5, 0.004]])
    assert list(holm({"z": 0.1, "a": 0.2})) == ["z", "a"]
    assert holm({}) == {} and holm([]).shape == (0,)


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1])
def test_holm_refuses(wrong):
    with pytest.raises(DataError, match=r"1 of 3 p-values are not within \[0, 1\]"):
        holm([0.1, wrong, 0.2])


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(DataError, match="none of 2 tasks has a value"):
        bootstrap_interval([np.nan, np.nan])
    with pytest.raises(DataError, match="none of 2 tasks has a value"):
        wilcoxon_p([np.nan, 1.0], [1.0, np.nan])
    with pytest.raises(DataError, match="3 values and 1 baseline values"):
        paired_gain([1.0, 2.0, 3.0], [1.0])
    with pytest.raises(DataError, match=r"the shape \(1, 2\)"):
        paired_gain([[1.0, 2.0]], [1.0, 2.0])
    with pytest.raises(SettingError, match="level 95"):
        bootstrap_interval([1.0, 2.0], level=95)
    with pytest.raises(SettingError, match="resamples 0"):
        paired_gain([1.0, 2.0], [0.0, 1.0], resamples=0)
