"""MTA against plain loops, and against two defects of the code that was published with BVAE: gates
that are always 1, and decoders that are shifted by one objective.
"""

import math

import numpy as np
import pytest
import torch

from recbole_meta.compat import contained
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model.conversion import conversion
from recbole_meta.model.multitask.mta import MTA, divergence
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_objectives,
    objective_config,
    train_set,
)

OBJECTIVES = ("purchase", "click", "cart")
SMALL = {"embedding_size": 4, "train_batch_size": 8, "embedding_std": 0.5}


@pytest.fixture(autouse=True)
def _double(float64):
    """Oracles are compared in double precision."""


def built(shop, **settings) -> MTA:
    """An untrained model whose gates are not at their start."""
    torch.manual_seed(0)
    values = check_objective_settings("MTA", SMALL | settings, OBJECTIVES)
    with contained():
        model = MTA(objective_config("MTA", shop, 1, values), train_set(shop))
    with torch.no_grad():
        model.query.normal_()
        model.gate_bias.normal_()
    return model.eval()


def met(shop, objective: str, user: int) -> list[int]:
    """The items of a user in train, by ids."""
    ids, tokens = train_set(shop).field2token_id, train_set(shop).field2id_token["user_id"]
    rows = shop.positives("train", objective)
    return sorted(ids["item_id"][item] for item in rows.loc[rows["user"] == tokens[user], "item"])


def read(table, items: list[int], kept: set[int] | None = None, dropout: float = 0.0):
    """W' of the normalised history, item by item; what is not kept is dropped."""
    total = torch.zeros(table.shape[1])
    for item in items:
        if kept is None or item in kept:
            total = total + table[item] / math.sqrt(len(items)) / (1 - dropout)
    return total


def latent(model, shop, user: int, kept=None, dropout: float = 0.0) -> torch.Tensor:
    """mu_b of every behaviour, [K, d]."""
    union = sorted({item for name in OBJECTIVES for item in met(shop, name, user)})
    shared = 0 if model.own else read(model.shared, union, kept, dropout)
    return torch.stack(
        [shared + read(model.mean[b], met(shop, b, user), kept, dropout) for b in OBJECTIVES]
    )


def scores_of(model, z: torch.Tensor, objective: str) -> torch.Tensor:
    """D_t z_t + e_t of one user, [I]."""
    t = OBJECTIVES.index(objective)
    if model.own:
        gates = [float(b == t) for b in range(3)]
    else:
        logit = [float(model.query[t] @ z[b]) / 2 + float(model.gate_bias[t, b]) for b in range(3)]
        gates = [math.exp(x) / sum(map(math.exp, logit)) for x in logit]
    mixed = sum(gate * each for gate, each in zip(gates, z))
    return model.decoder[objective] @ mixed + model.bias[objective]


FORMS = [
    {"latent": "deterministic", "inputs": "all", "copy": {"click": 0.7}},
    {"inputs": "all", "copy": {"click": 0.7}, "conversion": {"click": 0.5, "purchase": 2.0}},
    {"latent": "variational", "inputs": "all", "targets": "all"},
    {"latent": "variational", "inputs": "own"},
]


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ranking_equals_a_plain_loop(shop, settings, objective):
    model = built(shop, **settings)
    for user in (1, 8, 23):
        expected = scores_of(model, latent(model, shop, user), objective)
        odds = conversion(model.history, objective)
        for item in {i for name in OBJECTIVES for i in met(shop, name, user)}:
            expected[item] += settings.get("copy", {}).get(objective, 0.0)
            expected[item] += settings.get("conversion", {}).get(objective, 0.0) * odds[item]
        found = model.rank(torch.tensor([user]), objective)[0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("targets", ["all", "dropped"])
@pytest.mark.parametrize("latent_kind", ["deterministic", "variational"])
def test_the_loss_equals_a_plain_loop(shop, monkeypatch, targets, latent_kind):
    """Every third entry is dropped, for all behaviours at once; noise is switched off."""
    weights = {"click": 2.0, "cart": 0.5}
    model = built(shop, latent=latent_kind, targets=targets, weights=weights, dropout=0.3,
                  sampled_items=None, kl_weight=0.4, kl_steps=2).train()  # fmt: skip
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    users = torch.tensor([4, 17, 9, 30])
    entries = model.entries(users)
    kept = torch.arange(len(entries.item)) % 3 > 0
    monkeypatch.setattr(model, "entries", lambda users: entries._replace(kept=kept))
    expected, kl, count = 0.0, 0.0, 0
    kept_of = [set(entries.item[(entries.row == n) & kept].tolist()) for n in range(len(users))]
    z = [latent(model, shop, u, k, 0.3) for u, k in zip(users.tolist(), kept_of)]
    for name in OBJECTIVES:
        each = []
        for user, seen, of_user in zip(users.tolist(), kept_of, z):
            share = scores_of(model, of_user, name).log_softmax(0)
            for item in met(shop, name, user):
                if targets == "all" or item not in seen:
                    each.append(-share[item])
        expected, count = (
            expected + weights.get(name, 1.0) * sum(each) / len(each),
            count + len(each),
        )
    if latent_kind == "variational":
        for user, seen, of_user in zip(users.tolist(), kept_of, z):
            for b, mean in zip(OBJECTIVES, of_user):
                log_variance = read(model.variance[b], met(shop, b, user), seen, 0.3)
                one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
                prior = torch.distributions.Normal(0.0, 1.0)
                kl += torch.distributions.kl_divergence(one, prior).sum()
    for step in (1, 2, 3):  # beta rises over two batches and stays
        found = model.calculate_loss({"user_id": users})
        beta = 0.4 * min(1.0, step / 2)
        torch.testing.assert_close(found, expected + beta * kl / count)


def test_divergence_is_that_of_gaussians():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    one = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).abs().max() == 0


# Gates that are always 1.


def test_gates_weigh_behaviours_against_each_other(shop):
    model = built(shop)
    z, _ = model.posteriors(model.entries(torch.arange(1, 30)))
    for name in OBJECTIVES:
        gates = model.gates(z, name)
        assert gates.shape == (29, 3)
        torch.testing.assert_close(gates.sum(1), torch.ones(29))
        assert gates.std(0).min() > 1e-3, "the same for all users"
    with torch.no_grad():
        model.gate_bias[1] = torch.tensor([0.0, 0.0, 50.0])
    torch.testing.assert_close(model.mixed(z, "click"), z[:, 2])  # one behaviour alone


def test_gates_learn(shop):
    model = built(shop, targets="all").train()
    model.calculate_loss({"user_id": torch.arange(1, 30)}).backward()
    for name, gradient in (("q", model.query.grad), ("a", model.gate_bias.grad)):
        assert (gradient.abs().amax(1) > 1e-5).all(), name


# Decoders and behaviours that are shifted.


@pytest.mark.parametrize("inputs", ["all", "own"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_has_its_own_decoder(shop, objective, inputs):
    others = [name for name in OBJECTIVES if name != objective]
    model = built(shop, weights=dict.fromkeys(others, 0.0), inputs=inputs).train()
    model.calculate_loss({"user_id": torch.arange(1, 30)}).backward()
    assert model.decoder[objective].grad.abs().max() > 0
    for name in others:
        assert model.decoder[name].grad is None and model.bias[name].grad is None
        read_it = model.mean[name].grad is not None and model.mean[name].grad.abs().max() > 0
        assert bool(read_it) == (inputs == "all")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_table_reads_its_own_behaviour(shop, objective):
    """Moving one behaviour's table moves the latent of that behaviour alone, by that history."""
    model, users = built(shop), torch.arange(1, 30)
    before, _ = model.posteriors(model.entries(users))
    with torch.no_grad():
        model.mean[objective][:] += 1
    after, _ = model.posteriors(model.entries(users))
    for b, name in enumerate(OBJECTIVES):
        moved = [math.sqrt(len(met(shop, name, user))) for user in users.tolist()]
        expected = torch.tensor(moved)[:, None] if name == objective else torch.zeros(29, 1)
        torch.testing.assert_close(after[:, b] - before[:, b], expected.expand(-1, 4))


# What is dropped, and what is drawn.


def test_a_dropped_item_is_hidden_under_every_behaviour(shop):
    model = built(shop, dropout=0.5).train()
    entries = model.entries(torch.arange(1, 30))
    assert 0.3 < entries.kept.double().mean() < 0.7
    seen, _ = model.posteriors(entries)
    with torch.no_grad():
        hidden = torch.zeros(len(entries.item), dtype=torch.bool)
        hidden[~entries.kept] = True
        for item in entries.item[hidden].unique():
            if not (entries.kept & (entries.item == item)).any():
                model.shared[item] += 9
                for table in model.mean.values():
                    table[item] += 9
    torch.testing.assert_close(model.posteriors(entries)[0], seen)
    assert model.eval().entries(torch.arange(1, 30)).kept.all()


def test_drawing_all_items_is_the_full_softmax(shop):
    losses = []
    for number in (None, 10**6):
        model = built(shop, sampled_items=number).train()
        torch.manual_seed(5)
        losses.append(model.calculate_loss({"user_id": torch.arange(1, 30)}))
    # the padding has no place in a drawn softmax, and none in a ranking
    model = built(shop, sampled_items=None).train()
    with torch.no_grad():
        for bias in model.bias.values():
            bias[0] = -1e9
    torch.manual_seed(5)
    torch.testing.assert_close(model.calculate_loss({"user_id": torch.arange(1, 30)}), losses[1])


def test_drawn_items_stand_for_all_that_were_not(shop):
    """The mean over draws of a softmax's denominator is that of all items."""
    model = built(shop, sampled_items=4)
    target, logit = torch.tensor([3, 5, 3]), torch.randn(model.n_items)
    sums = []
    for _ in range(4_000):
        items, place, more = model._softmax_items(target)
        assert items[place].tolist() == [3, 5, 3] and len(items.unique()) == len(items) == 6
        sums.append((logit[items] + more).exp().sum())
    whole = logit[1:].exp().sum()
    error = torch.stack(sums).std() / math.sqrt(len(sums))
    assert abs(torch.stack(sums).mean() - whole) < 4 * error


def test_a_batch_whose_targets_are_all_items_draws_none(shop):
    model = built(shop, sampled_items=4)
    target = torch.arange(1, model.n_items).flip(0)
    items, place, more = model._softmax_items(target)
    assert items[place].tolist() == target.tolist() and not more.any()
    assert len(items) == model.n_items - 1


# As a whole.


@pytest.mark.parametrize("settings", FORMS)
def test_training_beats_popularity(shop, settings):
    long = {"epochs": 40, "eval_step": 40, "sampled_items": None, "learning_rate": 0.02}
    pop = fit_objectives("ObjectivePop", shop, 1, {}).valid.means()["mean/ndcg@10"]
    fit = fit_objectives("MTA", shop, 1, SMALL | {"embedding_std": 0.05} | long | settings)
    assert fit.valid.means()["mean/ndcg@10"] > 1.1 * pop


def test_the_named_metric_chooses_the_epoch(shop):
    settings = SMALL | {"epochs": 12, "eval_step": 1, "stopping_step": 20, "learning_rate": 0.05}
    for name in ("purchase/ndcg@10", "worst/recall@10", "cart/ndcg@10/novel"):
        fit = fit_objectives("MTA", shop, 1, settings | {"stop_by": name})
        scores = [entry["valid"] for entry in fit.history]
        assert fit.epochs == 1 + int(np.argmax(scores))
        assert fit.valid.means()[name] == pytest.approx(max(scores))


REFUSED = [
    ({"stop_by": "buy/ndcg@10"}, "'stop_by' is 'buy/ndcg@10'"),
    ({"dropout": 1.0}, "'dropout' must be below 1"),
    ({"latent": "variationl"}, "Did you mean 'variational'"),
    ({"targets": "droped"}, "Did you mean 'dropped'"),
    ({"embeding_size": 3}, "Did you mean 'embedding_size'"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(SettingError, match=said):
        check_objective_settings("MTA", settings, OBJECTIVES)


AT_ODDS = [
    ({"inputs": "own", "copy": {"click": 1.0}}, "'copy' reads other behaviours"),
    ({"dropout": 0.0, "targets": "dropped"}, "with dropout 0 nothing is dropped"),
    ({"inputs": "own", "conversion": {"click": 1.0}}, "'conversion' reads other behaviours"),
    ({"conversion": {"clik": 1.0}}, "'conversion' names the objective 'clik'"),
    ({"copy": {"clik": 1.0}}, "'copy' names the objective 'clik'"),
]


@pytest.mark.parametrize(("settings", "said"), AT_ODDS)
def test_settings_at_odds_are_refused(shop, settings, said):
    with pytest.raises(SettingError, match=said):
        built(shop, **settings)


def test_a_training_that_diverges_is_stopped_and_named(shop):
    with pytest.raises(DataError, match=r"MTA: the loss is (nan|inf) in epoch \d+, batch \d+"):
        fit_objectives("MTA", shop, 1, SMALL | {"learning_rate": 1e200})
