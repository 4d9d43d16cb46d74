"""RESUS against a loop over unpadded tasks: the ridge in its primal form, attention row by row."""

import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.stage import load_stage
from tests.model.oracles import same_gradients

SMALL = dict(
    embedding_size=3, embedding_std=1.0, hidden_size=[5, 4], train_batch_size=12, support_sizes=7,
    item_fields=True, user_fields=True, support_negatives=2, query_negatives=20,
)  # fmt: skip
CURVE = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
CASES = [(name, kind) for name in ("RESUSRR", "RESUSNN") for kind in ("implicit", "rating")]


@pytest.fixture(scope="module")
def made(sample_path, tmp_path_factory):
    """``made(model, kind)``: a fresh model, no parameter at a round value, and a batch."""
    target = tmp_path_factory.mktemp("prepared")

    def make(name, kind, **changes):
        protocol, shape = {"implicit": ("user_cold_curve", CURVE),
                           "rating": ("user_cold_5_rating", {})}[kind]  # fmt: skip
        wanted = read_protocol(protocol, **shape)
        prepared = open_prepared(prepare("tiny", wanted, protocol, sample_path, target))
        choice = choose_model(name)
        stage = load_stage(choice, prepared, "test", prepared.shots[0], 7, SMALL | changes)
        torch.manual_seed(7)
        model = choice.cls(stage.config, stage.dataset)
        with torch.no_grad():
            model.scale += torch.rand_like(model.scale)
            model.bias += torch.rand_like(model.bias)
        return model, next(iter(EpisodeDataLoader(stage.dataset, 12, 7)))

    return make


def first_layer(p, u, x):
    return torch.relu(
        torch.cat([u.expand(len(x), -1), x], 1) @ torch.cat([p["task_weight"], p["weight_0"]])
        + p["bias_0"]
    )


def encoded(p, u, x):
    return torch.relu(first_layer(p, u, x) @ p["weight_1"] + p["bias_1"])


def shared(p, u, x):
    return (encoded(p, u, x) @ p["weight_2"] + p["bias_2"]).squeeze(-1)


def ridge(model, h, residual, asked):
    """By the normal equations of H + 1 weights, not of S multipliers."""
    x, one = (torch.cat([part, torch.ones(len(part), 1)], 1) for part in (h, asked))
    inner = x.T @ x + model.log_reg.exp() * torch.eye(x.shape[1])
    return one @ torch.linalg.solve(inner, x.T @ residual)


def nearest(model, h, residual, asked):
    """One row asked after the other, a sum over the support."""
    v, found = model.nearness.weight[0], []
    for row in asked:
        near = torch.stack([torch.exp(sum(v * abs(row - each))) for each in h])
        found.append(sum(a * r for a, r in zip(near / near.sum(), residual, strict=True)))
    return torch.stack(found)


DELTA = {"RESUSRR": ridge, "RESUSNN": nearest}


def naive(model, u, x, y, asked):
    """Scores of rows asked of one task with this support, unpadded."""
    score = shared(model.shared, u, asked)
    if not len(y):
        return score
    expected = shared(model.shared, u, x)
    residual = y - (expected if model.judged == "rating" else torch.sigmoid(expected))
    rule, encoder = DELTA[type(model).__name__], model.encoder
    delta = rule(model, encoded(encoder, u, x), residual, encoded(encoder, u, asked))
    place = min(len(y), len(model.scale)) - 1
    return score + model.scale[place] * delta + model.bias[place]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_value_and_gradient(float64, made, name, kind):
    model, batch = made(name, kind)
    support = model.complete(model._examples(batch, "support"))
    state = torch.get_rng_state()
    fast = model.calculate_loss(batch)
    torch.set_rng_state(state)
    query, _ = model.query(batch)
    slow, sizes = 0, set()
    for task in range(len(support.mask)):
        here, there = support.mask[task] > 0, query.mask[task] > 0
        x, y = model.encode(support.x[task][here]), support.label[task][here]
        u, asked = model.encode_tasks(support.task[task]), model.encode(query.x[task][there])
        scores, label = naive(model, u, x, y, asked), query.label[task][there]
        slow = slow + model.loss_function(scores, label, torch.ones_like(label))
        sizes.add(len(y))
    assert {0, 3, 9} <= sizes if kind == "implicit" else max(sizes) > 1
    torch.testing.assert_close(fast, slow / len(support.mask), rtol=1e-10, atol=1e-12)
    # none: a field that the data set has not, or a bias of all rows
    reached = same_gradients(model, fast, slow / len(support.mask), nothing=1e-12)
    assert {
        "scale",
        {"RESUSRR": "log_reg", "RESUSNN": "nearness.weight"}[name],
        "encoder.weight_0",
        "encoder.weight_1",
        "shared.weight_0",
    } <= reached


def attended(model, h, r, mask):
    """RESUSNN's state of a support with these encodings and residuals."""
    return model.fit(h, r * mask, mask)


@pytest.mark.parametrize("padding", [1e-3, 1.0, 1e6])
def test_attention_is_a_mean_of_the_support(float64, made, padding):
    """It lies among the residuals, whatever the order and the padding; of none it is 0."""
    model, _ = made("RESUSNN", "implicit")
    rng = torch.Generator().manual_seed(3)
    h, asked = (torch.randn(n, 4, generator=rng) for n in (6, 5))
    r, mask = torch.randn(6, generator=rng), torch.tensor([1.0, 0, 1, 1, 0, 0])
    h[mask == 0] *= padding
    found = model.residual(attended(model, h, r, mask), asked)
    real = r[mask > 0]
    assert (found > real.min()).all() and (found < real.max()).all()
    turn = torch.tensor([2, 0, 5, 3, 1, 4])
    turned = attended(model, h[turn], r[turn], mask[turn])
    torch.testing.assert_close(model.residual(turned, asked), found)
    alone = attended(model, h[mask > 0], real, torch.ones(3))
    torch.testing.assert_close(model.residual(alone, asked), found)
    one = attended(model, h[:1], r[:1], torch.ones(1))
    torch.testing.assert_close(model.residual(one, asked), r[:1].expand(5))  # no order of items
    assert not model.residual(attended(model, h, r, torch.zeros(6)), asked).any()
