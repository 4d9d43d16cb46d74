"""RecBole's own models on one behaviour, or on the union, under the judge of several of them."""

import numpy as np
import pytest
import torch

from recbole_meta.behaviour_fitting import check_behaviour_settings, fit_behaviour
from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.objective_fitting import fit_objectives

OBJECTIVES = ("purchase", "click", "cart")
VAE = {"epochs": 8, "stopping_step": 10, "mlp_hidden_size": [8], "latent_dimension": 4,
       "train_batch_size": 16, "learning_rate": 0.02}  # fmt: skip


def same(one, other, objective: str) -> None:
    """The same users have the same metrics."""
    assert list(one.tasks[objective]) == list(other.tasks[objective])
    for query, metrics in one.metrics[objective].items():
        for name, values in metrics.items():
            np.testing.assert_allclose(values, other.metrics[objective][query][name], atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_recboles_ease_of_one_behaviour_is_ours_of_that_behaviour(shop, objective):
    """Another implementation, ids of its own: what is read, hidden or mapped otherwise shows."""
    others = {name: 0.0 for name in OBJECTIVES if name != objective}
    ours = {"weights": others, "target": "own", "reg_weight": 5.0}
    one = fit_objectives("ObjectiveEASE", shop, 1, ours)
    two = fit_behaviour("EASE", shop, 1, {"behaviour": objective, "reg_weight": 5.0})
    assert list(two.valid.metrics) == [objective] and two.epochs == 1
    same(two.valid, one.valid, objective)
    same(two.test(shop), one.test(shop), objective)


def test_recboles_ease_of_the_union_is_ours_of_the_union(shop):
    one = fit_objectives("ObjectiveEASE", shop, 1, {"reg_weight": 5.0})
    two = fit_behaviour("EASE", shop, 1, {"behaviour": "union", "reg_weight": 5.0})
    for objective in OBJECTIVES:
        same(two.valid, one.valid, objective)
        same(two.test(shop), one.test(shop), objective)


@pytest.mark.parametrize("model", ["MultiVAE", "BPR", "LightGCN"])
def test_valid_chooses_the_epoch(shop, model):
    """The model that is judged is the best epoch's, by the behaviour's own metric."""
    few = VAE if model == "MultiVAE" else {"epochs": 4, "embedding_size": 4, "learning_rate": 0.1}
    fit = fit_behaviour(model, shop, 1, few | {"behaviour": "click"})
    scores = [entry["valid"] for entry in fit.history]
    assert len(scores) == few["epochs"] and len(set(scores)) > 1
    assert fit.valid.means()["click/ndcg@10"] == pytest.approx(max(scores))
    assert scores[fit.epochs - 1] == max(scores)


def test_multivae_learns_and_is_the_same_again(shop):
    pop = fit_objectives("ObjectivePop", shop, 1, {}).valid.means()["click/ndcg@10"]
    fits = [
        fit_behaviour("MultiVAE", shop, 1, VAE | {"epochs": 60, "behaviour": "click"})
        for _ in range(2)
    ]
    assert fits[0].valid.means()["click/ndcg@10"] > 1.05 * pop
    same(fits[0].test(shop), fits[1].test(shop), "click")


def test_the_epoch_of_the_union_is_chosen_by_the_mean(shop):
    fit = fit_behaviour("MultiVAE", shop, 1, VAE | {"behaviour": "union"})
    best = max(entry["valid"] for entry in fit.history)
    assert fit.valid.means()["mean/ndcg@10"] == pytest.approx(best)
    users = torch.arange(1, 9)
    assert torch.equal(fit.model.rank(users, "click"), fit.model.rank(users, "cart"))


def test_a_training_that_diverges_names_its_settings(shop):
    with pytest.raises(RecboleMetaError, match=r"MultiVAE stopped with .* learning_rate = "):
        fit_behaviour("MultiVAE", shop, 1, VAE | {"behaviour": "click", "learning_rate": 1e30})


REFUSED = [
    ("MultiVAE", {}, "'behaviour' is None: it says what the model learns"),
    ("MultiVAE", {"behaviour": "clik"}, "Did you mean 'click'"),
    ("MultiVAE", {"behaviour": "click", "latent_dimensions": 4}, "Did you mean 'latent_dimension'"),
    ("MultiVAE", {"behaviour": "click", "latent_dimension": 0}, "must be at least 1"),
    ("MultiVAE", {"behaviour": "click", "benchmark_filename": []}, "set by the prepared folder"),
    ("FM", {"behaviour": "click"}, "does not rank a whole catalogue"),
    ("NeuMF", {"behaviour": "click"}, "does not rank a whole catalogue"),
    ("MAML", {"behaviour": "click"}, "is of cold users or items"),
    ("MultVAE", {"behaviour": "click"}, "Did you mean 'MultiVAE'"),
]


@pytest.mark.parametrize(("model", "settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(model, settings, said):
    with pytest.raises(SettingError, match=said):
        check_behaviour_settings(model, settings, OBJECTIVES)
