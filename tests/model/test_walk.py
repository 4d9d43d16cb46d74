"""The random walk step by step, the rule that it is, and what it adds to LinearMTA."""

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_meta.compat import contained
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model import multitask_models
from recbole_meta.model.conversion import conversion
from recbole_meta.model.random_walk import RandomWalk
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_objectives,
    objective_config,
    train_set,
)
from tests.model.oracles import dense

FEW = {"epochs": 2, "eval_step": 1, "embedding_size": 4, "train_batch_size": 8}
LINEAR = {"linear": {"purchase": 3.0}, "linear_weights": {"click": 0.5}, "copy": {"click": 0.7}}
WALK = {"walk": {"purchase": 2.0, "click": 0.5}, "walk_power": 0.4}


def step_by_step(weights: np.ndarray, y: np.ndarray, power: float) -> np.ndarray:
    """Every way from a user's items over all users to other items, one after the other."""
    x, scores = weights > 0, np.zeros(weights.shape)
    for u, i in zip(*np.nonzero(weights)):
        for v in np.flatnonzero(x[:, i]):
            for j in np.flatnonzero(y[v]):
                if j != i:
                    chance = 1 / x[:, i].sum() * 1 / y[v].sum()
                    scores[u, j] += weights[u, i] * chance / y[:, j].sum() ** power
    spread = scores.std(axis=1, ddof=1, keepdims=True)
    return scores / np.where(spread > 0, spread, 1)


@pytest.mark.parametrize("power", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_a_walk_is_the_sum_over_all_ways(power, density):
    rng = np.random.default_rng(7)
    weights = rng.choice([0, 0.3, 1.0], (9, 7), p=[1 - density, density / 2, density / 2])
    y = (rng.random((9, 7)) < density).astype(float)
    weights[2], y[5], y[:, 4] = 0, 0, 0  # who has nothing, who ends nowhere, what nobody has
    walk = RandomWalk(sparse.csr_matrix(weights), sparse.csr_matrix(y), power)
    found = walk.scores(torch.arange(9))
    np.testing.assert_allclose(found, step_by_step(weights, y, power), rtol=1e-5, atol=1e-6)
    assert not found[2].any() and not found[:, 4].any() and found.any()
    torch.testing.assert_close(walk.scores(torch.tensor([6, 1])), found[[6, 1]])


def test_power_takes_from_popular_items():
    """The first item leads to the second, which five have, and the third, which two have, alike."""
    x = np.zeros((7, 4))
    x[0, [0, 1]] = x[1, [0, 2]] = x[2:6, 1] = x[5, 2] = x[6, 0] = 1
    x = sparse.csr_matrix(x)
    alike, taken = (RandomWalk(x, x, p).scores(torch.tensor([6]))[0] for p in (0.0, 0.5))
    assert alike[1] == alike[2] > 0 and 0 < taken[1] < taken[2]


@pytest.mark.parametrize("target", ["union", "own"])
def test_the_rule_is_the_walk_and_a_copy(shop, target):
    settings = {"weights": {"click": 0.5}, "target": target, "power": 0.3}
    given = settings | {"copy": 2.0, "conversion": 0.7}
    model = fit_objectives("ObjectiveWalk", shop, 1, given).model
    weight = {"purchase": 1.0, "cart": 1.0, "click": 0.5}
    x = np.max([weight[name] * dense(shop, name) for name in shop.objectives], axis=0)
    users = torch.arange(1, len(x))
    assert len(model.walks) == (1 if target == "union" else len(shop.objectives))
    for name in shop.objectives:
        y = x > 0 if target == "union" else dense(shop, name)
        expected = step_by_step(x, y, 0.3) + (2.0 + 0.7 * conversion(model.history, name)) * x
        found = model.rank(users, name)
        np.testing.assert_allclose(found, expected[1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(SettingError, match="does not rank by 'purchse'"):
        model.rank(users, "purchse")


@pytest.fixture(scope="module")
def pair(shop):
    """LinearMTA and WalkMTA of one seed, with the same other settings."""
    one = fit_objectives("LinearMTA", shop, 3, FEW | LINEAR)
    return one.model, fit_objectives("WalkMTA", shop, 3, FEW | LINEAR | WALK).model


@pytest.mark.parametrize("objective", ["purchase", "click", "cart"])
def test_the_walk_is_added_to_linear_mta(shop, pair, objective):
    linear, walking = pair
    walking.load_state_dict(linear.state_dict())
    x = np.max([dense(shop, n) * (0.5 if n == "click" else 1) for n in shop.objectives], axis=0)
    users = torch.arange(1, len(x))
    with torch.no_grad():
        expected = linear.rank(users, objective).double().numpy()
        found = walking.rank(users, objective).double().numpy()
    expected += WALK["walk"].get(objective, 0.0) * step_by_step(x, x > 0, 0.4)[1:]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("walk", [{}, {"purchase": 0.0}])
def test_without_a_scale_it_is_linear_mta(shop, pair, walk):
    model = fit_objectives("WalkMTA", shop, 3, FEW | LINEAR | {"walk": walk}).model
    pair[0].load_state_dict(model.state_dict())
    users = torch.arange(1, 30)
    with torch.no_grad():
        for name in shop.objectives:
            assert torch.equal(model.rank(users, name), pair[0].rank(users, name))


def test_training_knows_nothing_of_the_walk(shop):
    """The walk knows the very items that a batch hides: it is read when ranking only."""
    losses = []
    for name, more in (("LinearMTA", {}), ("WalkMTA", WALK)):
        torch.manual_seed(0)
        given = FEW | LINEAR | more | {"targets": "dropped"}
        settings = check_objective_settings(name, given, tuple(shop.objectives))
        with contained():
            from recbole.data.dataloader import UserDataLoader

            config = objective_config(name, shop, 1, settings)
            model = multitask_models()[name](config, train_set(shop)).train()
            model.prepare(UserDataLoader(config, train_set(shop), None))
        torch.manual_seed(5)
        losses.append(model.calculate_loss({"user_id": torch.arange(1, 30)}).detach())
    assert torch.equal(*losses)


def test_several_starts_may_walk(shop):
    """Copies that are alike rank as one of them."""
    given = {"embedding_size": 4} | LINEAR | WALK
    settings = {key: FEW[key] for key in ("epochs", "eval_step", "train_batch_size")}
    fit = fit_objectives(
        "SeveralStarts", shop, 3, settings | {"member": {"WalkMTA": given}, "copies": 2}
    )
    first, second = fit.model.copies
    second.load_state_dict(first.state_dict())
    users = torch.arange(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(fit.model.rank(users, "click"), first.rank(users, "click"))


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("holders", [3, 5, 7])
def test_who_leads_nowhere_has_no_score(weight, holders):
    """What rounding leaves of 0 must not be divided by itself."""
    x = np.zeros((8, 1000))
    x[:holders, 4] = x[7, 5:] = 1
    source = x.copy()
    source[0, 4] = weight
    for matrix in (source, source.astype(np.float32)):
        walk = RandomWalk(sparse.csr_matrix(matrix), sparse.csr_matrix(x), 0.5)
        assert not walk.scores(torch.arange(8))[:holders].any()


def test_an_unknown_objective_is_named(shop, pair):
    for model in pair:
        with pytest.raises(SettingError, match="does not rank by 'clik'"):
            model.rank(torch.arange(1, 3), "clik")


REFUSED = [
    ("WalkMTA", FEW | {"inputs": "own", "copy": {}, "conversion": {}}, "WalkMTA: the linear path"),
    ("WalkMTA", FEW | {"walk": {"clik": 1.0}}, "'walk' names the objective 'clik'"),
    ("WalkMTA", FEW | {"walk": {"click": -1.0}}, "'walk' must be at least 0"),
    ("WalkMTA", FEW | {"walk_power": 1.0}, "'walk_power' must be below 1"),
    ("ObjectiveWalk", {"weights": {"clik": 1.0}}, "'weights' names the objective 'clik'"),
    ("ObjectiveWalk", {"power": -0.1}, "'power' must be at least 0"),
    ("ObjectiveWalk", {"target": "unoin"}, "Did you mean 'union'"),
]


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(shop, name, settings, said):
    with pytest.raises(SettingError, match=said):
        fit_objectives(name, shop, 1, settings)


def test_a_union_of_nothing_is_refused(shop):
    nothing = dict.fromkeys(shop.objectives, 0.0)
    with pytest.raises(DataError, match="WalkMTA: 'linear_weights': all are 0"):
        fit_objectives("WalkMTA", shop, 1, FEW | WALK | {"linear_weights": nothing})
    with pytest.raises(DataError, match="ObjectiveWalk: 'weights': all are 0"):
        fit_objectives("ObjectiveWalk", shop, 1, {"weights": nothing})
