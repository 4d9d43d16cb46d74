r"""How sure a mean over tasks, or a difference of two, is: the unit is the task.

Bootstrap: the interval is the percentiles of the mean of T tasks drawn with replacement. Holm's
p-values, of m sorted ones:

.. math::
    p^{Holm}_{(i)} = \max_{j \le i} \min(1, (m - j + 1) \, p_{(j)})

Reference:
    Efron and Tibshirani. "An Introduction to the Bootstrap." 1993, chapter 13.
    Holm. "A Simple Sequentially Rejective Multiple Test Procedure." Scand. J. Statist. 1979.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from recbole_meta.errors import DataError, SettingError

Floats = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

CHUNK = 1 << 20  # draws held in memory at a time
EQUAL = 1e-12  # two values this close, relatively, differ by rounding only


class Interval(NamedTuple):
    """A mean over tasks and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean over tasks with its percentile bootstrap interval; nan tasks are left out."""
    if not 0 < level < 1:
        raise SettingError(f"level {level}: allowed is more than 0 and less than 1.")
    present = _present(_vector(values))
    means = _resampled_means(present, seed, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(present.mean()), float(low), float(high))


def paired_gain(
    values: ArrayLike,
    baseline: ArrayLike,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean of values - baseline over the same tasks; a task that is nan in either is left out."""
    return bootstrap_interval(_gains(values, baseline), seed, resamples, level)


def wilcoxon_p(values: ArrayLike, baseline: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed rank test; 1 where no task differs."""
    gains = _gains(values, baseline)
    return float(stats.wilcoxon(gains).pvalue) if gains.any() else 1.0


@overload
def holm(p_values: Mapping[Key, float]) -> dict[Key, float]: ...
@overload
def holm(p_values: ArrayLike) -> Floats: ...
def holm(p_values: Mapping[Key, float] | ArrayLike) -> dict[Key, float] | Floats:
    """Holm's adjusted p-values, in the keys or the shape that came in; none for none."""
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values())).tolist(), strict=True))
    found = np.asarray(p_values, dtype=np.float64)
    wrong = ~((found >= 0) & (found <= 1))
    if wrong.any():
        raise DataError(f"{wrong.sum()} of {found.size} p-values are not within [0, 1].")
    flat = found.ravel()
    order = np.argsort(flat, kind="stable")
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(flat.size, 0, -1)).clip(max=1)
    return adjusted.reshape(found.shape)


def _vector(values: ArrayLike) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise DataError(f"one value per task is needed, found the shape {vector.shape}.")
    return vector


def _present(values: Floats) -> Floats:
    present = values[~np.isnan(values)]
    if not present.size:
        raise DataError(f"none of {values.size} tasks has a value: nothing to resample or test.")
    return present


def _gains(values: ArrayLike, baseline: ArrayLike) -> Floats:
    """Differences of the tasks present in both; 0 where they differ by rounding only."""
    values, baseline = _vector(values), _vector(baseline)
    if len(values) != len(baseline):
        raise DataError(f"{len(values)} values and {len(baseline)} baseline values: not the same.")
    rounding = EQUAL * np.maximum(np.abs(values), np.abs(baseline))
    gains = values - baseline
    return _present(np.where(np.abs(gains) <= rounding, 0.0, gains))


def _resampled_means(values: Floats, seed: int, resamples: int) -> Floats:
    """Means of as many tasks drawn with replacement, [R]."""
    if resamples < 1:
        raise SettingError(f"resamples {resamples}: allowed is 1 or more.")
    rng = np.random.default_rng(seed)
    n_tasks = len(values)
    rows = max(1, CHUNK // n_tasks)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        chunk = means[start : start + rows]
        drawn = rng.integers(n_tasks, size=(len(chunk), n_tasks), dtype=np.int32)
        chunk[:] = values[drawn].mean(axis=1)
    return means
