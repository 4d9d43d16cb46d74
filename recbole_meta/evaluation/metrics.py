r"""One value per task and metric: the expectation over the orders of tied items.

Place :math:`i` of a ranking lies in a group of :math:`n_i` candidates of equal score, :math:`p_i`
of them positive, at offset :math:`j_i = 0, 1, \dots` in it; the task has :math:`m` positives.

.. math::
    NDCG@c &= \sum_{i \le c} \frac{p_i / n_i}{\log_2(i + 1)}
              \Big/ \sum_{i \le \min(m, c)} \frac{1}{\log_2(i + 1)} \\
    Recall@c &= \frac{1}{m} \sum_{i \le c} \frac{p_i}{n_i} \\
    Hit@c &= 1 - s_c, \qquad MRR@c = \sum_{i \le c} \frac{s_{i-1} - s_i}{i} \\
    s_i &= s_{i-1} \Big(1 - \frac{p_i}{n_i - j_i}\Big), \qquad s_0 = 1

:math:`s_i` is the probability that places 1 to :math:`i` hold no positive: hypergeometric, written
as a product of at most K factors, so a group may have any size. A constant scorer gets exactly what
a random order gets in expectation.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recbole_meta.errors import DataError, SettingError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

SMALLER_IS_BETTER: frozenset[str] = frozenset({"mae", "rmse", "logloss"})

GRADED_CUTOFFS = (1, 3, 5)
BEST = 5  # the best rated rows of a query that count as its relevant ones
CLIP = 1e-7  # log loss: predictions are kept this far from 0 and 1


def sign(metric: str) -> int:
    """-1 for an error, whose smaller values are better; 1 for any other metric."""
    return -1 if metric in SMALLER_IS_BETTER else 1


def mean(values: Floats) -> float:
    """The mean over tasks without the nan ones; nan where no task has a value."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else np.nan


def ranking_metrics(
    hits: ArrayLike,
    score: ArrayLike,
    cut_tie_size: ArrayLike,
    cut_tie_positives: ArrayLike,
    n_positives: ArrayLike,
    cutoffs: Sequence[int] = (10,),
) -> dict[str, Floats]:
    """``ndcg@c``, ``recall@c``, ``mrr@c`` and ``hit@c`` of every cutoff c, each float64 [T].

    hits, score: [T, K], the listed items, best first; a score of -inf is an empty slot and no hit.
    cut_tie_size, cut_tie_positives: [T], the candidates whose score equals the K-th, listed or not,
    and the positives among them; not read where slot K is empty.
    n_positives: [T], all query items, those that are no candidates included; never 0.
    """
    score = np.asarray(score, dtype=np.float64)  # [T, K]
    n_positives = np.asarray(n_positives)  # [T]
    counts = {np.shape(cut_tie_size), np.shape(cut_tie_positives), n_positives.shape}
    if score.ndim != 2 or np.shape(hits) != score.shape or counts != {score.shape[:1]}:
        raise DataError(
            f"hits {np.shape(hits)} and score {score.shape} must have the shape [T, K], "
            f"the counts {sorted(counts)} the shape [T]."
        )
    width = score.shape[1]
    for cutoff in cutoffs:
        if not 1 <= cutoff <= width:
            raise SettingError(f"cutoff {cutoff}: the lists allow 1 to {width}.")
    listed = score > -np.inf
    hits = np.asarray(hits, dtype=bool) & listed

    first, last = _listed_groups(score)  # [T, K] each
    hits_before = np.pad(np.cumsum(hits, axis=1, dtype=np.intp), ((0, 0), (1, 0)))  # [T, K + 1]
    positives = np.take_along_axis(hits_before, last + 1, axis=1)  # [T, K]
    positives -= np.take_along_axis(hits_before, first, axis=1)
    size = last - first + 1  # [T, K]
    cut_size = np.where(listed[:, -1], cut_tie_size, size[:, -1])  # [T]
    cut_positives = np.where(listed[:, -1], cut_tie_positives, positives[:, -1])  # [T]
    all_positives = hits_before[:, -1] - positives[:, -1] + cut_positives
    unlisted = cut_size - size[:, -1]
    unlisted_positives = cut_positives - positives[:, -1]
    _refuse(n_positives < 1, "tasks have no positive query item: no ranking metric is defined")
    _refuse(
        ~(score[:, 1:] <= score[:, :-1]).all(axis=1) | np.isnan(score[:, 0]),
        "tasks have scores that do not descend, or NaN",
    )
    _refuse(
        (unlisted_positives < 0) | (unlisted_positives > unlisted) | (all_positives > n_positives),
        "tasks have cut_tie_size, cut_tie_positives or n_positives that contradict their list",
    )
    at_cut = last == width - 1
    size = np.where(at_cut, cut_size[:, None], size)
    positives = np.where(at_cut, cut_positives[:, None], positives)

    place = np.arange(width)
    relevance = positives / size  # [T, K], expected
    none_here = 1 - positives / (size - (place - first))
    none_so_far = np.cumprod(none_here, axis=1, dtype=np.float64)  # [T, K]
    is_first = -np.diff(none_so_far, axis=1, prepend=1.0)  # [T, K], P(first positive stands here)
    discount = 1 / np.log2(place + 2)
    ideal = np.cumsum(discount)
    dcg = np.cumsum(relevance * discount, axis=1)
    recalled = np.cumsum(relevance, axis=1)
    reciprocal = np.cumsum(is_first / (place + 1), axis=1)

    values: dict[str, Floats] = {}
    for cutoff in cutoffs:
        at = cutoff - 1
        values[f"ndcg@{cutoff}"] = dcg[:, at] / ideal[np.minimum(n_positives, cutoff) - 1]
        values[f"recall@{cutoff}"] = recalled[:, at] / n_positives
        values[f"mrr@{cutoff}"] = reciprocal[:, at].copy()
        values[f"hit@{cutoff}"] = 1 - none_so_far[:, at]
    return values


def graded_ndcg(
    gains: ArrayLike,
    score: ArrayLike,
    cut_tie_size: ArrayLike,
    cut_tie_gain: ArrayLike,
    ideal: ArrayLike,
) -> Floats:
    r"""NDCG of gains of at least 0 over all K listed places, float64 [T]; nan without a gain.

    .. math:: \frac{\sum_{i \le K} \bar g_i / \log_2(i + 1)}{\sum_{i \le K} g^*_i / \log_2(i + 1)}

    :math:`\bar g_i` is the mean gain of the candidates whose score equals that of place i.

    gains, score: [T, K], of the listed items, best first; a score of -inf is an empty slot.
    cut_tie_size, cut_tie_gain: [T], the candidates whose score equals the K-th, listed or not, and
    their gains' sum; not read where slot K is empty. ideal: [T, K], the largest gains, descending.
    """
    score = np.asarray(score, dtype=np.float64)  # [T, K]
    listed = score > -np.inf
    gains = np.where(listed, np.asarray(gains, dtype=np.float64), 0)
    first, last = _listed_groups(score)
    before = np.pad(np.cumsum(gains, axis=1), ((0, 0), (1, 0)))  # [T, K + 1]
    total = np.take_along_axis(before, last + 1, axis=1)
    total -= np.take_along_axis(before, first, axis=1)
    size = last - first + 1
    at_cut = (last == score.shape[1] - 1) & listed[:, -1:]
    size = np.where(at_cut, np.asarray(cut_tie_size)[:, None], size)
    total = np.where(at_cut, np.asarray(cut_tie_gain, dtype=np.float64)[:, None], total)
    discount = 1 / np.log2(np.arange(score.shape[1]) + 2)
    return _divide(total / size @ discount, np.asarray(ideal, dtype=np.float64) @ discount)


def rating_metrics(
    task: ArrayLike, label: ArrayLike, prediction: ArrayLike, n_tasks: int
) -> dict[str, Floats]:
    """``mae``, ``rmse`` and graded nDCG of the query rows, each float64 [T].

    task, label, prediction: [N], rows in any order, task in 0..T-1, at least one row per task.
    ``ndcg_linear@c`` takes the label as gain, ``ndcg_exp@c`` takes 2^label - 1; rows of equal
    prediction share their mean gain; nan for a task whose labels are all 0, and for every task
    where a label is negative: such a scale has no gains. ``precision_best@5`` and ``ndcg_best@5``
    take the five rows of the largest labels as relevant, rows tied at the fifth in expectation.
    """
    task, label, prediction, count = _rows(task, label, prediction, n_tasks)
    error = prediction - label
    values = {
        "mae": _sums(task, np.abs(error)) / count,
        "rmse": np.sqrt(_sums(task, error**2) / count),
        **_best_rated(task, label, prediction, count),
    }
    if (label < 0).any():
        graded = (f"ndcg_{name}@{c}" for name in ("linear", "exp") for c in GRADED_CUTOFFS)
        return values | {name: np.full(n_tasks, np.nan) for name in graded}
    order = np.lexsort((-prediction, task))
    ideal_order = np.lexsort((-label, task))
    by_task = task[order]
    place, group = _places_and_ties(by_task, prediction[order], count)
    # 2^label - 1 over 2^(the task's largest label): the ratio is the same and nothing overflows.
    largest = label[ideal_order][place == 0][task]
    gains = {"linear": label, "exp": np.exp2(label - largest) - np.exp2(-largest)}
    for name, gain in gains.items():
        expected = _group_mean(group, gain[order])
        for cutoff in GRADED_CUTOFFS:
            discount = np.where(place < cutoff, 1 / np.log2(place + 2), 0)
            dcg = _sums(by_task, expected * discount)
            ideal = _sums(by_task, gain[ideal_order] * discount)
            values[f"ndcg_{name}@{cutoff}"] = _divide(dcg, ideal)
    return values


def _best_rated(task: Ints, label: Floats, prediction: Floats, count: Ints) -> dict[str, Floats]:
    """Precision and binary nDCG at 5 where the five rows of the largest labels are relevant."""
    order, ideal_order = np.lexsort((-prediction, task)), np.lexsort((-label, task))
    by_task = task[order]
    place, ties = _places_and_ties(by_task, prediction[order], count)
    _, label_ties = _places_and_ties(by_task, label[ideal_order], count)
    relevant = np.empty(len(task))
    relevant[ideal_order] = _group_mean(label_ties, (place < BEST).astype(np.float64))
    expected = _group_mean(ties, relevant[order])
    first = place < BEST
    discount = np.where(first, 1 / np.log2(place + 2), 0)
    return {
        f"precision_best@{BEST}": _sums(by_task, expected * first) / np.minimum(count, BEST),
        f"ndcg_best@{BEST}": _sums(by_task, expected * discount) / _sums(by_task, discount),
    }


def label_metrics(
    task: ArrayLike, label: ArrayLike, prediction: ArrayLike, n_tasks: int
) -> dict[str, Floats]:
    """``auc`` and ``logloss`` of the query rows, each float64 [T].

    task, label, prediction: [N], rows in any order, task in 0..T-1, at least one row per task;
    labels 0 or 1, predictions are probabilities. ``auc`` counts a tie as one half and is nan for a
    task with one class; ``logloss`` keeps predictions within [1e-7, 1 - 1e-7].
    """
    task, label, prediction, count = _rows(task, label, prediction, n_tasks)
    other = (label != 0) & (label != 1)
    if other.any():
        raise DataError(
            f"{other.sum()} labels are neither 0 nor 1, the first is {label[other][0]}."
        )
    outside = (prediction < 0) | (prediction > 1)
    if outside.any():
        raise DataError(
            f"{outside.sum()} predictions lie outside [0, 1], the first is "
            f"{prediction[outside][0]}: log loss needs probabilities."
        )
    ones = _sums(task, label)
    zeros = count - ones
    if not (ones * zeros).any():
        raise DataError(f"one-class labels: none of {n_tasks} tasks has both a 0 and a 1.")
    order = np.lexsort((prediction, task))
    by_task = task[order]
    place, group = _places_and_ties(by_task, prediction[order], count)
    rank = _group_mean(group, place.astype(np.float64)) + 1
    ones_above = _sums(by_task, rank * label[order]) - ones * (ones + 1) / 2
    inside = prediction.clip(CLIP, 1 - CLIP)
    loss = -np.log(np.where(label == 1, inside, 1 - inside))
    return {"auc": _divide(ones_above, ones * zeros), "logloss": _sums(task, loss) / count}


def _refuse(bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        raise DataError(f"{bad.sum()} of {len(bad)} {what}; the first is task {bad.argmax()}.")


def _listed_groups(score: Floats) -> tuple[Ints, Ints]:
    """First and last listed place of the group that each place lies in, [T, K] each."""
    n_tasks, width = score.shape
    place = np.arange(width)
    differs = score[:, 1:] != score[:, :-1]
    edge = np.ones((n_tasks, 1), dtype=bool)
    opens = np.where(np.hstack([edge, differs]), place, 0)
    closes = np.where(np.hstack([differs, edge]), place, width)
    first = np.maximum.accumulate(opens, axis=1)
    last = np.minimum.accumulate(closes[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _rows(
    task: ArrayLike, label: ArrayLike, prediction: ArrayLike, n_tasks: int
) -> tuple[Ints, Floats, Floats, Ints]:
    """The checked columns and the number of rows per task."""
    task = np.asarray(task)
    label = np.asarray(label, dtype=np.float64)
    prediction = np.asarray(prediction, dtype=np.float64)
    if not task.ndim == label.ndim == prediction.ndim == 1 or not (
        len(task) == len(label) == len(prediction) > 0
    ):
        raise DataError(
            f"task {task.shape}, label {label.shape} and prediction {prediction.shape} "
            "must have one length, at least 1."
        )
    for name, column in (("labels", label), ("predictions", prediction)):
        broken = ~np.isfinite(column)
        if broken.any():
            raise DataError(f"{broken.sum()} of {len(column)} {name} are NaN or infinite.")
    if task.min() < 0 or task.max() >= n_tasks:
        raise DataError(
            f"tasks run from {task.min()} to {task.max()}, allowed is 0 to {n_tasks - 1}."
        )
    count = np.bincount(task, minlength=n_tasks)
    _refuse(count == 0, "tasks have no query row")
    return task, label, prediction, count


def _places_and_ties(task: Ints, prediction: Floats, count: Ints) -> tuple[Ints, Ints]:
    """Place in the task and number of the tie group, [N] each, of rows sorted by both."""
    place = np.arange(len(task)) - np.repeat(np.cumsum(count) - count, count)
    differs = (np.diff(prediction) != 0) | (np.diff(task) != 0)
    group = np.concatenate([[0], np.cumsum(differs)])
    return place, group


def _sums(number: Ints, value: Floats) -> Floats:
    """The sum of the values of each number."""
    return np.asarray(np.bincount(number, value), dtype=np.float64)


def _group_mean(group: Ints, value: Floats) -> Floats:
    """Every value replaced by the mean of its group, [N]."""
    mean: Floats = _sums(group, value) / np.bincount(group)
    return mean[group]


def _divide(over: Floats, under: Floats) -> Floats:
    """The quotient, nan where it has no meaning (a divisor of 0)."""
    quotient = np.full(len(over), np.nan)
    np.divide(over, under, out=quotient, where=under > 0)
    return quotient
