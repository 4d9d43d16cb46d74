"""Closed forms and floors against loops, ``numpy.linalg``, ``Counter`` and ``statistics``."""

import statistics
from collections import Counter, defaultdict

import numpy as np
import pytest

from recbole_meta.data.warm import WarmUsers
from recbole_meta.fitting import judge_learner
from recbole_meta.model.baseline.ease_fold_in import inverse

pytestmark = pytest.mark.usefixtures("float64")

SUPPORTS = ([], [3], [12, 5], [1, 20, 9], [7, 30, 2, 14, 23])


@pytest.fixture
def warm(worlds):
    """(user, item id, position) of the rows that closed forms may read."""
    rows = worlds["implicit"].warm_rows("test")
    return list(zip(rows["user"], rows["item"], rows["position"], strict=True))


def table(rows, fitted, start=0, stop=10_000) -> np.ndarray:
    """0/1 of the rows in these positions, [U, I], users by token."""
    users = {user: row for row, user in enumerate(sorted({user for user, _, _ in rows}))}
    x = np.zeros((len(users), fitted.model.n_items))
    for user, item, position in rows:
        if start <= position < stop:
            x[users[user], fitted.id_of("item")[item]] = 1
    return x


def query_table(rows, fitted) -> np.ndarray:
    start = fitted.prepared.query_start
    return table(rows, fitted, start, start + fitted.prepared.horizon)


def directions(x: np.ndarray, size: int) -> np.ndarray:
    _, s, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return (vt.T * s)[:, :size] / np.sqrt(len(x))


def assert_scores(fitted, expected) -> None:
    """``expected(items)`` [I] for each support, items by id."""
    found = fitted.scores_after(*SUPPORTS)
    for items, scores in zip(SUPPORTS, found, strict=True):
        np.testing.assert_allclose(scores, expected(items), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", ["pop", "query_pop"])
@pytest.mark.parametrize(("size", "noise"), [(3, 0.05), (3, 1.0), (64, 0.3)])
def test_prior_ridge(worlds, fit, warm, size, noise, base):
    fitted = fit(
        worlds["implicit"],
        "PriorRidge",
        embedding_size=size,
        noise=noise,
        base=base,
        base_weight=1.5,
    )
    x = table(warm, fitted)
    p, v = x.mean(axis=0), directions(x, size)
    prior = 1.5 * (p if base == "pop" else query_table(warm, fitted).mean(axis=0))

    def primal(items):
        v_s = v[items]
        precision = v_s.T @ v_s / noise + np.eye(v.shape[1])
        return prior + v @ np.linalg.solve(precision, v_s.T @ (1 - p[items]) / noise)

    def dual(items):
        covariance = (v @ v.T)[np.ix_(items, items)] + noise * np.eye(len(items))
        return prior + (v @ v.T)[:, items] @ np.linalg.solve(covariance, 1 - p[items])

    assert_scores(fitted, primal)
    assert_scores(fitted, dual)


@pytest.mark.parametrize(("size", "reg"), [(3, 1.0), (64, 0.1)])
def test_episodic_ridge(worlds, fit, warm, size, reg):
    fitted = fit(worlds["implicit"], "EpisodicRidge", embedding_size=size, reg_weight=reg)
    v = directions(table(warm, fitted), size)
    m = query_table(warm, fitted).mean(axis=0)
    nearest = {1: 1, 2: 1, 3: 3, 5: 3}  # of the shots 1 and 3; the smaller where both are as near

    def expected(items):
        if not items:
            return m
        support, target = [], []
        for user in sorted({user for user, _, _ in warm}):
            s, y = np.zeros(len(m)), np.zeros(len(m))
            for other, item, position in warm:
                if other == user and position < nearest[len(items)]:
                    s[fitted.id_of("item")[item]] = 1
                if other == user and 4 <= position < 7:  # after the reserve, inside the horizon
                    y[fitted.id_of("item")[item]] = 1
            support.append(s)
            target.append(y - m)
        mean = np.mean(support, axis=0)
        z = (np.array(support) - mean) @ v
        b = np.linalg.solve(z.T @ z + reg * np.eye(v.shape[1]), z.T @ np.array(target))
        new = np.zeros(len(m))
        new[items] = 1
        return m + (new - mean) @ v @ b

    assert_scores(fitted, expected)


def test_episodic_ridge_of_zero_shots(make_world, fit):
    rows = [(f"u{user}", f"i{(user * n) % 17}", 1, n) for user in range(30) for n in range(1, 12)]
    settings = {"shots": [0], "reserve": 0, "eligible": 10, "duplicates": "first"}
    prepared = make_world(rows, "user_cold_first", **settings)
    first, floor = fit(prepared, "EpisodicRidge"), fit(prepared, "QueryPop")
    np.testing.assert_array_equal(first.scores_after([], [3, 4]), floor.scores_after([], [3, 4]))


def folded_in(weights, fitted, warm, base, base_weight):
    """The scores of a fold-in rule by its weights W [I, I]."""
    pop = table(warm, fitted).mean(axis=0)
    added = {"none": 0 * pop, "pop": pop, "query_pop": query_table(warm, fitted).mean(axis=0)}[base]

    def expected(items):
        if not items and base == "none":
            return pop
        return sum((weights[item] for item in items), base_weight * added)

    return expected


BASES = pytest.mark.parametrize(
    ("base", "base_weight"), [("none", 1), ("pop", 0.3), ("query_pop", 2)]
)


@BASES
@pytest.mark.parametrize(("shrink", "neighbours"), [(0, 0), (10, 5), (2, 1), (2, 100)])
def test_item_knn_fold_in(worlds, fit, warm, shrink, neighbours, base, base_weight):
    fitted = fit(
        worlds["implicit"], "ItemKNNFoldIn", shrink=shrink, neighbours=neighbours, base=base,
        base_weight=base_weight,
    )  # fmt: skip
    n = fitted.model.n_items
    users = defaultdict(set)
    for user, item, _ in warm:
        users[fitted.id_of("item")[item]].add(user)
    w = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j and users[i] & users[j]:
                norm = np.sqrt(len(users[i]) * len(users[j]))
                w[i, j] = len(users[i] & users[j]) / (norm + shrink)
    for j in range(n):
        if neighbours:
            least = sorted(w[:, j], reverse=True)[:neighbours][-1]
            w[w[:, j] < least, j] = 0
    assert_scores(fitted, folded_in(w, fitted, warm, base, base_weight))


@BASES
@pytest.mark.parametrize("reg", [1.0, 50.0])
def test_ease_fold_in(worlds, fit, warm, reg, base, base_weight):
    fitted = fit(
        worlds["implicit"], "EASEFoldIn", reg_weight=reg, base=base, base_weight=base_weight
    )
    x = table(warm, fitted)
    w = np.zeros((x.shape[1], x.shape[1]))
    for item in range(x.shape[1]):  # each item regressed on all others
        others = [other for other in range(x.shape[1]) if other != item]
        gram = x[:, others].T @ x[:, others] + reg * np.eye(len(others))
        w[others, item] = np.linalg.solve(gram, x[:, others].T @ x[:, item])
    assert_scores(fitted, folded_in(w, fitted, warm, base, base_weight))


@pytest.mark.parametrize(("n_users", "n_items"), [(7, 12), (12, 7), (9, 9)])
def test_ease_solves_over_users_or_items(n_users, n_items):
    x = np.random.default_rng(0).random((n_users, n_items)) < 0.4
    x[:, 0] = False  # padding
    x[:, 1] = True
    user, item = x.nonzero()
    users = WarmUsers(user, item, np.ones(len(user)), n_items, 1, None)
    expected = np.linalg.inv(x.T.astype(float) @ x + 2 * np.eye(n_items))
    np.testing.assert_allclose(inverse(users, 2.0), expected, atol=1e-12)


@pytest.mark.parametrize(("name", "first", "last"), [("Pop", 0, 10_000), ("QueryPop", 4, 7)])
def test_popularity(worlds, fit, warm, name, first, last):
    fitted = fit(worlds["implicit"], name)
    count = Counter(item for _, item, position in warm if first <= position < last)
    n_users = len({user for user, _, _ in warm})
    expected = np.zeros(fitted.model.n_items)
    for item, number in count.items():
        expected[fitted.id_of("item")[item]] = number / n_users
    assert_scores(fitted, lambda items: expected)


# Floors of ratings and labels.


def usual(ratings, feedback):
    return statistics.median(ratings) if feedback == "rating" else statistics.fmean(ratings)


FLOORS = {
    ("Constant", ()): lambda support, constant: constant,
    ("Constant", (("constant", 0.7),)): lambda support, constant: 0.7,
    ("SupportMean", ()): lambda support, constant: statistics.fmean(support or [constant]),
    ("SupportMedian", ()): lambda support, constant: statistics.median(support or [constant]),
    ("ShrunkMedian", ()): lambda support, constant: statistics.median(support + 3 * [constant]),
    ("ShrunkMedian", (("pseudo_count", 2), ("pseudo_rating", 0.6))): lambda support, constant: (
        statistics.median([*support, 0.6, 0.6])
    ),
    ("ShrunkMedian", (("pseudo_count", 0),)): lambda support, constant: statistics.median(
        support or [constant]
    ),
}


@pytest.mark.parametrize("shots", [0, 1, 4, 5])
@pytest.mark.parametrize("feedback", ["rating", "label"])
@pytest.mark.parametrize(("name", "settings"), FLOORS)
def test_floors_of_ratings(worlds, fit, name, settings, feedback, shots):
    prepared = worlds[feedback]
    fitted = fit(prepared, name, **dict(settings))
    judged = judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", shots)
    constant = usual(prepared.warm_rows("test")["target"].tolist(), feedback)
    support = defaultdict(list)
    for row in prepared.support("test", shots).itertuples():
        support[row.user].append(row.target)
    tasks = judged.arrays["query_task"]
    assert set(tasks) == set(prepared.tasks("test"))
    expected = [FLOORS[name, settings](support[task], constant) for task in tasks]
    np.testing.assert_allclose(judged.arrays["prediction"], expected, rtol=1e-6)


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("feedback", ["rating", "label"])
def test_user_item_bias(worlds, fit, feedback, shots):
    prepared = worlds[feedback]
    fitted = fit(prepared, "UserItemBias", reg_item=2.0, reg_user=3.0)
    judged = judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", shots)
    rows = prepared.warm_rows("test")
    users, items = sorted(set(rows["user"])), prepared.catalogue
    design = np.zeros((len(rows), len(users) + len(items)))
    for number, row in enumerate(rows.itertuples()):
        design[number, users.index(row.user)] = 1
        design[number, len(users) + items.index(row.item)] = 1
    mean = rows["target"].mean()
    reg = np.diag([3.0] * len(users) + [2.0] * len(items))
    both = np.linalg.solve(design.T @ design + reg, design.T @ (rows["target"] - mean))
    b_i = dict(zip(items, both[len(users) :], strict=True))
    support = defaultdict(list)
    for row in prepared.support("test", shots).itertuples():
        support[row.user].append(row.target - mean - b_i[row.item])
    expected = []
    for task, item in zip(judged.arrays["query_task"], judged.arrays["query_item"], strict=True):
        value = mean + b_i[item] + sum(support[task]) / (len(support[task]) + 3)
        expected.append(min(max(value, 0), 1) if feedback == "label" else value)
    np.testing.assert_allclose(judged.arrays["prediction"], expected, atol=1e-6)
