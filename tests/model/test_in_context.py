"""InContext against a loop over unpadded tasks, its start, and torch's own encoder layer."""

import math

import numpy as np
import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.episode import Examples
from recbole_meta.errors import SettingError
from recbole_meta.model.transformer import SelfAttention
from recbole_meta.settings import load_properties
from recbole_meta.stage import load_stage

SMALL = dict(
    embedding_size=3, embedding_std=1.0, token_size=6, heads=2, layers=2, forward_size=5,
    train_batch_size=16, support_dropout=0.0,
)  # fmt: skip
CASES = [
    ("implicit", dict(anchor=0.7)),
    ("implicit", dict(closed_form=False, start="random", support_negatives=1)),
    ("rating", dict(layers=0)),
    ("label", dict(closed_form=False)),
    ("items", dict(item_fields=True, query_negatives=3)),
]


def learner(prepared, **changes):
    """A prepared model in which nothing is at its start, and a batch with all its episodes."""
    choice = choose_model("InContext")
    stage = load_stage(choice, prepared, "test", prepared.shots[0], 7, SMALL | changes)
    model = choice.cls(stage.config, stage.dataset)
    loader = EpisodeDataLoader(stage.dataset, 10**4, 7)
    model.prepare(loader)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng)
    return model, next(iter(loader))


# One task, entry by entry.


def normed(norm, h):
    centred = h - h.mean()
    return centred / ((centred**2).mean() + 1e-5).sqrt() * norm.weight + norm.bias


def weighted(query, keys, values):
    """What a query takes of values by its likeness to their keys."""
    odds = [(query.dot(key) / math.sqrt(len(key))).exp() for key in keys]
    return sum(odd * value for odd, value in zip(odds, values)) / sum(odds)


def through(layer, tokens, heads):
    n = [normed(layer.norms[0], h) for h in tokens]
    found = []
    for h, mine in zip(tokens, n):
        query = (layer.to_query.weight @ mine).chunk(heads)
        keys = [(layer.to_key.weight @ other).chunk(heads) for other in n]
        values = [(layer.to_value.weight @ other).chunk(heads) for other in n]
        read = [
            weighted(query[m], [k[m] for k in keys], [v[m] for v in values]) for m in range(heads)
        ]
        h = h + layer.mix.weight @ torch.cat(read)
        wide = torch.relu(layer.wide.weight @ normed(layer.norms[1], h) + layer.wide.bias)
        found.append(h + layer.narrow.weight @ wide + layer.narrow.bias)
    return found


def posterior(model, mean, z, residual):
    """Bayes' rule in the space of weights, where ours solves in that of the support."""
    precision, noise = torch.diag((-model.log_prior).exp()), model.log_noise.exp()
    right = precision @ mean + z.T @ residual / noise
    return torch.linalg.solve(precision + z.T @ z / noise, right)


def naive(model, u, x, y, asked):
    """Scores of rows asked [N, D + 2] for a task with this support [k, D + 2]."""
    z, q, y = x[:, :-2] @ model.reading, x[:, -2], y - model.label_mean
    heads, spread = model.settings.heads, model.spread
    tokens = [model.empty + u @ model.of_task]
    for row in torch.cat([z / spread, q[:, None], y[:, None]], dim=1):
        tokens.append(model.token.weight @ row + model.token.bias)
    for layer in model.layers:
        tokens = through(layer, tokens, heads)
    tokens = [normed(model.norm, h) for h in tokens]
    keys = [(model.to_key.weight @ h).chunk(heads) for h in tokens]
    values = [(model.to_weights.weight @ h / 6**0.5).chunk(heads) for h in tokens]
    w = model.prior_mean + u @ model.prior_of_task
    if model.settings.closed_form:
        w = posterior(model, w, z, y - q)
    values[0] = [torch.zeros(3)] * heads  # the token of the prior says nothing itself
    scores = []
    for row in asked:
        scored, b = row[:-2] @ model.scoring, row[-1:]
        query = model.to_query.weight @ torch.cat([scored / spread, b]) + model.to_query.bias
        mine = w
        for m, part in enumerate(query.chunk(heads)):
            mine = mine + weighted(part, [k[m] for k in keys], [v[m] for v in values])
        scores.append(b[0] + scored.dot(mine))
    return model.offset + torch.stack(scores) / model.log_temperature.exp()


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_loss_and_gradient_are_those_of_a_plain_loop(worlds, float64, kind, changes) -> None:
    model, batch = learner(worlds[kind], **changes)
    batch = type(batch)({name: value[:20] for name, value in batch.interaction.items()})
    assert {0, 3} <= set(batch["support_mask"].sum(1).int().tolist()) or kind in ("rating", "label")
    state = torch.get_rng_state()
    fast = model.calculate_loss(batch)
    torch.set_rng_state(state)
    support, (query, shared) = model.complete(model._examples(batch, "support")), model.query(batch)
    slow = torch.tensor(0.0)
    for task in range(len(support.mask)):
        here, there = support.mask[task] > 0, query.mask[task] > 0
        x, y = model.encode(support.x[task][here]), support.label[task][here]
        asked = (query.x if shared else model.encode(query.x[task]))[there]
        scores = naive(model, model.encode_tasks(support.task[task]), x, y, asked)
        said, weight = query.label[task][there], query.mask[task][there]
        slow = slow + model.loss_function(scores, said, weight) / len(support.mask)
    far = 0
    for items, start in zip(model._items(), model._start, strict=True):
        far = far + ((items - start) ** 2).sum() / max(1, float((start**2).sum()))
    slow = slow + model.settings.anchor * far
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    parameters = dict(model.named_parameters())
    one = torch.autograd.grad(fast, list(parameters.values()), allow_unused=True)
    other = torch.autograd.grad(slow, list(parameters.values()), allow_unused=True)
    for name, mine, wanted in zip(parameters, one, other, strict=True):
        if wanted is None:  # a field of tasks where there is none
            assert mine is None or not mine.any(), name
            continue
        torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-10, msg=name)
        blind = name == "offset" and model.judged == "implicit" and model.side == "user"
        assert blind or not wanted.numel() or wanted.abs().max() > 1e-9, name


def test_a_layer_is_torchs_encoder_layer(float64) -> None:
    ours = SelfAttention(6, 3, 10)
    theirs = torch.nn.TransformerEncoderLayer(6, 3, 10, 0.0, batch_first=True, norm_first=True)
    attention, parts = theirs.self_attn, (ours.to_query, ours.to_key, ours.to_value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        attention.in_proj_bias.zero_(), attention.out_proj.bias.zero_()
        attention.out_proj.weight.copy_(ours.mix.weight)
    for left, right in (
        (theirs.linear1, ours.wide), (theirs.linear2, ours.narrow),
        (theirs.norm1, ours.norms[0]), (theirs.norm2, ours.norms[1]),
    ):  # fmt: skip
        left.load_state_dict(right.state_dict())
    h, present = torch.randn(5, 6), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    wanted = theirs(h[None], src_key_padding_mask=present[None] == 0)[0]
    torch.testing.assert_close(ours(h, present), wanted)


# Where it starts.


@pytest.mark.parametrize("base", ["pop", "query_pop"])
def test_it_starts_as_prior_ridge(worlds, fit, base: str) -> None:
    same = dict(base=base, embedding_size=3, noise=0.7)
    supports = [[], [3], [5, 1, 9, 20]]
    start = fit(worlds["implicit"], "InContext", epochs=0, temperature=0.5, **same)
    ridge = fit(worlds["implicit"], "PriorRidge", base_weight=1.0, **same)
    np.testing.assert_allclose(
        start.scores_after(*supports), 2 * ridge.scores_after(*supports), atol=1e-6
    )


def test_alone_it_starts_as_popularity(worlds, fit) -> None:
    start = fit(worlds["implicit"], "InContext", epochs=0, closed_form=False, temperature=1.0)
    pop = fit(worlds["implicit"], "Pop").scores_after([])
    found = start.scores_after([], [3, 5, 7])
    assert (found[0] == found[1]).all()
    order = pop[0].argsort(kind="stable")
    assert (np.diff(found[0][order]) >= 0).all() and found[0].max() > found[0].min()


def test_a_random_start_has_no_directions(worlds, fit) -> None:
    found, other = (
        fit(worlds["implicit"], "InContext", epochs=0, start=start, embedding_std=0.4).model
        for start in ("random", "directions")
    )
    assert found.spread == pytest.approx(0.4)
    assert found.other_embedding.weights[0][1:].std().item() == pytest.approx(0.4, rel=0.1)
    met = other.other_embedding.weights[0][other.pool]
    assert other.spread == pytest.approx(float(met.square().mean().sqrt().detach()))


# What learns, and what is told to it.


def test_an_anchor_holds_the_items(worlds, fit) -> None:
    def moved(anchor: float) -> list[float]:
        same = dict(epochs=3, learning_rate=0.01, anchor=anchor)
        model = fit(worlds["implicit"], "InContext", **same).model
        return [
            float((items - start).detach().norm())
            for items, start in zip(model._items(), model._start, strict=True)
        ]

    free, held = moved(0.0), moved(1000.0)
    assert len(free) == 3
    assert all(0 < one < other for one, other in zip(held, free)), (held, free)


def test_rows_are_hidden_in_training_alone(worlds, monkeypatch) -> None:
    model, batch = learner(worlds["implicit"], support_dropout=0.5)
    support = model._examples(batch, "support")
    kept = model.thinned(support).mask
    share = float(kept.sum() / support.mask.sum())
    assert 0.3 < share < 0.7 and (kept <= support.mask).all()
    one, other = model.calculate_loss(batch), model.calculate_loss(batch)
    assert one != other
    model.observe(support.of(torch.zeros(model.n_tasks, dtype=torch.long)))
    assert torch.equal(model.support.mask[0], support.mask[0])
    monkeypatch.setattr(model, "thinned", lambda support: support)
    assert model.calculate_loss(batch) == model.calculate_loss(batch)


def test_two_items_of_the_same_fields_are_one_without_ids(worlds, fit) -> None:
    """i0 and i12 have the same class, and so has one that the catalogue lacks."""
    changes = dict(item_id=False, item_fields=True, epochs=2)
    fitted = fit(worlds["implicit"], "InContext", **changes)
    model, ids = fitted.model, fitted.id_of("item")
    with torch.no_grad():
        for means in (model.read_mean, model.item_mean):
            means.zero_()
        one, twin, other = model.encode(torch.tensor([ids["i0"], ids["i12"], ids["i1"]]))
        new = model.encode_new_others([{"class": ["g0", "h0"]}])[0]
    assert torch.equal(one, twin) and torch.equal(one, new) and not torch.equal(one, other)


def test_items_are_told_apart_by_content_vectors_alone(make_world, fit) -> None:
    """Half of the users take items of one direction, half of the other."""
    rng = np.random.default_rng(5)
    vectors = {f"i{n}": [1.0 - n % 2, n % 2 + 0.001 * n] for n in range(24)}
    rows = []
    for user in range(50):
        items = rng.permutation(np.arange(user % 2, 24, 2))[:10]
        rows += [(f"u{user}", f"i{item}", 5, time) for time, item in enumerate(items)]
    curve = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
    prepared = make_world(rows, "user_cold_curve", vectors, "float_seq", **curve)
    changes = dict(item_id=False, item_fields=True, epochs=30, learning_rate=0.01, stopping_step=30)
    fitted = fit(prepared, "InContext", **changes, user_id=False)
    ids = fitted.id_of("item")
    even = [ids[f"i{n}"] for n in range(0, 24, 2)]
    odd = [ids[f"i{n}"] for n in range(1, 24, 2)]
    after_even, after_odd = fitted.scores_after(even[:3], odd[:3])
    assert after_even[even[3:]].min() > after_even[odd].max()
    assert after_odd[odd[3:]].min() > after_odd[even].max()


def test_supports_of_other_items_move_the_scores(worlds, fit) -> None:
    """Without a closed form it is the transformer that does."""
    same = dict(closed_form=False, epochs=3, learning_rate=0.01)
    left, right = fit(worlds["implicit"], "InContext", **same).scores_after([3, 8], [5])
    assert np.abs(left - right - (left - right).mean()).max() > 1e-3


def test_a_token_has_room_for_its_heads(worlds) -> None:
    with pytest.raises(SettingError, match="multiple of 'heads', found 6 and 4"):
        learner(worlds["implicit"], heads=4)


def test_the_page_divides() -> None:
    page = load_properties("model", "InContext")
    assert page["token_size"] % page["heads"] == 0


def test_a_state_is_of_its_support_alone(worlds, float64) -> None:
    """Padding between the rows is read by none."""
    model, _ = learner(worlds["implicit"])
    model.eval()
    x = model.encode(torch.tensor([4, 0, 9, 2]))
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    task = model.encode_tasks(torch.tensor(1))
    asked = model.encode(model.all_others)
    found = model.score(model.adapt(Examples(x, torch.ones(4), mask, task)), asked)
    wanted = naive(model, task, x[[2, 0]], torch.ones(2), asked)
    torch.testing.assert_close(found, wanted)
