"""Losses and inner steps against plain formulas, in double precision."""

import math

import pytest
import torch
from torch.func import vmap

from recbole_meta.episode import Examples, buckets
from recbole_meta.inner_loop import LOSSES, first_layer_steps, masked_mean, sgd_steps


@pytest.fixture(autouse=True)
def _float64(float64):
    torch.manual_seed(3)


SCORE = [0.5, -1.0, 2.0, 3.0]
LABEL = [1.0, 0.0, 1.0, 9.0]
MASK = [1.0, 1.0, 1.0, 0.0]


def value(name: str, mask=MASK) -> float:
    return LOSSES[name](*map(torch.tensor, (SCORE, LABEL, mask))).item()


def test_losses_are_those_of_the_examples_that_are_there():
    assert value("mse") == pytest.approx((0.25 + 1 + 1) / 3)
    assert value("mae") == pytest.approx((0.5 + 1 + 1) / 3)
    p = [1 / (1 + math.exp(-s)) for s in SCORE[:3]]
    assert value("bce") == pytest.approx(
        -(math.log(p[0]) + math.log(1 - p[1]) + math.log(p[2])) / 3
    )
    total = sum(math.exp(s) for s in SCORE[:3])
    assert value("softmax") == pytest.approx(math.log(total) - (SCORE[0] + SCORE[2]) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_set_has_no_loss_and_no_gradient(name):
    score = torch.tensor(SCORE, requires_grad=True)
    loss = LOSSES[name](score, torch.tensor(LABEL), torch.zeros(4))
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, score)
    assert torch.equal(gradient, torch.zeros(4))


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_has_no_gradient(name):
    score = torch.tensor(SCORE, requires_grad=True)
    loss = LOSSES[name](score, torch.tensor(LABEL), torch.tensor(MASK))
    (gradient,) = torch.autograd.grad(loss, score)
    assert gradient[3] == 0 and gradient[:3].abs().min() > 0


def test_bce_survives_large_scores():
    loss = LOSSES["bce"](torch.tensor([800.0, -800.0]), torch.tensor([1.0, 1.0]), torch.ones(2))
    assert loss.item() == pytest.approx(400)


def quadratic(params):
    return (params["a"] - 3).square().sum() / 2


def test_a_step_on_a_parabola():
    prior = {"a": torch.tensor([1.0, 5.0])}
    after = sgd_steps(quadratic, prior, 0.25, 2)["a"]  # the distance shrinks by 3/4 a step
    torch.testing.assert_close(after, 3 + (prior["a"] - 3) * 0.75**2)
    rates = {"a": torch.tensor([1.0, 0.5])}
    torch.testing.assert_close(sgd_steps(quadratic, prior, rates, 1)["a"], torch.tensor([3.0, 4.0]))
    assert sgd_steps(quadratic, prior, 0.25, 0)["a"] is prior["a"]


@pytest.mark.parametrize(("order", "factor"), [(1, 1.0), (2, 0.75**2)])
def test_the_outer_gradient_sees_the_steps_by_order(order, factor):
    a = torch.tensor([1.0], requires_grad=True)
    sgd_steps(quadratic, {"a": a}, 0.25, 2, order)["a"].sum().backward()
    assert a.grad.item() == pytest.approx(factor)


def network(params, z):
    return torch.relu(z) @ params["w"]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_first_layer_steps_are_sgd_steps(order, steps):
    """The same scores of new rows, and the same outer gradients by weights, bias, rest and rows."""
    rows, new = torch.randn(5, 3), torch.randn(7, 3)
    label, mask = torch.randn(5), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])

    def loss(z, rest):
        return masked_mean((network(rest, z) - label).square(), mask)

    def eager(weight, bias, w, x):
        prior = {"weight": weight, "bias": bias, "w": w}
        inner = lambda p: loss(x @ p["weight"] + p["bias"], p)  # noqa: E731
        after = sgd_steps(inner, prior, 0.1, steps, order)
        return network(after, new @ after["weight"] + after["bias"])

    def lazy(weight, bias, w, x):
        first = x @ weight + bias
        moved, rest = first_layer_steps(loss, first, x, torch.ones(()), {"w": w}, 0.1, steps, order)
        known = x if order == 2 else x.detach()
        return network(rest, new @ weight + bias - (new @ known.T + 1) @ moved)

    leaves = [torch.randn(3, 4), torch.randn(4), torch.randn(4), rows]
    found = []
    for scores in (eager, lazy):
        given = [leaf.clone().requires_grad_() for leaf in leaves]
        score = scores(*given)
        total = score.square().sum() + sum(0 * leaf.sum() for leaf in given)
        found.append((score, *torch.autograd.grad(total, given)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


def test_first_layer_steps_lift_to_tasks():
    rows, label = torch.randn(6, 5, 3), torch.randn(6, 5)
    weight, w = torch.randn(3, 4), torch.randn(4)

    def moved(x, y):
        loss = lambda z, rest: (network(rest, z) - y).square().mean()  # noqa: E731
        return first_layer_steps(loss, x @ weight, x, torch.zeros(()), {"w": w}, 0.1, 3)[0]

    together = vmap(moved)(rows, label)
    for task in range(6):
        torch.testing.assert_close(together[task], moved(rows[task], label[task]))


def test_buckets_hold_every_task_once_shortest_first_at_the_least_cost():
    lengths = torch.randint(0, 91, (64,))
    mask = (torch.arange(90) < lengths[:, None]).double()
    found = buckets(mask)
    assert sorted(torch.cat(found).tolist()) == list(range(64))
    tops = [int(lengths[part].max()) for part in found]
    assert tops == sorted(tops) and 1 < len(found) < 16

    def cost(parts):
        rounded = (-(-int(lengths[part].max()) // 8) * 8 for part in parts)
        return sum(len(part) * top + 800 for part, top in zip(parts, rounded, strict=True))

    order = lengths.sort(stable=True).indices
    assert cost(found) < cost([order])
    for first in range(1, 63):  # no split into two or three is cheaper
        assert cost(found) <= cost([order[:first], order[first:]])
        for second in range(first + 1, 64):
            parts = [order[:first], order[first:second], order[second:]]
            assert cost(found) <= cost(parts)


def test_equal_tasks_are_one_bucket():
    assert [part.tolist() for part in buckets(torch.ones(5, 10))] == [[0, 1, 2, 3, 4]]
    assert [part.tolist() for part in buckets(torch.zeros(3, 4))] == [[0, 1, 2]]


def test_width_is_the_place_after_the_last_example():
    mask = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    examples = Examples(torch.arange(8).view(2, 4), mask, mask, torch.arange(2))
    assert examples.width() == 2 and examples._replace(mask=torch.zeros(2, 4)).width() == 1
    assert examples.cut(2).x.tolist() == [[0, 1], [4, 5]]
