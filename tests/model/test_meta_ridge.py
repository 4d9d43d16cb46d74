"""MetaRidge against plain loops: its start, its posterior, its loss and gradient, its stages."""

import numpy as np
import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, SettingError
from recbole_meta.quick_start import run
from recbole_meta.stage import load_stage

SMALL = {"embedding_size": 3, "train_batch_size": 16}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(prepared, **changes):
    """A prepared model in which nothing is at its start, and a batch with all its episodes."""
    choice = choose_model("MetaRidge")
    stage = load_stage(choice, prepared, "test", prepared.shots[0], 7, SMALL | changes)
    model = choice.cls(stage.config, stage.dataset)
    loader = EpisodeDataLoader(stage.dataset, 10**4, 7)
    model.prepare(loader)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng)
    return model, next(iter(loader))


@pytest.mark.parametrize("base", ["pop", "query_pop"])
def test_it_starts_as_prior_ridge(worlds, fit, base: str) -> None:
    same = dict(base=base, embedding_size=3, noise=0.7)
    supports = [[], [3], [5, 1, 9, 20]]
    start = fit(worlds["implicit"], "MetaRidge", epochs=0, **same)
    ridge = fit(worlds["implicit"], "PriorRidge", base_weight=1.0, **same)
    np.testing.assert_allclose(
        start.scores_after(*supports), ridge.scores_after(*supports), atol=1e-6
    )


def test_more_directions_than_there_are_change_nothing(worlds, fit) -> None:
    few, many = (
        fit(worlds["implicit"], "MetaRidge", epochs=0, embedding_size=size) for size in (30, 99)
    )
    np.testing.assert_allclose(few.scores_after([4, 8]), many.scores_after([4, 8]), atol=1e-5)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_weights_are_the_posterior_mean(worlds, double, k: int) -> None:
    """Against Bayes' rule in the space of weights, where ours solves in that of the support."""
    model, _ = learner(worlds["implicit"])
    items = torch.tensor([2, 7, 11, 30][:k], dtype=torch.int64)
    x = torch.cat([items, torch.zeros(2, dtype=torch.int64)])
    mask = torch.cat([torch.ones(k), torch.zeros(2)])
    with torch.no_grad():
        found = model.adapt(Examples(x, mask, mask, torch.tensor(1)))["w"].numpy()
        r, q = model.read_vector[items].numpy(), model.read_mean[items].numpy()
        mean, precision = model.prior_mean.numpy(), np.diag(np.exp(-model.log_prior.numpy()))
        noise = float(model.log_noise.exp())
        posterior = precision + r.T @ r / noise
        expected = np.linalg.solve(posterior, precision @ mean + r.T @ (1 - q) / noise)
        np.testing.assert_allclose(found, expected, atol=1e-10)
        scores = model.score({"w": torch.from_numpy(found)}, torch.tensor([5, 30]))
        wanted = model.item_mean + model.item_vector @ torch.from_numpy(expected)
        np.testing.assert_allclose(scores, wanted[[5, 30]], atol=1e-10)


def test_its_posterior_has_the_mean_of_adapt_and_grows_by_one(worlds, double) -> None:
    model, _ = learner(worlds["implicit"])
    items = torch.tensor([2, 7, 11])
    support = Examples(torch.tensor([2, 7, 11, 0]), *2 * [torch.tensor([1.0, 1, 1, 0])],
                       torch.tensor(1))  # fmt: skip
    nothing = Examples(support.x, *2 * [torch.zeros(4)], support.task)
    with torch.no_grad():
        found = model.posterior(support)
        torch.testing.assert_close(found.mean, model.adapt(support)["w"])
        known = model.posterior(nothing)
        torch.testing.assert_close(known.covariance, torch.diag(model.log_prior.exp()))
        first = model.variance(known, torch.tensor([5, 30]))
        for item in items.flip(0):
            known = model.update(known, item)
        for one, other in zip(known, found, strict=True):
            torch.testing.assert_close(one, other)
        last = model.variance(known, torch.tensor([5, 30]))
        r, noise = model.read_vector[items].numpy(), float(model.log_noise.exp())
        precision = np.diag(np.exp(-model.log_prior.numpy())) + r.T @ r / noise
        v = model.item_vector[[5, 30]].numpy()
        expected = [vector @ np.linalg.solve(precision, vector) for vector in v]
    np.testing.assert_allclose(last, expected, atol=1e-10)
    assert (last < first).all()


@pytest.mark.parametrize("anchor", [0.0, 2.0])
def test_loss_and_gradient_are_those_of_a_plain_loop(worlds, double, anchor: float) -> None:
    """Over candidates alone: items that warm users have, less the reserve of the episode."""
    prepared = worlds["implicit"]
    model, batch = learner(prepared, anchor=anchor)
    found = model.calculate_loss(batch)
    parameters = dict(model.named_parameters())
    gradient = torch.autograd.grad(found, list(parameters.values()))
    r, v, q, b = model.read_vector, model.item_vector, model.read_mean, model.item_mean
    met = model.pool.nonzero().squeeze(-1).tolist()
    total = torch.tensor(0.0)
    for row in range(len(batch["task"])):
        support = batch["support_item"][row][batch["support_mask"][row] > 0]
        asked = batch["query_item"][row][batch["query_mask"][row] > 0].tolist()
        barred = set(batch["barred_item"][row].tolist())
        free = [item for item in met if item not in barred]
        assert set(asked) <= set(free) and len(barred - {0}) == 4
        precision = torch.diag((-model.log_prior).exp())
        noise = model.log_noise.exp()
        posterior = precision + r[support].T @ r[support] / noise
        right = precision @ model.prior_mean + r[support].T @ (1 - q[support]) / noise
        scores = (b[free] + v[free] @ torch.linalg.solve(posterior, right)) / (
            model.log_temperature.exp()
        )
        log_p = torch.log_softmax(scores, dim=0)
        total = total - log_p[[free.index(item) for item in asked]].mean()
    expected = total / len(batch["task"])
    for items, start in zip((r, v, q, b), model._start, strict=True):
        expected = expected + anchor * ((items - start) ** 2).sum() / (start**2).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    plain = torch.autograd.grad(expected, list(parameters.values()))
    for name, ours, theirs in zip(parameters, gradient, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7, msg=name)


def test_features_move_the_mean_of_the_prior(tiny, double) -> None:
    """From where a ridge of warm users' weights on their features is, by normal equations."""
    settings = SMALL | {"epochs": 0, "user_fields": True, "field_reg": 7.0, "noise": 0.2}
    choice = choose_model("MetaRidge")
    stage = load_stage(choice, tiny, "test", tiny.shots[0], 7, settings)
    model, warm = choice.cls(stage.config, stage.dataset), warm_users(stage.dataset)
    model.prepare(EpisodeDataLoader(stage.dataset, 10**4, 7))
    f = model.encode_tasks(torch.from_numpy(warm.ids)).numpy()
    assert f.shape[1] > 3 and np.abs(f).max() > 0
    v = model.item_vector.detach().numpy()
    x = warm.matrix.toarray() - warm.pop
    w = np.stack([np.linalg.solve(v.T @ v + 0.2 * np.eye(3), v.T @ row) for row in x])
    start = np.linalg.solve(f.T @ f + 7 * np.eye(f.shape[1]), f.T @ w)
    np.testing.assert_allclose(model.field_map.detach(), start, atol=1e-8)
    rng = np.random.default_rng(5)
    task = torch.from_numpy(rng.normal(size=f.shape[1]))
    x = torch.tensor([2, 4, 0])
    mask = torch.tensor([1.0, 1, 0])
    items, support = x[:2], Examples(x, mask, mask, task)
    with torch.no_grad():
        model.field_map += 0.3 * torch.from_numpy(rng.normal(size=start.shape))
        model.prior_mean += 0.1
        found = model.adapt(support)["w"]
        torch.testing.assert_close(model.posterior(support).mean, found)
        mean = (model.prior_mean + task @ model.field_map).numpy()
        r, q = model.read_vector[items].numpy(), model.read_mean[items].numpy()
        wanted = np.linalg.solve(np.eye(3) + r.T @ r / 0.2, mean + r.T @ (1 - q) / 0.2)
        np.testing.assert_allclose(found, wanted, atol=1e-6)  # 0.2 is kept as a single
        nobody = Examples(x, 0 * mask, 0 * mask, task)
        np.testing.assert_allclose(model.adapt(nobody)["w"], mean, atol=1e-12)


def test_features_are_learned_and_said(tiny, worlds, fit) -> None:
    fitted = fit(tiny, "MetaRidge", epochs=2, user_fields=True, learn="head")
    start = fit(tiny, "MetaRidge", epochs=0, user_fields=True)
    assert not torch.equal(fitted.model.field_map, start.model.field_map)
    kind = type(fitted.model)
    assert kind.reads_with(fitted.model.settings, "implicit") == "ids +user fields"
    without = fit(tiny, "MetaRidge", epochs=0).model
    assert kind.reads_with(without.settings, "implicit") == "ids"
    assert not hasattr(without, "field_map")
    with pytest.raises(DataError, match="'user_fields' reads features, but the data set has no f"):
        fit(worlds["implicit"], "MetaRidge", user_fields=True)


def test_a_head_leaves_the_items_where_they_are(worlds, fit) -> None:
    items = ("read_vector", "item_vector", "read_mean", "item_mean")

    def moved(**settings) -> dict[str, float]:
        fitted = fit(worlds["implicit"], "MetaRidge", epochs=3, learning_rate=0.01, **settings)
        start = fit(worlds["implicit"], "MetaRidge", epochs=0, **settings).model
        return {
            name: float((parameter - start.get_parameter(name)).detach().norm())
            for name, parameter in fitted.model.named_parameters()
        }

    head, free, held = moved(learn="head"), moved(anchor=0.0), moved(anchor=1000.0)
    assert all(head[name] == 0 for name in items)
    assert all(far > 0 for name, far in head.items() if name not in items)
    assert all(0 < held[name] < free[name] for name in items)


def test_items_are_no_tasks_of_it() -> None:
    with pytest.raises(SettingError, match="MetaRidge has no task that is a item"):
        run("MetaRidge", protocol="item_cold_curve")
