"""Every metric against a loop that tries all orders of the tied items, or against scikit-learn."""

from itertools import permutations
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom
from sklearn.metrics import log_loss, roc_auc_score

from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.metrics import (
    SMALLER_IS_BETTER,
    label_metrics,
    mean,
    ranking_metrics,
    rating_metrics,
    sign,
)

# -- Ranking -------------------------------------------------------------------------------------


def stored(scores, positive, width, elsewhere=0):
    """What a run keeps of one task: the top list, the tie at its cut, the number of positives."""
    scores, positive = np.array(scores, dtype=float), np.array(positive, dtype=bool)
    order = np.argsort(-scores, kind="stable")[:width]
    score, hits = np.full(width, -np.inf), np.zeros(width, dtype=bool)
    score[: len(order)], hits[: len(order)] = scores[order], positive[order]
    tied = scores == score[-1]
    return hits, score, tied.sum(), (tied & positive).sum(), positive.sum() + elsewhere


def together(tasks):
    return [np.array(column) for column in zip(*tasks, strict=True)]


def plain_ranking(relevant, n_positives, cutoff):
    """The four metrics of one untied ranking, by their definitions."""
    ranks = [rank for rank, hit in enumerate(relevant[:cutoff], 1) if hit]
    ideal = sum(1 / log2(rank + 1) for rank in range(1, min(n_positives, cutoff) + 1))
    return {
        f"ndcg@{cutoff}": sum(1 / log2(rank + 1) for rank in ranks) / ideal,
        f"recall@{cutoff}": len(ranks) / n_positives,
        f"mrr@{cutoff}": 1 / ranks[0] if ranks else 0.0,
        f"hit@{cutoff}": float(bool(ranks)),
    }


def mean_over_orders(scores, positive, n_positives, cutoff):
    """The mean of `plain_ranking` over every order of the candidates, ties left as they come."""
    found = []
    for order in permutations(range(len(scores))):
        ranking = sorted(order, key=lambda i: -scores[i])
        found.append(plain_ranking([positive[i] for i in ranking], n_positives, cutoff))
    return {name: np.mean([metrics[name] for metrics in found]) for name in found[0]}


@st.composite
def ranking_task(draw):
    candidates = draw(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
    scores, positive = zip(*candidates, strict=True)
    elsewhere = draw(st.integers(0 if any(positive) else 1, 3))
    return scores, positive, elsewhere


@settings(max_examples=80, deadline=None)
@given(tasks=st.lists(ranking_task(), min_size=1, max_size=3), width=st.integers(1, 5))
def test_ranking_is_the_mean_over_all_orders_of_tied_candidates(tasks, width):
    cutoffs = range(1, width + 1)
    columns = together([stored(scores, positive, width, more) for scores, positive, more in tasks])
    found = ranking_metrics(*columns, cutoffs)
    assert len(found) == 4 * width
    for i, (scores, positive, elsewhere) in enumerate(tasks):
        for cutoff in cutoffs:
            expected = mean_over_orders(scores, positive, sum(positive) + elsewhere, cutoff)
            for name, value in expected.items():
                assert found[name][i] == pytest.approx(value, abs=1e-12), name


def test_ranking_untied_by_hand():
    # Hits at ranks 2 and 4 of ten; four positives, two of them below the list.
    hits = np.isin(np.arange(10), [1, 3])[None]
    found = ranking_metrics(hits, np.arange(10, 0, -1)[None], [1], [0], [4], cutoffs=(1, 3, 10))
    ideal = 1 + 1 / log2(3) + 1 / 2 + 1 / log2(5)
    by_hand = {
        "ndcg@10": (1 / log2(3) + 1 / log2(5)) / ideal,
        "recall@10": 0.5,
        "mrr@10": 0.5,
        "hit@10": 1.0,
        "ndcg@3": (1 / log2(3)) / (1 + 1 / log2(3) + 1 / 2),
        "recall@3": 0.25,
        "mrr@3": 0.5,
        "hit@3": 1.0,
        "ndcg@1": 0.0,
        "recall@1": 0.0,
        "mrr@1": 0.0,
        "hit@1": 0.0,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(by_hand)
    assert all(value.dtype == np.float64 and value.shape == (1,) for value in found.values())


def test_ideal_stops_at_the_cutoff():
    hits = np.ones((1, 10), dtype=bool)
    found = ranking_metrics(hits, np.arange(10, 0, -1)[None], [1], [1], [25])
    assert found["ndcg@10"] == pytest.approx(1)
    assert found["recall@10"] == pytest.approx(10 / 25)


def test_constant_scorer_gets_what_random_orders_get():
    positive = [True, False, False, True, False, False, False]
    constant = ranking_metrics(*together([stored([5.0] * 7, positive, 4)]), (1, 2, 4))
    orders = [stored(scores, positive, 4) for scores in permutations(range(7))]
    untied = ranking_metrics(*together(orders), (1, 2, 4))
    for name, value in untied.items():
        assert constant[name].item() == pytest.approx(value.mean(), abs=1e-12), name


@pytest.mark.parametrize("n_tied", [10, 11, 100_000])
@pytest.mark.parametrize("n_hits", [1, 3, 8])
def test_tie_of_any_size_at_the_cut_is_hypergeometric(n_tied, n_hits):
    # Two untied misses, then a tie from rank 3 to far below the list; none of its hits is listed.
    score = np.array([[3.0, 2.0] + [1.0] * 8])
    hits = np.zeros((1, 10), dtype=bool)
    if n_tied - 8 < n_hits:  # some of them must be in the list
        hits[0, -(n_hits - (n_tied - 8)) :] = True
    found = ranking_metrics(hits, score, [n_tied], [n_hits], [20], (5, 10))
    for cutoff in (5, 10):
        places = cutoff - 2
        some = 1 - hypergeom.pmf(0, n_tied, n_hits, places)
        orders = comb(n_tied, n_hits)
        first = [comb(n_tied - j - 1, n_hits - 1) / orders for j in range(places)]
        mrr = sum(share / (3 + j) for j, share in enumerate(first))
        assert found[f"hit@{cutoff}"] == pytest.approx(some, rel=1e-8)
        assert found[f"mrr@{cutoff}"] == pytest.approx(mrr, rel=1e-8)
        assert found[f"recall@{cutoff}"] == pytest.approx(places * n_hits / n_tied / 20)


def test_hit_is_certain_once_a_tie_has_fewer_misses_than_places():
    found = ranking_metrics([[True, False, True]], [[1.0, 1.0, 1.0]], [4], [3], [3], (1, 2, 3))
    assert [found[f"hit@{c}"].item() for c in (1, 2, 3)] == [0.75, 1.0, 1.0]
    assert found["mrr@3"] == pytest.approx(0.75 + 0.25 / 2)


def test_empty_slots_never_hit_and_their_cut_tie_is_not_read():
    # Two candidates only; the slots behind them are marked as hits and carry a nonsense tie.
    hits, score = [[False, True, True, True]], [[2.0, 1.0, -np.inf, -np.inf]]
    found = ranking_metrics(hits, score, [99], [50], [2], (2, 4))
    assert found["recall@4"] == found["recall@2"] == 0.5
    assert found["mrr@4"] == 0.5
    assert found["ndcg@4"] == pytest.approx((1 / log2(3)) / (1 + 1 / log2(3)))
    nothing = ranking_metrics([[True] * 4], [[-np.inf] * 4], [0], [0], [2], (4,))
    assert {name: value.item() for name, value in nothing.items()} == dict.fromkeys(nothing, 0.0)


def test_tasks_do_not_see_each_other():
    rng = np.random.default_rng(3)
    tasks = [stored(rng.integers(0, 4, 30), rng.random(30) < 0.3, 10, 1) for _ in range(50)]
    columns = together(tasks)
    found = ranking_metrics(*columns, (3, 10))
    for i in (0, 17, 49):
        alone = ranking_metrics(*[column[i : i + 1] for column in columns], (3, 10))
        for name, value in alone.items():
            assert value[0] == found[name][i], name


UNTIED = {
    "hits": [[True, False], [False, True]],
    "score": [[2.0, 1.0], [2.0, 1.0]],
    "cut_tie_size": [1, 1],
    "cut_tie_positives": [0, 1],
    "n_positives": [1, 1],
    "cutoffs": (2,),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_positives": [1, 0]}, "1 of 2 tasks have no positive query item.*first is task 1"),
        ({"score": [[2.0, 1.0], [1.0, 2.0]]}, "1 of 2 tasks have scores that do not descend"),
        ({"score": [[2.0, 1.0], [2.0, np.nan]]}, "1 of 2 tasks have scores .* or NaN"),
        ({"cut_tie_size": [0, 1]}, "1 of 2 tasks have .* contradict"),
        ({"cut_tie_positives": [1, 1]}, "1 of 2 tasks have .* contradict"),  # unlisted: 0
        ({"cut_tie_positives": [0, 0]}, "1 of 2 tasks have .* contradict"),  # listed: 1
        ({"hits": [[True, True], [False, True]], "cut_tie_positives": [1, 1]}, "contradict"),
        ({"cut_tie_size": [3, 1], "cut_tie_positives": [1, 1]}, "1 of 2 tasks have .* contradict"),
        ({"hits": [[True], [False]]}, r"hits \(2, 1\) and score \(2, 2\)"),
        ({"cut_tie_size": [[1], [1]]}, r"the counts \[\(2,\), \(2, 1\)\]"),
    ],
)
def test_ranking_refuses(change, message):
    assert ranking_metrics(**UNTIED)["mrr@2"].tolist() == [1.0, 0.5]
    with pytest.raises(DataError, match=message):
        ranking_metrics(**UNTIED | change)


def test_ranking_refuses_nan_in_a_list_of_one():
    with pytest.raises(DataError, match=r"1 of 1 tasks have scores .* or NaN"):
        ranking_metrics([[True]], [[np.nan]], [1], [1], [1], (1,))


@pytest.mark.parametrize("cutoff", [0, 3])
def test_ranking_refuses_a_cutoff_that_the_lists_do_not_reach(cutoff):
    with pytest.raises(SettingError, match=f"cutoff {cutoff}: the lists allow 1 to 2"):
        ranking_metrics(**UNTIED | {"cutoffs": (cutoff,)})


# -- Rows ----------------------------------------------------------------------------------------


def plain_graded(labels, predictions, gain, cutoff):
    """Mean nDCG over every order of the rows, ties left as they come; nan without any gain."""
    best = sorted(map(gain, labels), reverse=True)
    ideal = sum(g / log2(i + 2) for i, g in enumerate(best[:cutoff]))
    if ideal == 0:
        return np.nan
    found = []
    for order in permutations(range(len(labels))):
        ranking = sorted(order, key=lambda i: -predictions[i])[:cutoff]
        found.append(sum(gain(labels[i]) / log2(r + 2) for r, i in enumerate(ranking)) / ideal)
    return np.mean(found)


def rows_of(tasks, seed):
    """The rows of all tasks, shuffled: task, label, prediction."""
    rows = [(t, *row) for t, rows in enumerate(tasks) for row in rows]
    shuffled = np.random.default_rng(seed).permutation(np.array(rows, dtype=float))
    return shuffled[:, 0].astype(int), shuffled[:, 1], shuffled[:, 2]


def row_tasks(labels, predictions, most):
    row = st.tuples(labels, predictions)
    return st.lists(st.lists(row, min_size=1, max_size=most), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(tasks=row_tasks(st.integers(0, 5), st.integers(-1, 2), 5), seed=st.integers(0, 99))
def test_rating_metrics_against_plain_loops(tasks, seed):
    found = rating_metrics(*rows_of(tasks, seed), len(tasks))
    for i, rows in enumerate(tasks):
        labels, predictions = zip(*rows, strict=True)
        errors = [p - y for y, p in rows]
        assert found["mae"][i] == pytest.approx(sum(map(abs, errors)) / len(rows))
        assert found["rmse"][i] == pytest.approx((sum(e * e for e in errors) / len(rows)) ** 0.5)
        for cutoff in (1, 3, 5):
            for name, gain in (("linear", float), ("exp", lambda y: 2**y - 1)):
                expected = plain_graded(labels, predictions, gain, cutoff)
                value = found[f"ndcg_{name}@{cutoff}"][i]
                assert value == pytest.approx(expected, abs=1e-12, nan_ok=True), (name, cutoff)


def test_rating_metrics_by_hand():
    # Task 1 is ranked worst first: gains 1, 3, 5 against the ideal 5, 3, 1. Task 0 has no gain.
    found = rating_metrics([1, 0, 1, 1], [5, 0, 1, 3], [1.0, 2.0, 3.0, 2.0], 2)
    assert set(found) == {"mae", "rmse"} | {
        f"ndcg_{g}@{c}" for g in ("linear", "exp") for c in (1, 3, 5)
    } | {"precision_best@5", "ndcg_best@5"}
    np.testing.assert_allclose(found["mae"], [2, 7 / 3])
    np.testing.assert_allclose(found["rmse"], [2, (21 / 3) ** 0.5])
    np.testing.assert_allclose(found["ndcg_linear@1"], [np.nan, 1 / 5])
    np.testing.assert_allclose(found["ndcg_exp@1"], [np.nan, 1 / 31])
    linear = (1 + 3 / log2(3) + 5 / 2) / (5 + 3 / log2(3) + 1 / 2)
    np.testing.assert_allclose(found["ndcg_linear@3"], [np.nan, linear])
    exponential = (1 + 7 / log2(3) + 31 / 2) / (31 + 7 / log2(3) + 1 / 2)
    np.testing.assert_allclose(found["ndcg_exp@3"], [np.nan, exponential])


@pytest.mark.filterwarnings("error")
def test_exponential_gain_of_large_labels_stays_finite():
    found = rating_metrics([0, 0, 0], [5000, 4999, 0], [1.0, 2.0, 3.0], 1)
    assert found["ndcg_exp@1"] == 0
    by_hand = (0.5 / log2(3) + 1 / 2) / (1 + 0.5 / log2(3))
    assert found["ndcg_exp@3"] == pytest.approx(by_hand)


def test_constant_prediction_gets_what_random_orders_get():
    labels = [5, 0, 3, 1]
    constant = rating_metrics([0] * 4, labels, [4.0] * 4, 1)
    orders = list(permutations(range(4)))
    rows = np.repeat(np.arange(len(orders)), 4), labels * len(orders), np.ravel(orders)
    untied = rating_metrics(*rows, len(orders))
    for name in ("ndcg_linear@1", "ndcg_linear@3", "ndcg_exp@1", "ndcg_exp@3"):
        assert constant[name].item() == pytest.approx(untied[name].mean()), name


def test_best_rated_of_a_constant_prediction_and_of_tied_labels():
    # Ten rows: a constant finds half of five relevant ones. Labels 5, 4 x 5, 1 x 4: the first row
    # is relevant for sure, each 4 with probability 4 / 5.
    labels = np.array([5, 4, 4, 4, 4, 4, 1, 1, 1, 1.0])
    constant = rating_metrics([0] * 10, labels, [3.0] * 10, 1)
    assert constant["precision_best@5"] == pytest.approx(0.5)
    assert constant["ndcg_best@5"] == pytest.approx(0.5)
    worst_first = rating_metrics([0] * 10, labels, np.arange(10.0), 1)
    assert worst_first["precision_best@5"] == pytest.approx(0.8 / 5)
    best_first = rating_metrics([0] * 10, labels, -np.arange(10.0), 1)
    assert best_first["precision_best@5"] == pytest.approx((1 + 4 * 0.8) / 5)
    discount = 1 / np.log2(np.arange(2, 7))
    by_hand = (discount[0] + 0.8 * discount[1:].sum()) / discount.sum()
    assert best_first["ndcg_best@5"] == pytest.approx(by_hand)
    few = rating_metrics([0, 0], [5, 1], [1.0, 2.0], 1)
    assert few["precision_best@5"] == few["ndcg_best@5"] == 1


@settings(max_examples=50, deadline=None)
@given(tasks=row_tasks(st.integers(1, 3), st.integers(0, 9), 8), seed=st.integers(0, 99))
def test_best_rated_against_drawn_orders(tasks, seed):
    found = rating_metrics(*rows_of(tasks, seed), len(tasks))["precision_best@5"]
    random = np.random.default_rng(seed)
    for i, rows in enumerate(tasks):
        label, prediction = np.array(rows, dtype=float).T
        size, values = min(5, len(rows)), []
        for _ in range(400):
            key = random.random((2, len(rows)))
            best = np.lexsort((key[0], -label))[:size]
            listed = np.lexsort((key[1], -prediction))[:size]
            values.append(len({*best} & {*listed}) / size)
        assert found[i] == pytest.approx(np.mean(values), abs=0.12)


@settings(max_examples=100, deadline=None)
@given(tasks=row_tasks(st.integers(0, 1), st.integers(0, 5), 12), seed=st.integers(0, 99))
def test_label_metrics_against_sklearn(tasks, seed):
    tasks = [*tasks, [(0, 2), (1, 3)]]  # one task with both classes
    tasks = [[(y, (p + 1) / 8) for y, p in rows] for rows in tasks]
    found = label_metrics(*rows_of(tasks, seed), len(tasks))
    assert set(found) == {"auc", "logloss"}
    for i, rows in enumerate(tasks):
        labels, predictions = zip(*rows, strict=True)
        both = len(set(labels)) == 2
        auc = roc_auc_score(labels, predictions) if both else np.nan
        loss = log_loss(labels, predictions, labels=[0, 1])
        assert found["auc"][i] == pytest.approx(auc, nan_ok=True)
        assert found["logloss"][i] == pytest.approx(loss)


def test_label_metrics_by_hand():
    # Task 0: of six (1, 0) pairs four are right, one is tied, one is wrong.
    task, label = [0] * 5 + [1], [1, 1, 0, 0, 0, 1]
    found = label_metrics(task, label, [0.9, 0.5, 0.7, 0.5, 0.1, 0.0], 2)
    np.testing.assert_allclose(found["auc"], [4.5 / 6, np.nan])
    assert found["logloss"][1] == pytest.approx(-np.log(1e-7))
    sure = label_metrics([0, 0], [1, 0], [1.0, 0.0], 1)
    assert sure["logloss"] == pytest.approx(1e-7)
    assert sure["auc"] == 1.0


@pytest.mark.parametrize("metrics", [rating_metrics, label_metrics])
@pytest.mark.parametrize(
    ("task", "label", "prediction", "n_tasks", "message"),
    [
        ([0, 0, 0], [1, 0, 1], [np.nan, 0.5, np.nan], 1, "2 of 3 predictions are NaN"),
        ([0, 0, 0], [1, 0, np.nan], [0.1, 0.5, 0.2], 1, "1 of 3 labels are NaN"),
        ([0, 2], [1, 0], [0.1, 0.5], 3, "1 of 3 tasks have no query row; the first is task 1"),
        ([0, 0], [1, 0], [0.1, 0.5], 2, "1 of 2 tasks have no query row; the first is task 1"),
        ([0, 2], [1, 0], [0.1, 0.5], 2, "from 0 to 2, allowed is 0 to 1"),
        ([-1, 0], [1, 0], [0.1, 0.5], 1, "from -1 to 0, allowed is 0 to 0"),
        ([0, 0], [1, 0], [0.1], 1, "must have one length"),
        ([], [], [], 0, "must have one length, at least 1"),
    ],
)
def test_rows_refuse(metrics, task, label, prediction, n_tasks, message):
    with pytest.raises(DataError, match=message):
        metrics(task, label, prediction, n_tasks)


@pytest.mark.filterwarnings("error")
def test_a_scale_with_negative_labels_has_no_gains():
    """Not for the users without a negative one, either: they are no sample of all."""
    found = rating_metrics([0, 0, 1], [-9000, 2, 3], [0.0, 1.0, 1.0], 2)
    np.testing.assert_allclose(found["mae"], [9001 / 2, 2])
    graded = {name: value for name, value in found.items() if name.startswith(("ndcg_l", "ndcg_e"))}
    assert list(found) == list(rating_metrics([0], [1], [1], 1)) and len(graded) == 6
    assert all(np.isnan(value).all() and value.shape == (2,) for value in graded.values())


@pytest.mark.filterwarnings("error")
def test_the_mean_leaves_out_tasks_without_a_value():
    assert mean(np.array([1.0, np.nan, 4.0])) == 2.5
    assert np.isnan(mean(np.array([np.nan, np.nan])))


@pytest.mark.parametrize(
    ("label", "prediction", "message"),
    [
        ([1, 4, 0], [0.1, 0.2, 0.3], r"1 labels are neither 0 nor 1, the first is 4\.0"),
        ([1, 0, 0], [0.1, -0.5, 1.5], r"2 predictions lie outside \[0, 1\], the first is -0\.5"),
        ([1, 1, 0], [0.1, 0.2, 0.3], "one-class labels: none of 2 tasks"),
    ],
)
def test_label_metrics_refuse(label, prediction, message):
    with pytest.raises(DataError, match=message):
        label_metrics([0, 0, 1], label, prediction, 2)


def test_smaller_is_better_for_errors_and_losses_only():
    rated = rating_metrics([0, 0], [1, 0], [0.5, 0.4], 1)
    labelled = label_metrics([0, 0], [1, 0], [0.5, 0.4], 1)
    ranked = ranking_metrics(**UNTIED)
    assert {sign(metric) for metric in SMALLER_IS_BETTER} == {-1}
    assert {sign("ndcg@10"), sign("auc"), sign("ndcg_exp@3")} == {1}
    assert SMALLER_IS_BETTER & {*rated, *labelled, *ranked} == {"mae", "rmse", "logloss"}
