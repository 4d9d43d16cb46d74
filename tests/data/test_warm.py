"""Warm users' arrays against plain loops and dense numpy, and the padded table of supports."""

import numpy as np
import pytest
import torch

from recbole_meta.compat import contained, recbole_config, recbole_model
from recbole_meta.data import warm as module
from recbole_meta.data.support import read_support
from recbole_meta.data.warm import WarmUsers, warm_users

# Users 7, 3 and 9 in a file that mixes them; a user's rows stand in order. Item 0 is padding.
USER = np.array([7, 3, 7, 9, 3, 7, 7])
ITEM = np.array([1, 2, 4, 1, 4, 2, 3])
TARGET = np.array([5.0, 1.0, 4.0, 2.0, 2.0, 5.0, 3.0])


def small(query_start: int = 1, horizon: int | None = 2, target=TARGET) -> WarmUsers:
    return WarmUsers(USER, ITEM, target, 6, query_start, horizon)


def random_users(n_users: int, n_items: int, seed: int = 0) -> WarmUsers:
    random = np.random.default_rng(seed)
    likes = random.random((n_users, n_items)) < np.linspace(0.1, 0.9, n_items)
    likes[:, 0] = False
    likes[np.arange(n_users), random.integers(1, n_items, n_users)] = True
    user, item = np.nonzero(likes)
    return WarmUsers(user, item, np.ones(len(user)), n_items, 0, None)


def test_rows_are_counted_by_user_in_the_order_of_the_file() -> None:
    warm = small()
    assert (warm.n_users, warm.n_items) == (3, 6)
    assert warm.user.tolist() == [0, 0, 1, 1, 1, 1, 2]  # 3, 7, 9
    assert warm.item.tolist() == [2, 4, 1, 4, 2, 3, 1]
    assert warm.target.tolist() == [1, 2, 5, 4, 5, 3, 2]
    assert warm.position.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert warm.length.tolist() == [2, 4, 1]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, None, [[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]),
        (0, 1, [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]),
        (1, 3, [[0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]),
        (2, None, [[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]),
        (0, 0, [[0] * 6] * 3),
    ],
)
def test_windows_are_half_open(start: int, stop: int | None, expected: list) -> None:
    assert small().window(start, stop).toarray().tolist() == expected


@pytest.mark.parametrize(
    ("query_start", "horizon", "window"),
    [(1, 2, (1, 3)), (1, None, (1, None)), (0, 1, (0, 1)), (3, 10, (3, 13))],
)
def test_query_is_the_window_of_a_task(query_start, horizon, window) -> None:
    warm = small(query_start, horizon)
    expected = warm.window(*window).toarray()
    assert expected.any()
    np.testing.assert_array_equal(warm.query.toarray(), expected)
    np.testing.assert_allclose(warm.query_pop, expected.sum(axis=0) / 3, rtol=1e-15)


def test_shares_are_of_users_not_of_rows() -> None:
    warm = small()
    np.testing.assert_allclose(warm.pop, np.array([0, 2, 2, 1, 2, 0]) / 3, rtol=1e-15)
    np.testing.assert_allclose(warm.query_pop, np.array([0, 0, 1, 0, 2, 0]) / 3, rtol=1e-15)


def test_gram_counts_the_users_of_two_items() -> None:
    x = small().matrix.toarray()
    expected = [[sum(x[u, i] * x[u, j] for u in range(3)) for j in range(6)] for i in range(6)]
    np.testing.assert_array_equal(small().gram.toarray(), expected)
    assert small().gram[2, 4] == 2 and small().gram[1, 1] == 2


def test_middle_is_the_median_of_ratings_and_the_mean_of_labels() -> None:
    assert small(target=np.array([1.0, 1, 1, 2, 5, 5, 5])).middle == 2  # the mean is 20/7
    assert small(target=np.array([0.0, 0, 1, 1, 1, 1, 1])).middle == pytest.approx(5 / 7)


@pytest.mark.parametrize(("n_users", "n_items"), [(12, 30), (30, 12), (15, 15)])
def test_directions_are_the_factor_of_the_covariance(n_users: int, n_items: int) -> None:
    warm = random_users(n_users, n_items)
    found = warm.directions
    covariance = np.cov(warm.matrix.toarray(), rowvar=False, bias=True)
    assert found.shape == (n_items, min(n_users, n_items))
    np.testing.assert_allclose(found @ found.T, covariance, atol=1e-12)
    between = found.T @ found  # orthogonal, the strongest first
    values = np.linalg.eigvalsh(covariance)[::-1][: found.shape[1]]
    np.testing.assert_allclose(between, np.diag(values), atol=1e-12)
    assert values[0] > 2 * values[5] > 0


@pytest.mark.parametrize(("n_users", "n_items"), [(14, 30), (30, 14)])
def test_truncated_directions_are_the_leading_exact_ones(monkeypatch, n_users, n_items) -> None:
    exact = random_users(n_users, n_items).directions
    monkeypatch.setattr(module, "_EXACT", 5)
    monkeypatch.setattr(module, "_RANK", 4)
    found = random_users(n_users, n_items).directions
    assert found.shape == (n_items, 4)
    signs = np.sign((found * exact[:, :4]).sum(axis=0))
    assert np.all(signs != 0)
    np.testing.assert_allclose(found * signs, exact[:, :4], atol=1e-9)
    np.testing.assert_array_equal(found, random_users(n_users, n_items).directions)


@pytest.mark.parametrize("power", [0.3, 0.5])
@pytest.mark.parametrize("exact", [True, False])
def test_scaled_directions_are_those_of_divided_columns(monkeypatch, power, exact) -> None:
    x = np.random.default_rng(1).random((9, 6)) < [0.2, 0.4, 0.6, 0.8, 0.9, 0.5]
    x[:, 5] = [True, *[False] * 8]
    monkeypatch.setattr(module, "_EXACT", 100 if exact else 4)
    monkeypatch.setattr(module, "_RANK", 5)
    user, item = x.nonzero()
    warm = WarmUsers(user, item, np.ones(len(user)), 6, 1, None)
    p = x.mean(axis=0)
    divided = (x - p) / p**power
    divided *= np.sqrt(np.square(x - p).sum() / np.square(divided).sum())
    found = warm.scaled_directions(power)[:, :5]
    _, s, right = np.linalg.svd(divided)
    expected = (right.T[:, :5] * s[:5]) @ (right[:5] * s[:5, None]) / 9
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-9)


def test_truncation_begins_above_the_limit(monkeypatch) -> None:
    monkeypatch.setattr(module, "_RANK", 3)
    for limit, rank in ((14, 14), (13, 3)):
        monkeypatch.setattr(module, "_EXACT", limit)
        assert random_users(14, 20).directions.shape == (20, rank)


def test_no_warm_user_has_empty_arrays() -> None:
    none = np.empty(0, dtype=np.int64)
    warm = WarmUsers(none, none, np.empty(0), 4, 1, 2)
    assert warm.n_users == 0 and warm.window(0, None).shape == (0, 4)


def rows_of_people() -> list[tuple]:
    """20 users with 6 of 8 items each, ratings 1..5."""
    return [
        (f"u{u:02}", f"i{(u + 3 * i) % 8}", 1 + (u * i) % 5, 100 * u + i)
        for u in range(20)
        for i in range(6)
    ]


def training_set(prepared, phase: str, k: int, model: str = "BPR"):
    """The training dataset of a phase, as RecBole makes it."""
    with contained():
        from recbole.data import create_dataset, data_preparation

        settings = {
            "data_path": str(prepared.path.parent),
            "prepared": str(prepared.path),
            "phase": phase,
            "benchmark_filename": [prepared.train_name(phase, k), "valid", "test"],
        }
        recbole_yaml = prepared.path / "recbole.yaml"
        config = recbole_config(recbole_model(model), prepared.name, [recbole_yaml], settings)
        return data_preparation(config, create_dataset(config))[0]._dataset


CURVE = dict(shots=[0, 1, 3], reserve=3, horizon=2, eligible=5)


@pytest.mark.parametrize(
    ("protocol", "phase", "k", "settings"),
    [
        ("user_cold_curve", "test", 3, CURVE),
        ("user_cold_5", "valid", 2, dict(shots=2)),
        ("user_cold_5_rating", "test", 2, dict(shots=2)),
        ("user_cold_5_label", "test", 2, dict(shots=2)),
        ("user_cold_global", "test", 1, CURVE | dict(blocks=4, split=3)),
    ],
)
def test_rows_of_cold_users_are_left_out(make_world, protocol, phase, k, settings) -> None:
    rows = rows_of_people()
    prepared = make_world(rows, protocol, **settings)
    model = "BPR" if prepared.feedback == "implicit" else "FM"
    dataset = training_set(prepared, phase, k, model)
    warm = warm_users(dataset)
    tasks = set(prepared.tasks(phase))
    if protocol != "user_cold_global":  # there valid's users are warm for the test
        tasks |= set(prepared.tasks("valid")) | set(prepared.tasks("test"))
    cut = prepared.description["cut"].get(phase, np.inf)
    expected: dict[str, list[tuple]] = {}
    for user, item, rating, time in rows:  # by user and time
        if user not in tasks and time < cut:
            expected.setdefault(user, []).append((item, rating))
    assert 0 < len(expected) < 20
    found: dict[int, list[tuple]] = {}
    for user, item, target in zip(warm.user, warm.item, warm.target):
        token = dataset.id2token("item_id", int(item))
        found.setdefault(int(user), []).append((token, float(target)))
    judged = {
        "implicit": lambda rating: 1.0,
        "rating": float,
        "label": lambda rating: float(rating >= 4),
    }[prepared.feedback]
    assert sorted(found.values()) == sorted(
        [(item, judged(rating)) for item, rating in history] for history in expected.values()
    )
    assert warm.n_items == dataset.item_num == 9
    assert (warm.query_start, warm.horizon) == (prepared.query_start, prepared.horizon)


def test_computed_once_per_dataset(make_world) -> None:
    prepared = make_world(rows_of_people(), "user_cold_5", shots=2)
    one, two = (training_set(prepared, "test", 2) for _ in range(2))
    assert warm_users(one) is warm_users(one)
    assert warm_users(two) is not warm_users(one)


@pytest.mark.parametrize(
    ("protocol", "sizes", "settings"),
    [
        ("user_cold_curve", (0, 1, 3), CURVE),
        ("user_cold_5_rating", (2,), dict(shots=2)),
        ("user_cold_5_label", (2,), dict(shots=2)),
    ],
)
def test_support_is_a_padded_table(make_world, protocol, sizes, settings) -> None:
    rows = rows_of_people()
    prepared = make_world(rows, protocol, **settings)
    random = np.random.default_rng(0)  # ids that do not follow the tokens
    users = {"[PAD]": 0} | {f"u{u:02}": int(n) + 1 for u, n in enumerate(random.permutation(20))}
    items = {"[PAD]": 0} | {f"i{i}": int(n) + 1 for i, n in enumerate(random.permutation(8))}
    judged = {
        "implicit": lambda rating: 1.0,
        "rating": float,
        "label": lambda rating: float(rating >= 4),
    }[prepared.feedback]
    for phase in ("valid", "test"):
        for k in sizes:
            found = read_support(prepared, phase, k, users, items)
            x, label, mask = (np.zeros((21, max(k, 1))) for _ in range(3))
            for user in prepared.tasks(phase):
                history = [row for row in rows if row[0] == user]  # in order of time
                for place, (_, item, rating, _) in enumerate(history[:k]):
                    x[users[user], place] = items[item]
                    label[users[user], place] = judged(rating)
                    mask[users[user], place] = 1
            np.testing.assert_array_equal(found.x.numpy(), x)
            np.testing.assert_array_equal(found.label.numpy(), label)
            np.testing.assert_array_equal(found.mask.numpy(), mask)
            assert mask.sum() == k * len(prepared.tasks(phase))
            assert found.x.dtype == torch.int64
            assert found.label.dtype == found.mask.dtype == torch.float32
