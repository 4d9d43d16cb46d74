"""GradedEASE against the normal equations, and against the sum that it equals."""

import numpy as np
import pytest
import torch

from recbole_meta.errors import DataError, SettingError
from recbole_meta.objective_fitting import fit_model

USERS = torch.arange(1, 30)
GAINS = {"purchase": 4.0, "click": 0.25, "cart": 0.0}


def test_it_solves_its_own_regression(shop):
    """min |Y - XB|^2 + lambda |B|^2 with a diagonal of 0, column by column without the item."""
    model = fit_model("GradedEASE", shop, 1, {"gains": GAINS, "power": 0.5, "reg_weight": 3.0})[0]
    x = model.source.toarray().astype(np.float64)
    y = 2 * model.history["purchase"].toarray() + 0.5 * model.history["click"].toarray()
    b = np.zeros((x.shape[1], x.shape[1]))
    for item in range(x.shape[1]):
        others = [n for n in range(x.shape[1]) if n != item]
        gram = x[:, others].T @ x[:, others] + 3.0 * np.eye(len(others))
        b[others, item] = np.linalg.solve(gram, x[:, others].T @ y[:, item])
    found = model.rank(USERS, "cart").numpy()
    np.testing.assert_allclose(found, (x @ b)[USERS], atol=2e-3)


def test_it_is_the_sum_of_the_objectives_rankings(shop):
    same = {"weights": {"click": 0.5}, "reg_weight": 3.0}
    graded = fit_model("GradedEASE", shop, 1, same | {"gains": GAINS})[0]
    own = fit_model("ObjectiveEASE", shop, 1, same | {"target": "own"})[0]
    wanted = sum(gain * own.rank(USERS, name) for name, gain in GAINS.items())
    torch.testing.assert_close(graded.rank(USERS, "click"), wanted, atol=1e-4, rtol=1e-4)


def test_gains_name_objectives(shop):
    with pytest.raises(SettingError, match="'gains' names the objective 'clik'"):
        fit_model("GradedEASE", shop, 1, {"gains": {"clik": 1.0}})
    with pytest.raises(DataError, match="all 'gains' are 0"):
        fit_model("GradedEASE", shop, 1, {"gains": dict.fromkeys(GAINS, 0.0), "power": 0.0})


def test_every_objective_has_the_one_ranking(shop):
    """The odds of its copy term are the main objective's."""
    same = {"gains": GAINS, "reg_weight": 3.0, "copy": 0.1, "conversion": 0.5}
    model = fit_model("GradedEASE", shop, 1, same)[0]
    users, first = torch.arange(1, 20), "purchase"
    for name in ("click", "cart"):
        assert torch.equal(model.rank(users, name), model.rank(users, first))
    plain = fit_model("GradedEASE", shop, 1, same | {"conversion": 0.0})[0]
    assert not torch.allclose(plain.rank(users, first), model.rank(users, first))
