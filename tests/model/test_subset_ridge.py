"""SubsetRidge against a ridge over every support that there is, listed one by one."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError
from recbole_meta.model.meta.subset_ridge import _directions, over_items, over_users


def small(n_users: int, n_items: int) -> np.ndarray:
    """0/1 rows; some users have one item, the first item is nobody's."""
    x = (np.random.default_rng(n_users).random((n_users, n_items)) < 0.5).astype(float)
    x[:, 0], x[:, 1:3] = 0, 1
    x[0, 2:] = 0
    return x


def listed(x: np.ndarray, k: int, reg: float, power: float) -> tuple[np.ndarray, np.ndarray]:
    """B and m, from all supports of k rows of who has more; a user with n rows counts n^power."""
    left, right, targets, weight = [], [], [], []
    mean = np.mean([row.sum() ** power for row in x if row.sum() > k])
    for row in x:
        subsets = list(combinations(np.flatnonzero(row), k)) if row.sum() > k else []
        for subset in subsets:
            s = np.zeros(len(row))
            s[list(subset)] = 1
            left.append(s)
            targets.append(row - s)
            weight.append(row.sum() ** power / mean / len(subsets))
    s, y, w = np.array(left), np.array(targets), np.array(weight)
    m = w @ y / w.sum()
    right = (s * w[:, None]).T @ (y - m)
    return np.linalg.solve((s * w[:, None]).T @ s + reg * np.eye(x.shape[1]), right), m


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("shape", [(9, 7), (6, 8)])
@pytest.mark.parametrize("power", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("fit", [over_items, over_users])
def test_it_is_the_ridge_over_all_supports(fit, power, shape, k: int) -> None:
    x = small(*shape)
    expected, m = listed(x, k, 0.7, power)
    found = fit(sparse.csr_matrix(x), k, 0.7, power)
    b = found.map
    if fit is over_users:
        b = found.scale[:, None] * (x.T @ found.map) - np.diag(found.own)
    np.testing.assert_allclose(b - np.outer(found.share, found.mean), expected, atol=1e-10)
    np.testing.assert_allclose(found.mean, m, atol=1e-12)


@pytest.mark.parametrize("fit", [over_items, over_users])
def test_a_large_power_leaves_the_longest_user(fit) -> None:
    x = np.repeat(np.eye(3), [300, 200, 100], axis=1)
    x[:2, :2] = 1
    found = fit(sparse.csr_matrix(x), 2, 0.5, 400.0)
    assert np.isfinite(found.map).all()
    np.testing.assert_allclose(found.mean, x[0] * 298 / 300, atol=1e-12)


@pytest.fixture(scope="module", params=["few users", "many users"])
def world(request, worlds, make_world):
    """Users are fewer than items, or more."""
    if request.param == "many users":
        return worlds["implicit"]
    rng = np.random.default_rng(5)
    rows = [
        (f"u{user}", f"i{item}", 5, 100 * time)
        for user in range(24)
        for time, item in enumerate(rng.choice(40, rng.integers(8, 16), replace=False))
    ]
    return make_world(
        rows, "user_cold_curve", eligible=8, folds=0, shots=[0, 1, 3], reserve=4, horizon=3
    )


@pytest.mark.parametrize(("base", "power"), [(1.0, 0.6), (0.3, 0.0), (0.3, 1.0)])
@pytest.mark.parametrize("items", [[], [3], [12, 5, 9], [7, 20]])
def test_a_newcomer_gets_the_ridge_of_the_nearest_k(
    world, fit, float64, items, base, power
) -> None:
    fitted = fit(world, "SubsetRidge", reg_weight=0.3, base_weight=base, user_power=power)
    model, warm = fitted.model, warm_users(fitted.stage.dataset)
    mask = torch.tensor([[1.0] * len(items) + [0.0] * (4 - len(items))], dtype=torch.float64)
    x = torch.tensor([items + [0] * (4 - len(items))])
    found = fitted.scores(Examples(x, mask, mask, torch.tensor([1])))[0].numpy()
    if not items:
        np.testing.assert_allclose(found, warm.pop, atol=1e-12)
        return
    k = min((k for k in model.shots.tolist()), key=lambda k: (abs(k - len(items)), k))
    one = over_items(warm.matrix, k, 0.3 * k**2, power)
    b = one.map - np.outer(one.share, one.mean)
    np.testing.assert_allclose(found, base * one.mean + b[items].sum(axis=0), atol=1e-9)


def test_single_precision_says_the_same(world, fit, float64, monkeypatch) -> None:
    """Where users are many, but fewer than items, matrices of their size are single."""
    x, mask = torch.tensor([[12, 5, 9]]), torch.ones(1, 3, dtype=torch.float64)
    asked = Examples(x, mask, mask, torch.tensor([1]))
    double = fit(world, "SubsetRidge", user_power=0.6).scores(asked)
    maps, over = [], over_users
    monkeypatch.setattr("recbole_meta.model.meta.subset_ridge._DOUBLE", 0)
    monkeypatch.setattr(
        "recbole_meta.model.meta.subset_ridge.over_users",
        lambda *asked: maps.append(over(*asked)) or maps[-1],
    )
    single = fit(world, "SubsetRidge", user_power=0.6).scores(asked)
    torch.testing.assert_close(single, double, rtol=0, atol=1e-5)
    warm = warm_users(fit(world, "SubsetRidge").stage.dataset)
    few = warm.n_users < warm.n_items
    assert {each.map.dtype for each in maps} == ({np.dtype(np.float32)} if few else set())
    assert torch.equal(single, double) != few


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_few_have_is_kept_beside_what_many_have(kind) -> None:
    """Their directions' squares are a hundred million apart: below what single precision sees."""
    x = sparse.csr_matrix(np.diag([1e4, 1.0, 1.0, 0.0]) + np.eye(4, k=1))
    v, turn = _directions(x, kind)
    assert v.dtype == kind
    rows = x.toarray()
    np.testing.assert_allclose(v @ turn, rows.T, atol=3e-3 if kind is np.float32 else 1e-8)


def test_no_row_of_a_warm_user_is_kept(world, fit, float64) -> None:
    """What is kept says what items have in common, whoever has them."""
    fitted = fit(world, "SubsetRidge")
    warm = warm_users(fitted.stage.dataset)
    rows = warm.matrix.toarray()
    few = warm.n_users < warm.n_items
    assert bool(fitted.model.directions.shape[1]) == few
    for name, kept in fitted.model.named_buffers():
        for table in (kept, kept.T) if kept.ndim == 2 else ():
            if table.numel() and table.shape[1] == rows.shape[1]:
                near = torch.cdist(table, torch.from_numpy(rows)).min()
                assert near > 0.1, name
    if few:
        v = fitted.model.directions
        torch.testing.assert_close(v.T @ v, torch.eye(v.shape[1], dtype=v.dtype))


def test_no_warm_user_has_more_rows_than_a_support(world, fit, monkeypatch) -> None:
    user, item = np.repeat([0, 1], 3), np.array([1, 2, 3, 2, 3, 4])
    short = WarmUsers(user, item, np.ones(6), 31, 1, None)
    monkeypatch.setattr("recbole_meta.model.meta.subset_ridge.warm_users", lambda dataset: short)
    with pytest.raises(DataError, match="no warm user has 4 rows"):
        fit(world, "SubsetRidge")


def test_much_shrinking_leaves_popularity(worlds, fit, float64) -> None:
    fitted = fit(worlds["implicit"], "SubsetRidge", reg_weight=1e9)
    some = torch.tensor([[4, 9, 2]])
    mask = torch.ones(1, 3, dtype=torch.float64)
    found = fitted.scores(Examples(some, mask, mask, torch.tensor([1])))[0]
    place = fitted.model.shots.tolist().index(3) + 1
    torch.testing.assert_close(found, fitted.model.mean[place])
