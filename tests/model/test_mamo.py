"""MAMO against a loop written from its formulas, and what may and may not write its memories."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.episode import Examples
from recbole_meta.stage import load_stage
from tests.model.oracles import same_gradients

SMALL = dict(
    embedding_size=3, embedding_std=1.0, hidden_size=[5, 4], vector_size=4, memory_size=3,
    inner_lr=0.3, profile_rate=0.6, user_rate=0.2, task_rate=0.3, start_rate=0.5,
    train_batch_size=12, support_negatives=2, item_fields=True,
)  # fmt: skip
CURVE = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
WORLDS = {"implicit": ("user_cold_curve", CURVE), "rating": ("user_cold_5_rating", {}),
          "label": ("user_cold_5_label", {})}  # fmt: skip
LOSS = {
    "mse": mse_loss,
    "mae": l1_loss,
    "bce": binary_cross_entropy_with_logits,
    "softmax": lambda s, y: (torch.logsumexp(s, 0) - s[y > 0]).sum() / max(1, int((y > 0).sum())),
}
MEMORIES = ("profile_memory", "user_memory", "task_memory")


@pytest.fixture(scope="module")
def made(sample_path, tmp_path_factory):
    """``made(kind)``: a fresh model whose memories hold something, and a batch of its episodes."""
    target = tmp_path_factory.mktemp("prepared")

    def make(kind, **changes):
        name, shape = WORLDS[kind]
        path = prepare("tiny", read_protocol(name, **shape), name, sample_path, target)
        choice, prepared = choose_model("MAMO"), open_prepared(path)
        stage = load_stage(choice, prepared, "test", prepared.shots[0], 7, SMALL | changes)
        torch.manual_seed(7)
        model = choice.cls(stage.config, stage.dataset)
        model.user_memory = torch.randn_like(model.user_memory)
        return model, next(iter(EpisodeDataLoader(stage.dataset, 12, 7)))

    return make


def memories(model):
    return {name: getattr(model, name).clone() for name in MEMORIES}


def attention(p, remembered):
    """By the angle to each remembered profile; a profile of nothing has none."""
    norm = p.norm().clamp(min=1e-300)
    said = [torch.exp(p @ row / norm / row.norm()).detach() for row in remembered]
    return [each / sum(said) for each in said]


def walked(model, u, x, y, steps, order, loss):
    """One task: its profile, its attention, and its parameters before and after the steps."""
    if len(u):
        p = u
    else:
        above = model.label_mean if model.judged == "rating" else 0.5
        liked = [row for row, said in zip(x, y) if said > above]
        p = sum(liked) / len(liked) if liked else torch.zeros(x.shape[1])
    s, a = model.settings, attention(p, model.profile_memory)
    names = ["weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2"]
    start = {
        "u": model.user_layer.weight
        - s.start_rate * sum(share * row for share, row in zip(a, model.user_memory)),
        "m": sum(share * row for share, row in zip(a, model.task_memory)).requires_grad_(),
        "w": model.item_layer.weight,
        "b": model.item_layer.bias,
        **{name: model.prior[name] for name in names},
    }
    end = dict(start)
    for _ in range(steps if len(y) else 0):
        inner = loss(scored(end, p, x), y)
        found = torch.autograd.grad(inner, end.values(), create_graph=True)
        held = [g if order == 2 else g.detach() for g in found]
        end = {name: v - s.inner_lr * g for (name, v), g in zip(end.items(), held)}
    return p, a, start, end


def scored(t, p, rows):
    """Row by row."""
    of_user = torch.relu(t["u"] @ torch.cat([p, torch.ones(1)]))
    scores = []
    for x in rows:
        z = t["m"] @ torch.cat([of_user, torch.relu(t["w"] @ x + t["b"])])
        z = torch.relu(z @ t["weight_0"] + t["bias_0"])
        z = torch.relu(z @ t["weight_1"] + t["bias_1"])
        scores.append(z @ t["weight_2"] + t["bias_2"])
    return torch.cat(scores)


@pytest.mark.parametrize("fields", [True, False], ids=["fields", "ids"])
@pytest.mark.parametrize(("steps", "order"), [(1, 2), (1, 1), (2, 2)])
@pytest.mark.parametrize(
    ("kind", "inner", "outer"),
    [("rating", "mse", "mae"), ("label", "bce", "bce"), ("implicit", "bce", "softmax")],
)
def test_value_gradient_and_memories(float64, made, kind, inner, outer, steps, order, fields):
    shape = {"inner_steps": steps, "meta_order": order, "user_fields": fields}
    model, batch = made(kind, **shape)
    before, state = memories(model), torch.get_rng_state()
    fast = model.calculate_loss(batch)
    after = memories(model)
    for name in MEMORIES:
        setattr(model, name, before[name])
    torch.set_rng_state(state)
    support, (query, shared) = model.complete(model._examples(batch, "support")), model.query(batch)
    tasks, slow = len(support.mask), 0
    kept = (1 - 0.6, 1 - 0.2, 1)
    wanted = {name: share * before[name] for name, share in zip(MEMORIES, kept)}
    for task in range(tasks):
        here, there = support.mask[task] > 0, query.mask[task] > 0
        x, y = model.encode(support.x[task][here]), support.label[task][here]
        u = model.encode_tasks(support.task[task])
        p, a, start, end = walked(model, u, x, y, steps, order, LOSS[inner])
        asked = query.x[there] if shared else model.encode(query.x[task][there])
        slow = slow + LOSS[outer](scored(end, p, asked), query.label[task][there]) / tasks
        for k, share in enumerate(a):
            gradient = (start["u"] - end["u"]).detach() / 0.3
            wanted["profile_memory"][k] += 0.6 * share * p.detach() / tasks
            wanted["user_memory"][k] += 0.2 * share * gradient / tasks
            far = end["m"].detach() - before["task_memory"][k]
            wanted["task_memory"][k] += 0.3 * share * far / tasks
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    for name in MEMORIES:
        torch.testing.assert_close(after[name], wanted[name], rtol=1e-9, atol=1e-12, msg=name)
        assert (after[name] - before[name]).abs().max() > 1e-4, name
    reached = same_gradients(model, fast, slow, least=1e-9)
    assert len(reached) > 6, (
        "the gradient reaches user, item, what is above them, and the embeddings"
    )


def test_one_step_is_written_by_hand(float64, made):
    """One task, one item, a gradient of theta_u taken by differences of the loss."""
    model, _ = made("rating", inner_loss="mse", user_fields=False, item_fields=False)
    x, y = model.encode(torch.tensor([5])), torch.tensor([5.0]).double()
    support = Examples(x, y, torch.ones(1), torch.zeros(0))
    before = memories(model)
    p, a, start, _ = walked(model, support.task, x, y, 0, 1, mse_loss)
    torch.testing.assert_close(p, x[0])  # the item is rated above the mean
    gradient = torch.zeros_like(start["u"])
    for place in torch.cartesian_prod(*map(torch.arange, gradient.shape)):
        step = torch.zeros_like(gradient)
        step[tuple(place)] = 1e-6
        up, down = (mse_loss(scored(start | {"u": start["u"] + d}, p, x), y) for d in (step, -step))
        gradient[tuple(place)] = (up - down).item() / 2e-6
    model.write(Examples(*(field.unsqueeze(0) for field in support)))
    assert gradient.abs().max() > 1e-3
    for k in range(3):
        wanted = 0.8 * before["user_memory"][k] + 0.2 * a[k] * gradient
        torch.testing.assert_close(model.user_memory[k], wanted, rtol=1e-6, atol=1e-7)


def test_the_order_of_a_batch_does_not_matter(float64, made):
    model, batch = made("rating", user_fields=False)
    support = model._encoded(model._examples(batch, "support"))
    before = memories(model)
    model.write(support)
    one = memories(model)
    for name in MEMORIES:
        setattr(model, name, before[name])
    model.write(support.of(torch.randperm(len(support.mask))))
    for name, value in memories(model).items():
        torch.testing.assert_close(value, one[name], rtol=1e-12, atol=1e-14)


def test_only_training_writes(made):
    model, batch = made("implicit", user_fields=False)
    before = memories(model)
    model.eval().calculate_loss(batch).backward()
    for name, value in memories(model).items():
        assert torch.equal(value, before[name]), name
    model.train().calculate_loss(batch).backward()
    for name, value in memories(model).items():
        assert not torch.equal(value, before[name]), name


def test_memories_are_part_of_a_checkpoint(made):
    model, batch = made("implicit", user_fields=False)
    model.calculate_loss(batch)
    other, _ = made("implicit", user_fields=False)
    other.load_state_dict(model.state_dict())
    for name, value in memories(model).items():
        assert torch.equal(getattr(other, name), value), name
    names = {name for name, _ in model.named_parameters()}
    assert not names & set(MEMORIES), "no optimiser moves them"


def test_nothing_known_attends_to_all_alike(float64, made):
    model, _ = made("label", user_fields=False, item_fields=False)
    x, y = model.encode(torch.tensor([2, 3])), torch.ones(2)
    empty = Examples(x, y, torch.zeros(2), torch.zeros(0))
    mean = {"u": model.user_layer.weight - 0.5 * model.user_memory.mean(0),
            "m": model.task_memory.mean(0), "w": model.item_layer.weight,
            "b": model.item_layer.bias, **model.prior}  # fmt: skip
    asked = model.encode(model.all_others)
    wanted = scored(mean, torch.zeros(x.shape[1]), asked)
    torch.testing.assert_close(model.score(model.adapt(empty), asked), wanted)


def test_without_steps_a_memory_of_one_thing_keeps_it(float64, made):
    """The paper's own rule would let it shrink, write by write."""
    model, batch = made("rating", inner_steps=0)
    model.task_memory = model.task_memory[:1].expand(3, -1, -1)
    before = model.task_memory.clone()
    for _ in range(20):
        model.calculate_loss(batch)
    torch.testing.assert_close(model.task_memory, before)


@pytest.mark.parametrize(("common", "alike"), [(2.0, True), (0.0, False)])
def test_profiles_with_much_in_common_are_remembered_as_one(float64, made, common, alike):
    model, _ = made("rating", user_fields=False, item_fields=False, inner_steps=0)
    for _ in range(100):
        x = common + torch.randn(32, 1, model.profile_size)
        model.write(Examples(x, torch.full((32, 1), 5.0), torch.ones(32, 1), torch.zeros(32, 0)))
    directions = torch.nn.functional.normalize(model.profile_memory, dim=1)
    assert ((directions @ directions.T).min() > 0.999) == alike
