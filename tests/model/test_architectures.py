"""Each architecture's logits against a loop over rows, experts and objectives, as the paper has it;
and defects of public code that a test here would catch.
"""

import math

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.errors import SettingError
from recbole_meta.model.multitask.aitm import steps_before
from recbole_meta.model.multitask.esmm import log_product
from recbole_meta.model.multitask.single_task import count
from recbole_meta.model.perceptrons import Experts, together
from recbole_meta.model.row_recommender import read_row_objectives

BINARY = {name: {"label": name, "type": "binary"} for name in ("like", "buy", "share")}
CHAIN = {
    "click": {"label": "click", "type": "binary"},
    "cart": {"label": "cart", "type": "binary", "given": "click"},
    "buy": {"label": "buy", "type": "binary", "given": "cart"},
}
USERS, ITEMS = torch.tensor([3, 17, 40, 3]), torch.tensor([5, 30, 2, 9])


@pytest.fixture(autouse=True)
def _double(float64):
    """Oracles are compared in double precision."""


@pytest.fixture
def make(make_rows_model):
    def built(name, objectives=BINARY, **settings):
        sizes = {"embedding_std": 0.7, "embedding_size": 3, "tower_sizes": [4]}
        return make_rows_model(name, objectives, **(sizes | settings)).double().eval()

    return built


def linear(weight, bias, x):
    """W'x + b, number by number."""
    return torch.stack(
        [sum(x[i] * weight[i, o] for i in range(len(x))) + bias[o] for o in range(len(bias))]
    )


def expert(group, e, x):
    for weight, bias in zip(group.weight, group.bias):
        x = linear(weight[e], bias[e], x).clamp(min=0)
    return x


def stack(module, x):
    """A tower or a gate."""
    layers = [each for each in module if hasattr(each, "weight")]
    for place, layer in enumerate(layers):
        x = linear(layer.weight.T, layer.bias, x)
        x = x.clamp(min=0) if place < len(layers) - 1 else x
    return x


def weights(z):
    powers = [math.exp(each) for each in z.tolist()]
    return [each / sum(powers) for each in powers]


def mix(gate, experts):
    return sum(share * each for share, each in zip(weights(gate), experts))


def row(embedder, user, item):
    """The embeddings of a pair, side by side."""
    return torch.cat([embedder.user.weights[0][user], embedder.item.weights[0][item]])


def compare(model, oracle):
    found = model.outputs(USERS, ITEMS)
    for place, (user, item) in enumerate(zip(USERS.tolist(), ITEMS.tolist())):
        wanted = oracle(user, item)
        for name in model.objectives:
            torch.testing.assert_close(
                found[name][place], wanted[name].squeeze(), rtol=1e-9, atol=0
            )


def test_shared_bottom(make):
    model = make("SharedBottom", bottom_sizes=[5, 4])

    def oracle(user, item):
        h = expert(model.bottom, 0, row(model.embed, user, item))
        return {name: stack(model.towers[name], h) for name in BINARY}

    compare(model, oracle)


@pytest.mark.parametrize("gate_sizes", [[], [6]])
def test_mmoe(make, gate_sizes):
    model = make("MMoE", experts=3, expert_sizes=[5, 4], gate_sizes=gate_sizes)

    def oracle(user, item):
        x = row(model.embed, user, item)
        experts = [expert(model.experts, e, x) for e in range(3)]
        return {n: stack(model.towers[n], mix(stack(model.gate[n], x), experts)) for n in BINARY}

    compare(model, oracle)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ple(make, levels):
    """The shared path's gate is over all experts, an objective's over its own and the shared."""
    model = make("PLE", levels=levels, specific_experts=2, shared_experts=3, expert_sizes=[5])

    def oracle(user, item):
        x = row(model.embed, user, item)
        streams, shared = dict.fromkeys(BINARY, x), x
        for level in range(levels):
            own = {
                n: [expert(model.own[level][n], e, streams[n]) for e in range(2)] for n in BINARY
            }
            common = [expert(model.shared[level], e, shared) for e in range(3)]
            gates = {n: stack(model.gate[level][n], streams[n]) for n in BINARY}
            if level < levels - 1:
                everyone = [each for n in BINARY for each in own[n]] + common
                shared = mix(stack(model.shared_gate[level], shared), everyone)
            streams = {n: mix(gates[n], own[n] + common) for n in BINARY}
        return {n: stack(model.towers[n], streams[n]) for n in BINARY}

    compare(model, oracle)


def test_stem(make):
    model = make("STEM", specific_experts=2, shared_experts=2, expert_sizes=[5], gate_sizes=[4])

    def oracle(user, item):
        x = {n: row(model.tables[n], user, item) for n in BINARY}
        common = row(model.shared_table, user, item)
        experts = [expert(model.own[n], e, x[n]) for n in BINARY for e in range(2)]
        experts += [expert(model.shared, e, common) for e in range(2)]
        return {
            n: stack(model.towers[n], mix(stack(model.gate[n], x[n] + common), experts))
            for n in BINARY
        }

    compare(model, oracle)


def test_stem_reads_the_others_and_trains_none_of_them(make):
    """All forward, own backward: without the stopped gradient tables are no longer an own."""
    model = make("STEM", expert_sizes=[5])
    others = [p for part in (model.own["buy"], model.tables["buy"]) for p in part.parameters()]
    said = model.outputs(USERS, ITEMS)["like"].sum()
    grads = torch.autograd.grad(said, others, allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in grads)
    own = [*model.own["like"].parameters(), *model.tables["like"].parameters()]
    assert all(g.any() for g in torch.autograd.grad(said, own, retain_graph=True))
    assert all(g.any() for g in torch.autograd.grad(said, [*model.shared.parameters()]))
    with torch.no_grad():
        model.own["buy"].bias[0].add_(1)
        assert model.outputs(USERS, ITEMS)["like"].sum() != said


def funnel(rows):
    """Rows of user 3, 17, .. with (click, cart, buy)."""
    nan = math.nan
    columns = torch.tensor([[nan if y is None else y for y in each] for each in rows])
    labels = dict(zip(CHAIN, columns.T))
    return Interaction({"user_id": USERS[: len(rows)], "item_id": ITEMS[: len(rows)], **labels})


ROWS = [(0, None, None), (1, 0, None), (1, 1, 0), (1, 1, 1)]


def test_esmm_learns_the_product_over_all_rows(make):
    r"""p_ctcvr = p_ctr p_cvr, and BCE(click conversion, p_ctcvr) over the rows without a click."""
    model, rows = make("ESMM", CHAIN), funnel(ROWS)
    said = model.expected(USERS, ITEMS)
    losses, p, wanted = model.losses(rows), torch.ones(4), {}
    for place, name in enumerate(CHAIN):
        p = p * said[name]
        y = torch.tensor([float(all(each[: place + 1])) for each in ROWS])
        wanted[name] = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        torch.testing.assert_close(losses[name], wanted[name])
        torch.testing.assert_close(model.rank(USERS, name)[range(4), ITEMS], p)
    torch.testing.assert_close(model.calculate_loss(rows), sum(wanted.values()))


def test_esmm_has_no_loss_on_the_inner_probability(make):
    """A row without a click moves both towers by p_ctcvr, where a loss on p_cvr has no row."""
    model, rows = make("ESMM", CHAIN), funnel([(0, None, None)])
    losses = model.losses(rows)
    towers = {n: next(iter(model.towers[n].parameters())) for n in CHAIN}
    reached = {
        name: [
            n
            for n, g in zip(
                towers,
                torch.autograd.grad(loss, [*towers.values()], retain_graph=True, allow_unused=True),
            )
            if g is not None and g.any()
        ]
        for name, loss in losses.items()
    }
    assert reached == {
        "click": ["click"],
        "cart": ["click", "cart"],
        "buy": ["click", "cart", "buy"],
    }
    outputs = {n: z.detach().requires_grad_() for n, z in model.outputs(USERS, ITEMS).items()}
    model.outputs = lambda users, items: {n: z[:1] for n, z in outputs.items()}
    model.losses(rows)["cart"].backward()
    a, b = (outputs[n].detach()[0].sigmoid() for n in ("click", "cart"))
    p = a * b  # d -log(1 - p) / d logit = p (1 - own) / (1 - p)
    torch.testing.assert_close(outputs["click"].grad[0], p * (1 - a) / (1 - p))
    torch.testing.assert_close(outputs["cart"].grad[0], p * (1 - b) / (1 - p))


def test_esmm_unobserved_labels_are_no_zeros(make):
    model = make("ESMM", CHAIN)
    losses = model.losses(funnel([(1, None, None)]))
    assert losses["click"] > 0 and losses["cart"] == 0 and losses["buy"] == 0


def test_the_product_is_finite_for_any_logit():
    z = torch.tensor([1e4, -1e4, 40.0, -40.0], requires_grad=True)
    yes, no = log_product([z, z, z])
    assert yes.isfinite().all() and no.isfinite().all()
    torch.testing.assert_close(no[2], math.log(3) - torch.tensor(40.0))
    no.sum().backward()
    assert z.grad.isfinite().all()


def test_esmm_needs_a_space(make):
    with pytest.raises(SettingError, match="no objective is 'given' another one"):
        make("ESMM")


def test_aitm(make):
    model = make("AITM", CHAIN, bottom_sizes=[5, 4])

    def oracle(user, item):
        x, z, found = row(model.embed, user, item), None, {}
        for name in CHAIN:
            q = expert(model.bottoms[name], 0, x)
            if z is not None:
                handed = model.handed[name]
                p = linear(handed.weight.T, handed.bias, z).clamp(min=0)
                h = model.attention[name].weight.view(3, 4, 4)
                scores = torch.stack([(h[0] @ u) @ (h[1] @ u) / math.sqrt(4) for u in (p, q)])
                z = mix(scores, [h[2] @ u for u in (p, q)])
            else:
                z = q
            found[name] = stack(model.towers[name], z)
        return found

    compare(model, oracle)


def test_aitm_has_its_calibrator(make):
    """alpha mean(max(y_t - y_{t-1}, 0)): absent from two public versions."""
    rows = funnel(ROWS)
    plain, model = (make("AITM", CHAIN, calibrator=alpha) for alpha in (0.0, 0.6))
    with torch.no_grad():
        for each in (plain, model):
            each.towers["cart"][-1].bias.add_(0.5)
    p = {name: z.sigmoid() for name, z in model.outputs(USERS, ITEMS).items()}
    more = (p["cart"] - p["click"]).clamp(min=0).mean(), (p["buy"] - p["cart"]).clamp(min=0).mean()
    assert more[0] > 0
    one, two = plain.losses(rows), model.losses(rows)
    torch.testing.assert_close(two["click"], one["click"])
    torch.testing.assert_close(two["cart"], one["cart"] + 0.6 * more[0])
    torch.testing.assert_close(two["buy"], one["buy"] + 0.6 * more[1])
    y = torch.tensor([0.0, 0.0, 1.0, 1.0])
    wanted = -(y * p["cart"].log() + (1 - y) * (1 - p["cart"]).log()).mean()
    torch.testing.assert_close(one["cart"], wanted)  # of the whole space


def test_aitm_says_what_is_inside_a_space(make):
    model = make("AITM", CHAIN)
    p = {name: z.sigmoid() for name, z in model.outputs(USERS, ITEMS).items()}
    said = model.expected(USERS, ITEMS)
    torch.testing.assert_close(said["click"], p["click"])
    torch.testing.assert_close(said["buy"], (p["buy"] / p["cart"]).clamp(max=1))
    torch.testing.assert_close(model.rank(USERS, "buy")[range(4), ITEMS], p["buy"])


def test_aitm_steps_never_form_a_circle():
    of = {"label": "x", "type": "binary"}
    steps = lambda entries: steps_before(read_row_objectives(entries))  # noqa: E731
    assert steps(CHAIN) == {"click": None, "cart": "click", "buy": "cart"}
    assert steps(BINARY) == {"like": None, "buy": "like", "share": "buy"}
    late = {"buy": of | {"given": "click"}, "click": of, "share": of}
    assert steps(late) == {"buy": "click", "click": None, "share": "click"}


def test_single_task_shares_nothing(make):
    model = make("SingleTask", tower_sizes=[5, 4])
    assert model.shared_parameters() == []

    def oracle(user, item):
        return {n: stack(model.towers[n], row(model.tables[n], user, item)) for n in BINARY}

    compare(model, oracle)


@pytest.mark.parametrize("match", ["SharedBottom", "MMoE", "PLE", "STEM", "AITM", "ESMM"])
@pytest.mark.parametrize("budget", ["total", "share"])
def test_single_task_has_the_parameters_of_the_other(make_rows_model, match, budget):
    whole = sum(p.numel() for p in make_rows_model(match, CHAIN).parameters())
    model = make_rows_model("SingleTask", CHAIN, match=match, budget=budget)
    wanted = whole if budget == "total" else whole / 3
    for name in CHAIN:
        found = count(model.tables[name]) + count(model.towers[name])
        assert abs(found - wanted) <= 0.02 * wanted


def test_single_task_takes_the_settings_of_the_other(make_rows_model):
    settings = {"experts": 9, "expert_sizes": [48, 24]}
    whole = count(make_rows_model("MMoE", CHAIN, **settings))
    model = make_rows_model("SingleTask", CHAIN, match_settings=settings)
    assert abs(count(model) / 3 - whole) <= 0.02 * whole


def test_making_the_other_moves_no_generator(make_rows_model):
    one = make_rows_model("SingleTask", CHAIN, match="MMoE")
    two = make_rows_model("SingleTask", CHAIN, match="MMoE", match_settings={"gate_sizes": []})
    again = make_rows_model("MMoE", CHAIN)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    torch.manual_seed(1)
    first = torch.randn(41, 16) * 0.05
    assert torch.equal(again.embed.user.weights[0][1:], first[1:])
    assert torch.equal(one.tables["click"].user.weights[0][1:], first[1:])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"match": "MMOE"}, "'match' is 'MMOE'. Did you mean 'MMoE'"),
        ({"match": "SingleTask"}, "'match' is 'SingleTask'"),
        ({"match_settings": {"exprts": 3}}, "Did you mean 'experts'"),
        ({"budget": "shared"}, "Did you mean 'share'"),
    ],
)
def test_single_task_refuses(make_rows_model, settings, said):
    with pytest.raises(SettingError, match=said):
        make_rows_model("SingleTask", CHAIN, **settings)


def test_experts_are_one_product_of_a_loop():
    groups, x = [Experts(n, 3, [5, 4]) for n in (2, 1)], torch.randn(6, 3)
    wanted = [expert(group, e, each) for group in groups for e in range(len(group.bias[0]))
              for each in x]  # fmt: skip
    torch.testing.assert_close(together(groups, x).reshape(18, 4), torch.stack(wanted))
    own = torch.randn(3, 6, 3)
    wanted = [expert(groups[e // 2], e % 2, each) for e in range(3) for each in own[e]]
    torch.testing.assert_close(together(groups, own).reshape(18, 4), torch.stack(wanted))
