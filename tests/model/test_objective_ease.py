"""ObjectiveEASE against its formula on dense matrices."""

import numpy as np
import pytest
import torch

from recbole_meta.errors import DataError
from recbole_meta.model.conversion import conversion
from recbole_meta.objective_fitting import fit_objectives
from tests.model.oracles import dense

WEIGHTS = {"click": 0.5, "cart": 2.0}


def by_formula(x: np.ndarray, y: np.ndarray, reg: float) -> np.ndarray:
    """B of the docstring, item by item: ridge from all other items to column j of Y."""
    b = np.zeros((x.shape[1], x.shape[1]))
    for j in range(x.shape[1]):
        others = np.arange(x.shape[1]) != j
        z = x[:, others]
        b[others, j] = np.linalg.solve(z.T @ z + reg * np.eye(z.shape[1]), z.T @ y[:, j])
    return b


@pytest.mark.parametrize("reg", [0.5, 20.0])
@pytest.mark.parametrize("target", ["union", "own"])
def test_scores_are_a_ridge_without_the_item_itself(shop, target, reg):
    settings = {
        "reg_weight": reg,
        "weights": WEIGHTS,
        "target": target,
        "copy": 0.3,
        "conversion": 0.2,
    }
    model = fit_objectives("ObjectiveEASE", shop, 1, settings).model
    weighted = [WEIGHTS.get(name, 1.0) * dense(shop, name) for name in shop.objectives]
    x = np.max(weighted, axis=0)
    users = torch.arange(1, len(x))
    for name in shop.objectives:
        y = x if target == "union" else dense(shop, name)
        odds = conversion(model.history, name)
        assert np.ptp(odds) > 0.5
        expected = x @ by_formula(x, y, reg) + (0.3 + 0.2 * odds) * x
        found = model.rank(users, name).numpy()
        np.testing.assert_allclose(found, expected[1:], rtol=1e-3, atol=2e-4)


def test_without_weights_the_union_is_eases_own(shop):
    """Steck's closed form, B = I - P / diag(P)."""
    model = fit_objectives("ObjectiveEASE", shop, 1, {"reg_weight": 3.0}).model
    x = np.max([dense(shop, name) for name in shop.objectives], axis=0)
    p = np.linalg.inv(x.T @ x + 3.0 * np.eye(x.shape[1]))
    b = -p / np.diag(p)
    np.fill_diagonal(b, 0)
    found = model.rank(torch.arange(1, len(x)), "cart").numpy()
    np.testing.assert_allclose(found, (x @ b)[1:], rtol=1e-3, atol=2e-4)


def test_settings_that_share_an_inverse_and_those_that_do_not(shop):
    """The last inverse is kept; what came before does not matter."""
    users = torch.arange(1, 20)
    first = fit_objectives("ObjectiveEASE", shop, 1, {"reg_weight": 5.0}).model.rank(users, "cart")
    for other in ({"reg_weight": 7.0}, {"weights": {"click": 0.2}, "reg_weight": 5.0}):
        found = fit_objectives("ObjectiveEASE", shop, 1, other).model.rank(users, "cart")
        assert (found - first).abs().max() > 1e-3
    again = fit_objectives("ObjectiveEASE", shop, 1, {"reg_weight": 5.0}).model.rank(users, "cart")
    assert torch.equal(again, first)


def test_a_union_of_nothing_is_refused(shop):
    nothing = dict.fromkeys(shop.objectives, 0.0)
    with pytest.raises(DataError, match="the union is empty"):
        fit_objectives("ObjectiveEASE", shop, 1, {"weights": nothing})
