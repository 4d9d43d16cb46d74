"""LWA and NLBA against their formulas, task by task, and what a longer history does to them."""

import pytest
import torch

from recbole_meta.episode import Examples

GIVEN = {
    "user_fields": False, "item_fields": False, "embedding_size": 4, "hidden_size": [6, 5],
    "embedding_std": 1.0, "support_negatives": 0,
}  # fmt: skip


@pytest.fixture(params=["implicit", "rating", "label"])
def fitted(request, worlds, fit, float64):
    """``fitted(model)``: one on this feedback."""
    return lambda name: fit(worlds[request.param], name, **GIVEN)


def naive(model, x, y, asked):
    """The score of each row asked, by loops over the support and its classes."""
    p = model.represent
    f = lambda row: torch.relu(  # noqa: E731
        torch.relu(row @ p["weight_0"] + p["bias_0"]) @ p["weight_1"] + p["bias_1"]
    )
    change = 0
    above = model.label_mean if model.judged == "rating" else 0.5
    for label, weight in enumerate(linear.weight for linear in model.classes):
        members = [f(row) for row, said in zip(x, y) if (said > above) == bool(label)]
        if members:
            change = change + weight @ (sum(members) / len(members))
    w, b = model.last.weight[0], model.last.bias
    if type(model).__name__ == "LWA":
        return torch.stack([b[0] + f(row) @ (w + change) for row in asked])
    u, a = model.classifier.weight, model.classifier.bias
    return torch.stack([b[0] + w @ torch.relu(u @ f(row) + a + change) for row in asked])


@pytest.mark.parametrize("name", ["LWA", "NLBA"])
def test_value_and_gradient(fitted, name):
    model = fitted(name).model
    model.zero_grad()
    width, rng = 6, torch.Generator().manual_seed(1)
    sizes = torch.tensor([0, 1, 3, 6])
    x = torch.stack([torch.randperm(20, generator=rng)[:width] + 1 for _ in sizes])
    y = torch.randint(0, 2, x.shape, generator=rng).double()
    if model.judged == "rating":
        y = y * 3 + 1
    mask = (torch.arange(width) < sizes[:, None]).double()
    support = Examples(x, y, mask, torch.arange(1, 5))
    states = model._lift(model.adapt, (0,))(model._encoded(support))
    asked = model.encode(model.all_others[1:9])
    fast = model._lift(model.score, (0, None))(states, asked)
    slow = torch.stack([
        naive(model, model.encode(x[task][:k]), y[task][:k], asked)
        for task, k in enumerate(sizes.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(fast, slow)
    parameters = dict(model.named_parameters())
    pull = torch.rand(fast.shape, generator=rng)
    found = torch.autograd.grad(
        (fast * pull).sum(), parameters.values(), allow_unused=True, retain_graph=True
    )
    wanted = torch.autograd.grad((slow * pull).sum(), parameters.values(), allow_unused=True)
    for key, one, other in zip(parameters, found, wanted, strict=True):
        if other is None:  # a field that the data set has not
            assert one is None or not one.any(), key
            continue
        torch.testing.assert_close(one, other, msg=key)
        assert other.abs().max() > 0 or "task" in key, key


@pytest.mark.parametrize("name", ["LWA", "NLBA"])
def test_a_history_said_twice_says_the_same(fitted, name):
    model = fitted(name).model
    x = torch.tensor([3, 7, 11])
    y = torch.tensor([1.0, 5.0, 2.0] if model.judged == "rating" else [1.0, 0.0, 1.0]).double()
    once = Examples(x, y, torch.ones(3), torch.tensor(1))
    twice = Examples(x.repeat(2), y.repeat(2), torch.ones(6), torch.tensor(1))
    found = [
        model.adapt(Examples(model.encode(s.x), s.label, s.mask, model.encode_tasks(s.task)))
        for s in (once, twice)
    ]
    torch.testing.assert_close(found[0]["change"], found[1]["change"])
    assert found[0]["change"].abs().max() > 1e-6
