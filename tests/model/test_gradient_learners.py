"""Value and meta-gradient of the gradient learners against a loop over unpadded tasks.

The loop knows nothing of this package's engine: one perceptron of the concatenated fields, plain
``autograd.grad(create_graph=True)``, one task after the other.
"""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.stage import load_stage

LEARNERS = ["MAML", "ANIL", "MetaSGD", "CAVIA", "BOIL", "MeLU"]
SETTINGS = dict(
    embedding_size=3, embedding_std=1.0, hidden_size=[5, 4], inner_lr=0.3, train_batch_size=12,
    item_id=True, item_fields=True, user_fields=True, support_negatives=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(sample_path, tmp_path_factory):
    """The sample with fields of users and items, as rankings, ratings and labels."""
    curve = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
    wanted = {"implicit": ("user_cold_curve", curve), "rating": ("user_cold_5_rating", {}),
              "label": ("user_cold_5_label", {})}  # fmt: skip
    target = tmp_path_factory.mktemp("prepared")
    return {
        kind: open_prepared(
            prepare("tiny", read_protocol(name, **changes), name, sample_path, target)
        )
        for kind, (name, changes) in wanted.items()
    }


def made(folders, kind, name, **changes):
    """A fresh model and a batch of its episodes."""
    choice, prepared = choose_model(name), folders[kind]
    stage = load_stage(choice, prepared, "test", prepared.shots[0], 7, SETTINGS | changes)
    torch.manual_seed(7)
    model = choice.cls(stage.config, stage.dataset)
    batch = next(iter(EpisodeDataLoader(stage.dataset, stage.config["train_batch_size"], 7)))
    return model, batch


LOSS = {
    "mse": mse_loss,
    "mae": l1_loss,
    "bce": binary_cross_entropy_with_logits,
    "softmax": lambda s, y: (torch.logsumexp(s, 0) - s[y > 0]).sum() / max(1, int((y > 0).sum())),
}


def forward(p, u, x):
    """The perceptron of [u; x], row by row; of [u; context; x] where there is one."""
    shared = torch.cat([u, p["context"]]) if "context" in p else u
    h = torch.cat([shared.expand(len(x), -1), x], dim=1)
    first = torch.cat([p["task_weight"], p["weight_0"]])
    h = torch.relu(h @ first + p["bias_0"])
    h = torch.relu(h @ p["weight_1"] + p["bias_1"])
    return (h @ p["weight_2"] + p["bias_2"]).squeeze(-1)


def naive(model, batch, loss, adapts, rates, steps, order):
    """The mean over tasks of the query's loss after the inner steps."""
    prior = dict(model.prior.items())
    if size := getattr(model.settings, "context_size", 0):
        prior["context"] = torch.zeros(size, requires_grad=True)
    support = model.complete(model._examples(batch, "support"))
    query, shared = model.query(batch)
    total = 0
    for task in range(len(support.mask)):
        u = model.encode_tasks(support.task[task])
        real = support.mask[task] > 0
        x, y = model.encode(support.x[task][real]), support.label[task][real]
        params = dict(prior)
        for _ in range(steps if len(y) else 0):
            names = [name for name in params if adapts(name)]
            inner = loss(forward(params, u, x), y)
            gradients = torch.autograd.grad(
                inner, [params[n] for n in names], create_graph=True, allow_unused=True
            )
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is None:  # a field that the data set has not
                    continue
                gradient = gradient if order == 2 else gradient.detach()
                params[name] = params[name] - rates(name) * gradient
        asked = query.mask[task] > 0
        there = query.x[asked] if shared else model.encode(query.x[task][asked])
        total = total + loss(forward(params, u, there), query.label[task][asked])
    return total / len(support.mask)


def compare(model, batch, loss, order=2, steps=1, adapts=lambda name: True, rates=None):
    rates = rates or (lambda name: model.settings.inner_lr)
    state = torch.get_rng_state()
    fast = model.calculate_loss(batch)
    torch.set_rng_state(state)
    slow = naive(model, batch, LOSS[loss], adapts, rates, steps, order)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    assert fast > 0.01
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(fast, list(model.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(slow, list(model.parameters()), allow_unused=True)
    moved = 0
    for name, one, other in zip(names, found, wanted, strict=True):
        one = torch.zeros(1) if one is None else one
        other = torch.zeros(1) if other is None else other
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-9, atol=1e-11, msg=name)
        moved += int((other.abs() > 1e-8).any())
    assert moved > 4, "the gradient reaches the perceptron and the embeddings"


ADAPTS = {
    "ANIL": lambda name: name.endswith("_2"),
    "CAVIA": lambda name: name == "context",
    "BOIL": lambda name: not name.endswith("_2"),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", LEARNERS)
def test_ratings(float64, folders, name, steps, order):
    model, batch = made(folders, "rating", name, inner_steps=steps, meta_order=order, loss="mse")
    rates = (lambda key: model.rates[key]) if name == "MetaSGD" else None
    everything = lambda key: True  # noqa: E731
    compare(model, batch, "mse", order, steps, ADAPTS.get(name, everything), rates)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(("kind", "loss"), [("rating", "mae"), ("label", "bce")])
def test_other_losses_of_rows(float64, folders, name, kind, loss):
    model, batch = made(folders, kind, name, inner_steps=2, loss=loss, inner_loss=loss)
    rates = (lambda key: model.rates[key]) if name == "MetaSGD" else None
    everything = lambda key: True  # noqa: E731
    compare(model, batch, loss, 2, 2, ADAPTS.get(name, everything), rates)


@pytest.mark.parametrize("negatives", [None, 2])
@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("name", LEARNERS[:-1])
def test_rankings(float64, folders, name, loss, negatives):
    """Support with sampled negatives; the query against the catalogue, or sampled ones."""
    losses = {"loss": loss, "inner_loss": loss}
    model, batch = made(folders, "implicit", name, **losses, query_negatives=negatives)
    shots = model._examples(batch, "support").mask.sum(1)
    assert {int(k) for k in shots} == {0, 1, 3}, "every k is among the tasks"
    rates = (lambda key: model.rates[key]) if name == "MetaSGD" else None
    everything = lambda key: True  # noqa: E731
    compare(model, batch, loss, 2, 1, ADAPTS.get(name, everything), rates)


def test_without_fields_of_users(float64, folders):
    fields = {"user_fields": False, "item_fields": False}
    model, batch = made(folders, "rating", "MAML", inner_loss="mae", **fields)
    assert model.encode_tasks(torch.arange(3)).shape == (3, 0)
    compare(model, batch, "mae")


def test_no_step_is_the_prior(float64, folders):
    model, batch = made(folders, "rating", "MAML", inner_steps=0)
    compare(model, batch, "mae", steps=0)


@pytest.mark.parametrize(
    ("judged", "name"), [("rating", "mse"), ("label", "bce"), ("implicit", "bce")]
)
def test_the_inner_loss_is_by_what_is_judged(float64, folders, judged, name):
    learner, batch = made(folders, judged, "MAML")
    named, _ = made(folders, judged, "MAML", inner_loss=name)
    torch.manual_seed(0)
    loss = learner.calculate_loss(batch)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, named.calculate_loss(batch))


@pytest.mark.parametrize("name", LEARNERS[:-1])
def test_chunks_do_not_change_the_loss(float64, folders, name):
    whole, batch = made(folders, "rating", name)
    parts, _ = made(folders, "rating", name, chunk_size=5)
    torch.testing.assert_close(parts.calculate_loss(batch), whole.calculate_loss(batch))


def test_first_and_second_order_differ(float64, folders):
    found = []
    for order in (1, 2):
        model, batch = made(folders, "rating", "MAML", meta_order=order)
        model.calculate_loss(batch).backward()
        found.append(model.prior["weight_0"].grad)
    assert (found[0] - found[1]).abs().max() > 1e-3


def walked(params, u, x, y, loss, rate, steps):
    """All parameters, the task's vector and the rows of the examples after plain steps."""
    values = [*params.values(), u, x]
    for _ in range(steps if len(y) else 0):
        values = [value.detach().requires_grad_() for value in values]
        found = loss(forward(dict(zip(params, values)), *values[-2:]), y)
        there = torch.autograd.grad(found, values, allow_unused=True)  # none: a field it has not
        values = [v if g is None else v - rate * g for v, g in zip(values, there)]
    return dict(zip(params, values)), values[-2], values[-1]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("kind", "inner", "outer"),
    [("rating", "mse", "mae"), ("label", "bce", "bce"), ("implicit", "bce", "softmax")],
)
def test_reptile_moves_towards_where_a_task_ends(float64, folders, kind, inner, outer, steps):
    """The gradient of the start is how far the steps on the support, then the query, lead."""
    model, batch = made(folders, kind, "Reptile", inner_steps=steps, inner_loss=inner, loss=outer)
    state, rate = torch.get_rng_state(), model.settings.inner_lr
    loss = model.calculate_loss(batch)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    torch.set_rng_state(state)
    support, (query, _) = model.complete(model._examples(batch, "support")), model.query(batch)
    tasks, way, embedded = len(support.mask), 0, 0
    wanted = {name: torch.zeros_like(value) for name, value in model.prior.items()}
    for task in range(tasks):
        here, asked = support.mask[task] > 0, query.mask[task] > 0
        u, x = model.encode_tasks(support.task[task]), model.encode(support.x[task][here])
        there = model.encode(query.x[task][asked])
        start, y = dict(model.prior.items()), support.label[task][here]
        params, v, x_end = walked(start, u, x, y, LOSS[inner], rate, steps)
        y = query.label[task][asked]
        params, v, there_end = walked(params, v, there, y, LOSS[outer], rate, steps)
        for name, value in start.items():
            wanted[name] += (value - params[name]).detach() / tasks
            way += (value - params[name]).square().sum().item() / 2 / tasks
        for old, new in ((u, v), (x, x_end), (there, there_end)):
            embedded = embedded + (old * (old - new).detach()).sum() / tasks
            way += (old - new).square().sum().item() / 2 / tasks
    torch.testing.assert_close(loss.item(), way, rtol=1e-10, atol=0)
    names = [name for name, _ in model.named_parameters()]
    of_rows = torch.autograd.grad(embedded, list(model.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().max() > 1e-6 for g in of_rows), "the embeddings move, too"
    for name, one, row in zip(names, found, of_rows, strict=True):
        other = wanted.get(name.removeprefix("prior."), row)
        if one is None or other is None:
            assert one is None and other is None, name
            continue
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_reptile_adapts_by_the_steps_on_the_support(float64, folders):
    model, batch = made(folders, "rating", "Reptile", inner_steps=2)
    support = model._encoded(model._examples(batch, "support"))
    states = model._lift(model.adapt, (0,))(support)
    everything = model.encode(model.all_others)
    scores = model._lift(model.score, (0, None))(states, everything)
    for task in range(len(scores)):
        here = support.mask[task] > 0
        x, y, u = support.x[task][here], support.label[task][here], support.task[task]
        params, v, _ = walked(dict(model.prior.items()), u, x, y, mse_loss, 0.3, 2)
        torch.testing.assert_close(scores[task], forward(params, v, everything))
