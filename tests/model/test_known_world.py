"""Even-lovers and odd-lovers: users never seen, whose taste two items tell."""

from functools import cache

import numpy as np
import pytest

from recbole_meta.evaluation.judge import Judge
from recbole_meta.fitting import judge_learner
from recbole_meta.model import our_models
from recbole_meta.settings import load_properties
from recbole_meta.trainer import judge_model

N_USERS, N_ITEMS, SHOTS = 60, 40, 2
RANKING = {  # this world has ids alone
    name: cls
    for name, cls in our_models().items()
    if "implicit" in cls.feedback and "+item fields" not in cls.reads
}
ADAPTS = [name for name, cls in RANKING.items() if cls.group != "floor"]
FLOORS = [name for name, cls in RANKING.items() if cls.group == "floor"]

each = pytest.mark.parametrize("name", ADAPTS)


@pytest.fixture(scope="module")
def lovers(make_world):
    """User n likes every item whose number is as even or odd as n, and nothing else."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", f"i{item}", 5, time)
        for user in range(N_USERS)
        for time, item in enumerate(rng.permutation(np.arange(user % 2, N_ITEMS, 2)))
    ]
    world = {"shots": [0, 1, SHOTS], "reserve": SHOTS, "horizon": None, "folds": 0}
    return make_world(rows, "user_cold_curve_all", **world)


@pytest.fixture(scope="module")
def learned(lovers, fit):
    """Each model once; a learner that trains is given the time that this world takes."""

    @cache
    def fitted(name: str):
        trains = load_properties("model", name)["epochs"] > 0
        long = {"epochs": 80, "eval_step": 80, "train_batch_size": 8, "learning_rate": 0.01}
        long |= {"embedding_std": 1.0}
        return fit(lovers, name, **(long if trains else {}))

    return fitted


def ndcg(fitted, k: int) -> float:
    judged = judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", k)
    return judged.means()["ndcg@10"]


def ndcg_with(fitted, user_of) -> float:
    """Every user is judged by the support of the user ``user_of`` names."""
    judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", SHOTS)
    ids, model = fitted.id_of("user"), fitted.model
    table = np.arange(model.n_users)
    for user in fitted.prepared.tasks("test"):
        table[ids[user]] = ids[user_of(user)]
    support = model.support.of(table)
    model.observe(support._replace(mask=support.mask * support.label))  # negatives are added anew
    judge = Judge(fitted.prepared, "test", fitted.stage.dataset, fitted.choice.name)
    return judge_model(fitted.trainer, judge, fitted.stage.data["test"]).means()["ndcg@10"]


@each
def test_two_shots_tell_the_taste(lovers, learned, name):
    assert ndcg(learned(name), 2) > 0.99


@each
def test_one_shot_tells_it_too(lovers, learned, name):
    assert ndcg(learned(name), 1) > 0.95


@pytest.mark.parametrize("name", RANKING)
def test_zero_shots_tell_nothing(lovers, learned, name):
    assert 0.3 < ndcg(learned(name), 0) < 0.7


@pytest.mark.parametrize("name", FLOORS)
def test_what_does_not_adapt_gains_nothing(lovers, learned, name):
    fitted = learned(name)
    assert ndcg(fitted, 2) == ndcg(fitted, 0) < 0.7


@each
def test_support_of_the_other_kind_misleads(lovers, learned, name):
    kinds = {number % 2: f"u{number}" for number in range(N_USERS) if f"u{number}" in tasks(lovers)}
    assert len(kinds) == 2
    other = ndcg_with(learned(name), lambda user: kinds[1 - int(user[1:]) % 2])
    assert other < 0.05


@each
def test_support_of_the_same_kind_serves_as_well(lovers, learned, name):
    kinds = {number % 2: f"u{number}" for number in range(N_USERS) if f"u{number}" in tasks(lovers)}
    assert ndcg_with(learned(name), lambda user: kinds[int(user[1:]) % 2]) > 0.99


@each
def test_users_without_support_get_the_prior(lovers, learned, name):
    warm = lovers.warm_rows("test")["user"].iloc[0]  # who has none in the table
    fitted = learned(name)
    assert ndcg_with(fitted, lambda user: warm) == pytest.approx(ndcg(fitted, 0))


def tasks(prepared) -> set[str]:
    return set(prepared.tasks("test"))
