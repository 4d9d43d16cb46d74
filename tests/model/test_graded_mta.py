"""GradedMTA against a plain loop: one softmax, with targets weighted by what they are worth."""

import pytest
import torch

from recbole_meta.compat import contained
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model.multitask.graded_mta import GradedMTA
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_model,
    objective_config,
    train_set,
)

OBJECTIVES = ("purchase", "click", "cart")
GAINS = {"purchase": 4.0, "click": 0.5, "cart": 0.0}
SMALL = {"embedding_size": 4, "train_batch_size": 8, "embedding_std": 0.5, "sampled_items": None}


def built(shop, **settings) -> GradedMTA:
    torch.manual_seed(0)
    values = check_objective_settings("GradedMTA", SMALL | settings, OBJECTIVES)
    with contained():
        return GradedMTA(objective_config("GradedMTA", shop, 1, values), train_set(shop))


def test_the_loss_equals_a_plain_loop(shop, float64):
    model = built(shop, gains=GAINS, dropout=0.0).train()
    users, total, weight = torch.tensor([4, 17, 9, 30]), 0.0, 0.0
    with torch.no_grad():
        model.gate_bias.normal_()
        share = model.rank(users, "cart").log_softmax(1)
    for row, user in enumerate(users.tolist()):
        for name in OBJECTIVES:
            for item in model.history[name][user].indices.tolist():
                total -= GAINS[name] * share[row, item]
                weight += GAINS[name]
    loss = model.calculate_loss({"user_id": users})
    torch.testing.assert_close(loss, torch.as_tensor(total / weight))
    loss.backward()
    assert model.decoder["purchase"].grad.abs().max() > 0
    assert model.decoder["click"].grad is None and model.bias["cart"].grad is None


def test_every_objective_has_one_ranking(shop):
    model, users = built(shop, gains=GAINS).eval(), torch.arange(1, 9)
    for name in OBJECTIVES:
        assert torch.equal(model.rank(users, name), model.rank(users, "purchase"))


def test_what_is_given_chooses_the_epoch(shop):
    seen = []

    def validate(model) -> float:
        seen.append(model.bias["purchase"].detach().clone())
        return [0.1, 0.9, 0.3, 0.2][len(seen) - 1]

    few = {"epochs": 4, "eval_step": 1, "stopping_step": 9, "gains": GAINS}
    model, trainer, _ = fit_model("GradedMTA", shop, 1, SMALL | few, "cpu", validate)
    assert len(seen) == 4 and trainer.best_epoch == 2
    assert torch.equal(model.bias["purchase"], seen[1])


def test_gains_name_objectives(shop):
    with pytest.raises(SettingError, match="'gains' names the objective 'clik'"):
        built(shop, gains={"clik": 1.0})
    with pytest.raises(DataError, match="all 'gains' are 0"):
        built(shop, gains=dict.fromkeys(OBJECTIVES, 0.0))
