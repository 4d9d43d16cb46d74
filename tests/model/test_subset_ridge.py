"""SubsetRidge against a ridge over every support that there is, listed one by one."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta.subset_ridge import over_items, over_users


def small(n_users: int, n_items: int) -> np.ndarray:
    """0/1 rows; some users have one item, the first item is nobody's."""
    x = (np.random.default_rng(n_users).random((n_users, n_items)) < 0.5).astype(float)
    x[:, 0], x[:, 1:3] = 0, 1
    x[0, 2:] = 0
    return x


def listed(x: np.ndarray, k: int, reg: float) -> tuple[np.ndarray, np.ndarray]:
    """B and m, from all supports of k rows of who has more; each user counts as one."""
    left, right, targets, weight = [], [], [], []
    for row in x:
        subsets = list(combinations(np.flatnonzero(row), k)) if row.sum() > k else []
        for subset in subsets:
            s = np.zeros(len(row))
            s[list(subset)] = 1
            left.append(s)
            targets.append(row - s)
            weight.append(1 / len(subsets))
    s, y, w = np.array(left), np.array(targets), np.array(weight)
    m = w @ y / w.sum()
    right = (s * w[:, None]).T @ (y - m)
    return np.linalg.solve((s * w[:, None]).T @ s + reg * np.eye(x.shape[1]), right), m


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("shape", [(9, 7), (6, 8)])
@pytest.mark.parametrize("fit", [over_items, over_users])
def test_it_is_the_ridge_over_all_supports(fit, shape, k: int) -> None:
    x = small(*shape)
    expected, m = listed(x, k, 0.7)
    found = fit(sparse.csr_matrix(x), k, 0.7)
    had = x.T if fit is over_users else np.eye(x.shape[1])
    b = found.scale[:, None] * (had @ found.map) - np.outer(found.share, found.mean)
    open_ = ~np.eye(len(b), dtype=bool)  # what is in the support is not asked for
    np.testing.assert_allclose(b[open_], expected[open_], atol=1e-10)
    np.testing.assert_allclose(found.mean, m, atol=1e-12)


@pytest.mark.parametrize("items", [[], [3], [12, 5, 9], [7, 20]])
def test_a_newcomer_gets_the_ridge_of_the_nearest_k(worlds, fit, float64, items) -> None:
    fitted = fit(worlds["implicit"], "SubsetRidge", reg_weight=0.3)
    model, warm = fitted.model, warm_users(fitted.stage.dataset)
    mask = torch.tensor([[1.0] * len(items) + [0.0] * (4 - len(items))], dtype=torch.float64)
    x = torch.tensor([items + [0] * (4 - len(items))])
    found = fitted.scores(Examples(x, mask, mask, torch.tensor([1])))[0].numpy()
    if not items:
        np.testing.assert_allclose(found, warm.pop, atol=1e-12)
        return
    k = min((k for k in model.shots.tolist()), key=lambda k: (abs(k - len(items)), k))
    one = over_items(warm.matrix, k, 0.3 * k**2)
    b = one.map - np.outer(one.share, one.mean)
    others = np.setdiff1d(np.arange(warm.n_items), items)
    np.testing.assert_allclose(found[others], (one.mean + b[items].sum(axis=0))[others], atol=1e-9)


def test_much_shrinking_leaves_popularity(worlds, fit, float64) -> None:
    fitted = fit(worlds["implicit"], "SubsetRidge", reg_weight=1e9)
    some = torch.tensor([[4, 9, 2]])
    mask = torch.ones(1, 3, dtype=torch.float64)
    found = fitted.scores(Examples(some, mask, mask, torch.tensor([1])))[0]
    place = fitted.model.shots.tolist().index(3) + 1
    torch.testing.assert_close(found, fitted.model.mean[place])
