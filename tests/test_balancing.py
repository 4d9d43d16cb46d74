"""Balancers: a step through the trainer is TorchJD's step by hand, the bi-level gradient is that of
finite differences, what they remember survives a checkpoint, and what cannot be is refused.
"""

import io
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torchjd.aggregation as aggregation
from recbole.data.interaction import Interaction
from torchjd.autojac import jac

from recbole_meta.balancing import BiLevel, balancer_names, make_balancer
from recbole_meta.checkpoint import Checkpoints
from recbole_meta.compat import contained
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model import row_models
from recbole_meta.trainer import Trainer

OBJECTIVES = {
    "click": {"label": "click", "type": "binary"},
    "buy": {"label": "buy", "type": "binary", "given": "click", "weight": 2.0},
    "stars": {"label": "stars", "type": "regression", "weight": 0.3},
}
FULL = find_spec("cvxpy") is not None and find_spec("quadprog") is not None
NEEDS = {  # settings that have no default
    "CAGrad": {"c": 0.5},
    "NashMTL": {"max_norm": 1.0, "update_weights_every": 1, "optim_niter": 20},
    "FairGrad": {"alpha": 1.0},
    "STCH": {"mu": 0.1},
    "COSMOS": {"lambda_": 0.1, "weights": [1.0, 1.0, 1.0]},
    "PBI": {"theta": 1.0, "weights": {"click": 1.0, "buy": 1.0, "stars": 2.0}},
    "Constant": {"weights": [1.0, 2.0, 3.0]},
    "Fixed": {"weights": {"stars": 3.0, "click": 1.0, "buy": 2.0}},
    "Krum": {"n_byzantine": 0},
    "TrimmedMean": {"trim_number": 1},
    "BiLevel": {"inner_lr": 0.1, "meta_lr": 0.05, "conditioned": "user", "rows": 40},
}
WITH_EXTRA = ("UPGrad", "DualProj", "CAGrad", "NashMTL")
HERE = [name for name in balancer_names() if FULL or name not in WITH_EXTRA]
AGGREGATORS = [
    name
    for name in HERE
    if isinstance(getattr(aggregation, name, None), type)
    and name not in ("Constant", "Mean", "Random", "Sum")  # the scalarizers have these names
]


def batch(seed=0, size=64) -> Interaction:
    g = torch.Generator().manual_seed(seed)
    users, items = (torch.randint(1, n, (size,), generator=g) for n in (41, 31))
    draw = torch.rand(3, size, generator=g)
    click = (draw[0] < 0.6).float()
    buy = torch.where(click == 1, (draw[1] < 0.5).float(), torch.nan)
    stars = 1 + 4 * draw[2]
    ids = {"user_id": users, "item_id": items}
    return Interaction({**ids, "click": click, "buy": buy, "stars": stars})


class Rows:
    """A loader of the same batches in every epoch."""

    def __init__(self, number=3):
        self.batches = [batch(seed) for seed in range(number)]

    def __iter__(self):
        return iter(self.batches)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.fixture
def make_trainer(rows_dataset, rows_config):
    def make(name, settings=None, model="MMoE", epochs=1, seed=4, **more):
        values = {
            "objectives": OBJECTIVES, "balancer": name, "epochs": epochs,
            "balancer_settings": NEEDS.get(name, {}) if settings is None else settings,
            "embedding_std": 0.5, "learning_rate": 0.01, "checkpoint_dir": "/nowhere",
            "embedding_size": 4, **more,
        }  # fmt: skip
        config = rows_config(model, values)
        torch.manual_seed(seed)
        np.random.seed(seed)
        with contained():
            trainer = Trainer(config, row_models()[model](config, rows_dataset))
        trainer.held_out = batch(99, 200)
        return trainer

    return make


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.setattr("recbole.trainer.trainer.ensure_dir", lambda path: None)
    monkeypatch.setattr("recbole.trainer.trainer.get_tensorboard", lambda logger: None)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def step(trainer, rows):
    trainer.optimizer.zero_grad()
    trainer.backward(trainer._losses(rows))
    return gradients(trainer.model)


def bits(trainer):
    return [p.detach().numpy().tobytes() for p in trainer.model.parameters()]


@pytest.mark.parametrize("name", HERE)
def test_every_balancer_trains_by_name(make_trainer, name):
    trainer = make_trainer(name, epochs=2)
    before = bits(trainer)
    trainer.fit(Rows())
    moved = [one != two for one, two in zip(before, bits(trainer))]
    assert all(np.isfinite(entry["loss"]) for entry in trainer.history)
    assert sum(moved) >= len(moved) - 4, "what is an objective's own, and what is shared"


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("model", ["MMoE", "PLE"])
def test_an_aggregator_is_the_step_by_hand(make_trainer, name, model):
    """TorchJD's own Jacobian of the weighted losses by the shared parameters, and the plain
    gradients of what is an objective's own.
    """
    trainer, rows = make_trainer(name, model=model), batch()
    torch.manual_seed(8)
    found = step(trainer, rows)
    hand = make_trainer(name, model=model).model
    losses = hand.losses(rows)
    vector = torch.stack([losses["click"], 2.0 * losses["buy"], 0.3 * losses["stars"]])
    shared = hand.shared_parameters()
    matrix = torch.cat(
        [each.flatten(1) for each in jac(vector, shared, retain_graph=True, parallel_chunk_size=1)],
        dim=1,
    )
    torch.manual_seed(8)
    settings = dict(NEEDS.get(name, {}))
    if name == "NashMTL":
        settings["n_tasks"] = 3
    whole = getattr(aggregation, name)(**settings)(matrix)
    wanted = dict(zip(map(id, shared), whole.split([p.numel() for p in shared])))
    for place, key in enumerate(OBJECTIVES):
        own = hand.objective_parameters(key)
        each = torch.autograd.grad(vector[place], own, retain_graph=True)
        wanted |= dict(zip(map(id, own), each))
    names = {id(p): n for n, p in hand.named_parameters()}
    assert {names[key] for key in wanted} == set(found)
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[names[key]].flatten(), gradient.flatten())


SCALARS = [
    ("EW", {}, lambda x: x.sum()),
    ("Fixed", NEEDS["Fixed"], lambda x: x[0] + 2 * x[1] + 3 * x[2]),
    ("Mean", {}, lambda x: x.mean()),
    ("UW", {}, lambda x: x.sum() / 2),
    ("GeometricMean", {}, lambda x: x.prod() ** (1 / 3)),
    ("IMTLL", {}, lambda x: x.sum()),
    ("FAMO", {}, lambda x: (x.log() / (1 / x).sum().detach()).sum()),
    ("STCH", {"mu": 0.5}, lambda x: 0.5 * (x / 3 / 0.5).exp().sum().log()),
]


@pytest.mark.parametrize(("name", "settings", "formula"), SCALARS)
def test_a_scalarizer_is_its_formula(make_trainer, name, settings, formula):
    """At its start, with the weights of the data set's page inside."""
    trainer, rows = make_trainer(name, settings), batch()
    found = step(trainer, rows)
    hand = make_trainer(name, settings).model
    losses = hand.losses(rows)
    formula(torch.stack([losses["click"], 2.0 * losses["buy"], 0.3 * losses["stars"]])).backward()
    for key, gradient in gradients(hand).items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)


def test_equal_weights_are_the_plain_loss(make_trainer):
    one, two = make_trainer("EW", epochs=2), make_trainer("EW", epochs=2)
    two.balancer = None
    one.fit(Rows())
    two.fit(Rows())
    for a, b in zip(one.model.parameters(), two.model.parameters()):
        torch.testing.assert_close(a, b)
    assert one.history[1]["loss"] == pytest.approx(two.history[1]["loss"])


def test_random_weights_are_drawn_anew(make_trainer):
    trainer, rows = make_trainer("RLW"), batch()
    one, two = step(trainer, rows), step(trainer, rows)
    assert not torch.allclose(one["embed.user.weights.0"], two["embed.user.weights.0"])


def test_uncertainty_is_learned_by_the_trainers_optimiser(make_trainer):
    trainer = make_trainer("UW", epochs=2, weight_decay=0.1)
    trainer.fit(Rows())
    assert trainer.balancer.core.log_var.abs().min() > 1e-3
    assert trainer.optimizer.param_groups[1]["weight_decay"] == 0


def test_dwa_weighs_by_the_fall_of_the_losses(make_trainer):
    trainer = make_trainer("DWA", epochs=3)
    trainer.fit(Rows())
    older, newer = trainer.balancer.core._previous_averages
    wanted = 3 * (newer / older / 2.0).softmax(0)
    x = torch.ones(3)
    torch.testing.assert_close(trainer.balancer.core(x), wanted.sum())
    assert (wanted - 1).abs().max() > 1e-4


def test_famo_learns_from_the_losses_after_the_step(make_trainer):
    trainer = make_trainer("FAMO", epochs=1)
    trainer.fit(Rows(1))
    hand = make_trainer("FAMO")
    rows, core = batch(0), hand.balancer.core
    hand.backward(hand._losses(rows))
    hand.optimizer.step()
    with torch.no_grad():
        core.update(hand.balancer.vector(hand.model.losses(rows)))
    assert torch.equal(core._w, trainer.balancer.core._w) and core._w.any()


@pytest.mark.parametrize("name", HERE)
def test_what_it_remembers_survives_a_checkpoint(make_trainer, tmp_path, name):
    """A training that is cut after two epochs and started again ends with the same bits."""
    whole = make_trainer(name, epochs=4)
    whole.fit(Rows())
    cut = make_trainer(name, epochs=4)
    cut.checkpoints, cut.stop_after = Checkpoints(tmp_path, {}), 2
    cut.fit(Rows())
    torch.rand(7)
    again = make_trainer(name, epochs=4, seed=77)
    again.checkpoints = Checkpoints(tmp_path, {})
    again.fit(Rows())
    assert len(again.history) == 4 and bits(again) == bits(whole)


def test_an_objective_without_a_row_does_not_stop_the_shortest_mean(make_trainer):
    trainer, rows = make_trainer("MGDA"), batch()
    rows = Interaction({**rows.interaction, "buy": torch.full((64,), torch.nan)})
    found = step(trainer, rows)
    assert found["embed.user.weights.0"].any()


def test_nothing_shared_leaves_each_its_own(make_trainer):
    trainer, rows = make_trainer("PCGrad", model="SingleTask"), batch()
    found = step(trainer, rows)
    hand = make_trainer("EW", model="SingleTask")
    for key, gradient in step(hand, rows).items():
        torch.testing.assert_close(found[key], gradient)


# Bi-level weights.


@pytest.mark.parametrize("conditioned", ["none", "user"])
@pytest.mark.parametrize("model", ["MMoE", "ESMM", "AITM"])
def test_the_bi_level_gradient_is_that_of_finite_differences(make_trainer, conditioned, model):
    settings = NEEDS["BiLevel"] | {"conditioned": conditioned}
    trainer = make_trainer("BiLevel", settings, model=model)
    balancer, rows, held_out = trainer.balancer, batch(0), batch(1)
    rows, held_out = (
        Interaction(
            {k: v.double() if v.is_floating_point() else v for k, v in r.interaction.items()}
        )
        for r in (rows, held_out)
    )
    net = trainer.model.double()
    balancer.core.double()
    with torch.no_grad():
        for parameter in balancer.core.parameters():
            parameter.normal_(std=0.5)
    before = bits(trainer)
    found = balancer.meta_gradient(rows, held_out)
    assert bits(trainer) == before

    def after():
        """The held-out loss after the step, from the model as it was."""
        loss = sum(net.objectives[k].weight * each for k, each in balancer.weighted(rows).items())
        steps = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
        kept = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p, g in zip(net.parameters(), steps):
                p -= 0.1 * (0 if g is None else g)
            value = net.calculate_loss(held_out).item()
            for p, old in zip(net.parameters(), kept):
                p.copy_(old)
        return value

    for parameter, gradient in zip(balancer.core.parameters(), found):
        assert gradient.shape == parameter.shape
        flat, numbers = parameter.data.view(-1), gradient.reshape(-1)
        for place in range(0, len(flat), max(1, len(flat) // 4)):
            old, values = flat[place].item(), []
            for step_size in (1e-5, -1e-5):
                flat[place] = old + step_size
                values.append(after())
            flat[place] = old
            wanted = (values[0] - values[1]) / 2e-5
            assert numbers[place].item() == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_the_gradient_by_a_weight_is_a_product_of_gradients(make_trainer):
    r"""-alpha <grad L_val(theta'), grad L_k>, through the softmax of the global weights."""
    trainer = make_trainer("BiLevel", NEEDS["BiLevel"] | {"conditioned": "none"})
    net, rows, held_out = trainer.model, batch(0), batch(1)
    trainer.balancer.core.bias.data = torch.tensor([0.3, -0.2, 0.5])
    (_, found) = trainer.balancer.meta_gradient(rows, held_out)
    w = (3 * trainer.balancer.core.bias.softmax(0)).detach().requires_grad_()
    parameters = list(net.parameters())
    each = [
        torch.autograd.grad(net.objectives[k].weight * x, parameters, allow_unused=True,
                            materialize_grads=True, retain_graph=True)
        for k, x in net.losses(rows).items()
    ]  # fmt: skip
    with torch.no_grad():
        for place, p in enumerate(parameters):
            p -= 0.1 * sum(w[k] * g[place] for k, g in enumerate(each))
    outer = torch.autograd.grad(net.calculate_loss(held_out), parameters)
    by_w = torch.stack([-0.1 * sum((g * v).sum() for g, v in zip(gs, outer)) for gs in each])
    (wanted,) = torch.autograd.grad(
        3 * trainer.balancer.core.bias.softmax(0), trainer.balancer.core.bias, by_w
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_bi_level_weights_go_where_the_held_out_loss_falls(make_trainer):
    """Held-out rows of one objective alone: its weight grows, the others' fall."""
    settings = {"inner_lr": 0.5, "meta_lr": 0.05, "conditioned": "none", "rows": 200}
    trainer = make_trainer("BiLevel", settings, epochs=8)
    rows = batch(99, 200).interaction
    nothing = torch.full((200,), torch.nan)
    trainer.held_out = Interaction({**rows, "buy": nothing, "stars": nothing})
    trainer.fit(Rows())
    (w,) = trainer.balancer.weights(torch.tensor([1])).detach()
    assert w[0] > 1.1 and w[1] < 1 and w[2] < 1 and w.sum().item() == pytest.approx(3)


def test_users_have_weights_of_their_own(make_trainer):
    trainer = make_trainer("BiLevel", epochs=4)
    trainer.fit(Rows())
    w = trainer.balancer.weights(torch.tensor([1, 2, 3])).detach()
    assert not torch.allclose(w[0], w[1]) and torch.allclose(w.sum(1), torch.full((3,), 3.0))


def test_bi_level_needs_rows_and_a_table(make_trainer):
    trainer = make_trainer("BiLevel")
    trainer.held_out = None
    with pytest.raises(DataError, match="learns from held-out rows"):
        trainer._losses(batch())
    with pytest.raises(SettingError, match=r"SingleTask has no table of users .* Set it to none"):
        make_trainer("BiLevel", model="SingleTask")
    assert isinstance(
        make_trainer(
            "BiLevel", NEEDS["BiLevel"] | {"conditioned": "none"}, model="SingleTask"
        ).balancer,
        BiLevel,
    )


# What is refused.


REFUSED = [
    ("PCGard", {}, "Unknown balancer 'PCGard'. Did you mean 'PCGrad'"),
    ("Aggregator", {}, "Unknown balancer 'Aggregator'"),
    ("MGDA", {"epsilom": 1}, "'MGDA' has no setting 'epsilom'. Did you mean 'epsilon'"),
    ("MGDA", {"epsilon": -1.0}, "epsilon must be positive"),
    ("UW", {"shape": 3}, "'UW' has no setting 'shape'. None is allowed here"),
    ("GradDrop", {"f": "abs"}, "'GradDrop' has no setting 'f'"),
    ("STCH", {}, "missing setting 'mu'"),
    ("Fixed", {}, "missing setting 'weights'"),
    ("Fixed", {"weights": [1.0, 2.0]}, "one number per objective, click, buy, stars; found"),
    ("Fixed", {"weights": {"clik": 1.0}}, "'weights' names 'clik'. Did you mean 'click'"),
    ("Fixed", {"weights": {"click": 1.0, "buy": 2.0}}, "says nothing of the objective 'stars'"),
    ("BiLevel", {"inner_lr": 0.1}, "missing setting 'meta_lr'"),
    ("BiLevel", NEEDS["BiLevel"] | {"conditioned": "item"}, "'conditioned' is 'item'"),
]


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED)
def test_balancers_that_cannot_be_are_refused(make_trainer, name, settings, said):
    model = make_trainer("EW").model
    with pytest.raises(SettingError) as error:
        make_balancer(name, settings, model)
    assert said in str(error.value)


@pytest.mark.parametrize("name", WITH_EXTRA)
def test_a_missing_extra_names_the_line_that_installs_it(make_trainer, monkeypatch, name):
    model = make_trainer("EW").model
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda package: None)
    with pytest.raises(SettingError, match=r'pip install -c constraints\.txt -e "\.\[balance\]"'):
        make_balancer(name, NEEDS.get(name, {}), model)


def test_a_state_is_tensors_and_plain_values(make_trainer):
    for name in HERE:
        trainer = make_trainer(name)
        trainer.fit(Rows(1))
        buffer = io.BytesIO()
        torch.save(trainer.balancer.state_dict(), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
