"""LinearMTA against plain numpy: what the linear path adds, and what it leaves alone."""

import numpy as np
import pytest
import torch

from recbole_meta.compat import contained
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model import multitask_models
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_objectives,
    objective_config,
    train_set,
)
from tests.model.oracles import dense

FEW = {"epochs": 2, "eval_step": 1, "embedding_size": 4, "train_batch_size": 8}
PATH = {
    "linear": {"purchase": 3.0, "click": 0.5},
    "linear_target": {"click": "union"},
    "linear_weights": {"click": 0.5, "cart": 2.0},
    "reg_weight": 2.0,
}


def linear_scores(shop, objective: str) -> np.ndarray:
    """A ridge from all other items of the weighted union to each item of the behaviour, or of the
    union itself.
    """
    weight = {"purchase": 1.0} | PATH["linear_weights"]
    x = np.max([weight[name] * dense(shop, name) for name in shop.objectives], axis=0)
    y, scores = x if objective == "click" else dense(shop, objective), np.zeros_like(x)
    for j in range(x.shape[1]):
        z = np.delete(x, j, axis=1)
        inner = z.T @ z + PATH["reg_weight"] * np.eye(z.shape[1])
        scores[:, j] = z @ np.linalg.solve(inner, z.T @ y[:, j])
    return scores


@pytest.fixture(scope="module")
def pair(shop):
    """MTA and LinearMTA of one seed, with the same other settings."""
    one = fit_objectives("MTA", shop, 3, FEW | {"copy": {"click": 0.7}})
    return one, fit_objectives("LinearMTA", shop, 3, FEW | PATH | {"copy": {"click": 0.7}})


@pytest.mark.parametrize("objective", ["purchase", "click", "cart"])
def test_the_path_is_added_to_mta(shop, pair, objective):
    mta, linear = (fit.model for fit in pair)
    linear.load_state_dict(mta.state_dict())
    users = torch.arange(1, train_set(shop).user_num)
    with torch.no_grad():
        expected = mta.rank(users, objective).double().numpy()
        found = linear.rank(users, objective).double().numpy()
    scale = PATH["linear"].get(objective, 0.0)
    expected += scale * linear_scores(shop, objective)[1:]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_training_is_that_of_mta(shop):
    """The loss of a batch, and its gradient, know nothing of the path: hidden items stay hidden."""
    losses, gradients = [], []
    for name, path in (("MTA", {}), ("LinearMTA", PATH)):
        torch.manual_seed(0)
        settings = check_objective_settings(
            name, FEW | path | {"targets": "dropped"}, tuple(shop.objectives)
        )
        with contained():
            from recbole.data.dataloader import UserDataLoader

            config = objective_config(name, shop, 1, settings)
            model = multitask_models()[name](config, train_set(shop)).train()
            model.prepare(UserDataLoader(config, train_set(shop), None))
        torch.manual_seed(5)
        loss = model.calculate_loss({"user_id": torch.arange(1, 30)})
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.shared.grad)
    assert torch.equal(*losses) and torch.equal(*gradients)


@pytest.mark.parametrize("linear", [{}, {"purchase": 0.0, "click": 0.0, "cart": 0.0}])
def test_without_a_scale_it_is_mta(shop, pair, linear):
    fit = fit_objectives("LinearMTA", shop, 3, FEW | {"linear": linear, "copy": {"click": 0.7}})
    users = torch.arange(1, 30)
    assert fit.model.ridge is None
    with torch.no_grad():
        for name in shop.objectives:
            assert torch.equal(fit.model.rank(users, name), pair[0].model.rank(users, name))


def test_who_did_nothing_has_no_linear_score(shop, pair):
    users = torch.tensor([0, 3])  # RecBole's padding has no history
    scores = pair[1].model.ridge.scores(users, "union")
    assert not scores[0].any() and scores[1].any()


AT_ODDS = [
    ({"linear": {"clik": 1.0}}, SettingError, "'linear' names the objective 'clik'"),
    ({"linear_target": {"clik": "own"}}, SettingError, "'linear_target' names the objective"),
    ({"linear_target": {"click": "onw"}}, SettingError, "Did you mean 'own'"),
    ({"linear_weights": {"clik": 1.0}}, SettingError, "'linear_weights' names the objective"),
    ({"inputs": "own", "linear": {}}, SettingError, "'inputs' must be all"),
    ({"linear_weights": dict.fromkeys(("purchase", "click", "cart"), 0.0)}, DataError, "empty"),
]


@pytest.mark.parametrize(("settings", "error", "said"), AT_ODDS)
def test_settings_at_odds_are_refused(shop, settings, error, said):
    with pytest.raises(error, match=said):
        fit_objectives("LinearMTA", shop, 1, FEW | PATH | settings)
