"""TaNP against a loop over unpadded tasks, with torch's own distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.episode import Examples
from recbole_meta.model.meta.tanp import Gaussian, divergence, sharpened

SMALL = dict(
    embedding_size=4, embedding_std=1.0, hidden_size=[6, 5], latent_size=3, task_size=4,
    pool_size=3, support_negatives=1, kl_weight=0.7,
    cluster_weight=0.4, freedom=1.5, train_batch_size=12,
)  # fmt: skip
CASES = [("rating", "film"), ("rating", "gated"), ("implicit", "gated"), ("label", "film")]


@pytest.fixture(params=CASES, ids="-".join)
def model(request, worlds, fit, float64):
    kind, modulation = request.param
    return fit(worlds[kind], "TaNP", modulation=modulation, **SMALL)


def layer(p, rows, number):
    return rows @ p[f"weight_{number}"] + p[f"bias_{number}"]


def mean(model, encoder, x, y):
    """Of the encoded examples, one after the other."""
    size = encoder["weight_1"].shape[1]
    total = torch.zeros(size)
    for row, said in zip(x, y):
        h = torch.relu(layer(encoder, torch.cat([row, (said - model.label_mean)[None]]), 0))
        total = total + torch.relu(layer(encoder, h, 1)) / len(y)
    return total


def latent(model, x, y):
    first, _, last = model.to_latent
    h = torch.relu(mean(model, model.latent_encoder, x, y) @ first.weight.T + first.bias)
    both = h @ last.weight.T + last.bias
    return Normal(both[:3], both[3:].exp())


def assigned(model, x, y):
    task = mean(model, model.task_encoder, x, y) @ model.to_task.weight.T + model.to_task.bias
    nu = model.settings.freedom
    c = torch.stack(
        [(1 + (task - a).dot(task - a) / nu) ** (-(nu + 1) / 2) for a in model.clusters]
    )
    c = c / c.sum()
    return task + sum(part * a for part, a in zip(c, model.clusters)), c


def decoded(model, z, o, x):
    change = {name: linear.weight @ o for name, linear in model.modulate.items()}
    scale, shift = torch.tanh(change["scale"]), torch.tanh(change["shift"])
    if model.settings.modulation == "gated":
        d, e = torch.sigmoid(change["gate"]), torch.tanh(change["mix"])
        scale, shift = scale * d + e * (1 - d), shift * d + e * (1 - d)
    p = model.decoder
    first = torch.cat([p["task_weight"], p["weight_0"]])
    h = torch.cat([z.expand(len(x), -1), x], dim=1) @ first + p["bias_0"]
    h = torch.relu(h * scale[:6] + shift[:6])
    h = torch.relu(layer(p, h, 1) * scale[6:] + shift[6:])
    return layer(p, h, 2).squeeze(-1)


def test_value_and_gradient(model, monkeypatch):
    fitted, model = model, model.model
    monkeypatch.setattr(model, "noise", lambda tasks: torch.tensor([[0.4, -1.1, 0.6]] * tasks))
    batch = next(iter(EpisodeDataLoader(fitted.stage.dataset, 12, 3)))
    state = torch.get_rng_state()
    fast = model.calculate_loss(batch)
    torch.set_rng_state(state)
    support, (query, _) = model.complete(model._examples(batch, "support")), model.query(batch)
    slow, found = 0, []
    for task in range(len(support.mask)):
        here, there = support.mask[task] > 0, query.mask[task] > 0
        x, y = model.encode(support.x[task][here]), support.label[task][here]
        asked, said = model.encode(query.x[task][there]), query.label[task][there]
        prior, posterior = latent(model, x, y), latent(model, torch.cat([x, asked]),
                                                       torch.cat([y, said]))  # fmt: skip
        z = posterior.mean + posterior.stddev * torch.tensor([0.4, -1.1, 0.6])
        o, c = assigned(model, x, y)
        scores = decoded(model, z, o, asked)
        slow = slow + model.loss_function(scores, said, torch.ones_like(said))
        slow = slow + 0.7 * kl_divergence(posterior, prior).sum()
        found.append(c)
    c = torch.stack(found)
    d = c.detach() ** 2 / c.detach().sum(0)
    d = d / d.sum(1, keepdim=True)
    slow = slow / len(c) + 0.4 * torch.nn.functional.kl_div(c.log(), d, reduction="batchmean")
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    parameters = dict(model.named_parameters())
    one = torch.autograd.grad(fast, parameters.values(), allow_unused=True)
    other = torch.autograd.grad(slow, parameters.values(), allow_unused=True)
    for name, mine, wanted in zip(parameters, one, other, strict=True):
        if wanted is None:  # a field that the data set has not
            assert mine is None or not mine.any(), name
            continue
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-11, msg=name)
        biased = "bias" in name and model.judged == "implicit"  # a softmax sees no bias of all rows
        assert biased or not wanted.numel() or wanted.abs().max() > 1e-9, name


def test_it_is_judged_with_the_mean_of_the_support(model):
    model = model.model
    x, y = model.encode(torch.tensor([3, 5])), torch.tensor([1.0, 0.0]).double()
    state = model.adapt(Examples(x, y, torch.ones(2), model.encode_tasks(torch.tensor(1))))
    asked = model.encode(model.all_others)
    o, _ = assigned(model, x, y)
    wanted = decoded(model, latent(model, x, y).mean, o, asked)
    torch.testing.assert_close(model.score(state, asked), wanted)


def test_noise_is_drawn_per_task_and_per_batch(model):
    one, other = model.model.noise(4), model.model.noise(4)
    assert one.shape == (4, 3) and not torch.equal(one, other)
    assert (one[0] - one[1]).abs().max() > 0


def test_divergence_is_of_standard_deviations():
    mean, std = torch.tensor([[0.3, -2.0], [1.0, 0.5]]), torch.tensor([[0.2, 3.0], [1.5, 0.1]])
    found = divergence(*(Gaussian(m, s.log()) for m, s in zip(mean, std)))
    left, right = (Normal(m, s) for m, s in zip(mean, std))
    torch.testing.assert_close(found, kl_divergence(left, right).sum())
    same = Gaussian(mean[0], std[0].log())
    assert divergence(same, same) == pytest.approx(0, abs=1e-6)


def test_clustering_pulls_an_assignment_to_where_it_is_strongest():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    sharpened(torch.softmax(logits, 1)).backward()
    assert (logits.grad.sign() == torch.tensor([[-1.0, 1.0], [1.0, -1.0]])).all()
