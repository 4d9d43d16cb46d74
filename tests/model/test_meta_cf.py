"""MetaCF against steps whose gradients are written out, task by task and without padding."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.episode import Examples
from recbole_meta.stage import load_stage
from tests.model.oracles import same_gradients

SMALL = dict(
    embedding_size=3, embedding_std=1.0, inner_lr=0.2, inner_steps=2, train_batch_size=12,
    item_fields=True, user_fields=True, support_negatives=2,
)  # fmt: skip
CURVE = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
PROTOCOLS = {"implicit": ("user_cold_curve", CURVE), "rating": ("user_cold_5_rating", {}),
             "label": ("user_cold_5_label", {})}  # fmt: skip
SLOPE = {  # of the mean loss of rows by their scores, but for the rows' number
    "softmax": lambda s, y: y.sum() * s.exp() / s.exp().sum() - y,
    "bce": lambda s, y: 1 / (1 + (-s).exp()) - y,
    "mse": lambda s, y: 2 * (s - y),
}

FIXTURE = HealthCheck.function_scoped_fixture  # of the precision, which no example changes


@pytest.fixture(scope="module")
def made(sample_path, tmp_path_factory):
    """``made(kind)``: a fresh model, no parameter at a round value, and a batch."""
    target = tmp_path_factory.mktemp("prepared")

    def make(kind, **changes):
        protocol, shape = PROTOCOLS[kind]
        wanted = read_protocol(protocol, **shape)
        prepared = open_prepared(prepare("tiny", wanted, protocol, sample_path, target))
        choice = choose_model("MetaCF")
        stage = load_stage(choice, prepared, "test", prepared.shots[0], 7, SMALL | changes)
        torch.manual_seed(7)
        model = choice.cls(stage.config, stage.dataset)
        with torch.no_grad():
            for value in (model.start, model.convolution, model.of_task, model.rates):
                value += 0.2 * torch.randn_like(value)
        return model, next(iter(EpisodeDataLoader(stage.dataset, 12, 7)))

    return make


@pytest.fixture(scope="module")
def made_once(made):
    models = {}

    def once(kind):
        if kind not in models:
            models[kind] = made(kind)[0]
        return models[kind]

    return once


def naive(model, u, x, y, loss, steps, order):
    """The user's row of D weights and a bias."""
    liked = x[y > (model.label_mean if model.judged == "rating" else 0.5)]
    mean = sum(liked) / len(liked) if len(liked) else torch.zeros(x.shape[1])
    p, b = model.start[:-1] + model.convolution @ mean, model.start[-1]
    p, b = p + u @ model.of_task[:, :-1], b + u @ model.of_task[:, -1]
    count = y.sum() if loss == "softmax" else len(y)
    for _ in range(steps if len(y) else 0):
        slope = SLOPE[loss](x @ p + b, y) / count
        to_p, to_b = x.T @ slope, slope.sum()
        if order == 1:
            to_p, to_b = to_p.detach(), to_b.detach()
        p, b = p - model.rates[:-1] * to_p, b - model.rates[-1] * to_b
    return p, b


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "loss"),
    [("implicit", "softmax"), ("implicit", "bce"), ("rating", "mse"), ("label", "bce")],
)
def test_value_and_gradient(float64, made, kind, loss, steps, order):
    named = {} if loss == made(kind)[0].usual_inner_loss[kind] else {"inner_loss": loss}
    model, batch = made(kind, inner_steps=steps, meta_order=order, query_negatives=2, **named)
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
        p, b = naive(model, u, x, y, loss, steps, order)
        label = query.label[task][there]
        slow = slow + model.loss_function(asked @ p + b, label, torch.ones_like(label))
        sizes.add(len(y))
    slow = slow / len(support.mask)
    assert {0, 3, 9} <= sizes if kind == "implicit" else max(sizes) > 1
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    reached = same_gradients(model, fast, slow)  # none: a field that is not there, rates of no step
    assert {"start", "convolution", "of_task", *(["rates"] if steps else [])} <= reached


@settings(max_examples=25, deadline=None, suppress_health_check=[FIXTURE])
@given(
    shots=st.integers(0, 5), padding=st.integers(0, 3), seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 1e6]),
)  # fmt: skip
@pytest.mark.parametrize("kind", PROTOCOLS)
def test_order_and_padding_say_nothing(float64, made_once, kind, shots, padding, seed, scale):
    model, rng = made_once(kind), torch.Generator().manual_seed(seed)
    size, width = model.other_embedding.size, max(1, shots + padding)
    x = torch.randn(width, size, generator=rng)
    y = torch.randint(0, 2, (width,), generator=rng).double()
    mask = (torch.arange(width) < shots).double()
    x = torch.where(mask.unsqueeze(-1) > 0, x, scale * x)  # rubbish in the padding
    task = torch.zeros(model.task_embedding.size)
    turn = torch.randperm(width, generator=rng)
    found = model.adapt(Examples(x[turn], y[turn], mask[turn], task))["row"]
    alone = model.adapt(Examples(x[:shots], y[:shots], mask[:shots], task))["row"]
    torch.testing.assert_close(found, alone if shots else model.start)


def test_a_newcomer_without_likes_starts_as_all_do(float64, made):
    """Of dislikes alone the start is that of an empty support; what they say is in the steps."""
    model, _ = made("label", inner_steps=0)
    rows = torch.randn(3, model.other_embedding.size)
    task = torch.zeros(model.task_embedding.size)
    found = model.adapt(Examples(rows, torch.zeros(3), torch.ones(3), task))["row"]
    torch.testing.assert_close(found, model.start)
