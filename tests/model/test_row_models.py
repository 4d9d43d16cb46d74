"""What every multi-task model of rows keeps, found by itself under ``model/multitask``."""

import re
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.errors import DataError, SettingError
from recbole_meta.model import row_models
from recbole_meta.model.row_recommender import read_row_objectives, row_loss
from recbole_meta.settings import load_properties, properties_folder

NAN = float("nan")
MIXED = {
    "click": {"label": "click", "type": "binary"},
    "buy": {"label": "buy", "type": "binary", "given": "click", "weight": 2.0},
    "stars": {"label": "stars", "type": "regression", "weight": 0.5},
    "taste": {"label": "genre", "type": "distribution"},
}
TASTE = {"taste": 4}
TRAINED = [name for name in row_models() if load_properties("model", name)["epochs"]]
each_model = pytest.mark.parametrize("name", row_models())
each_trained = pytest.mark.parametrize("name", TRAINED)


def batch(size=24, seed=3, dtype=torch.float32) -> Interaction:
    """Rows with labels of ``MIXED``; a quarter of them unobserved."""
    g = torch.Generator().manual_seed(seed)
    users, items = (torch.randint(1, n, (size,), generator=g) for n in (41, 31))
    draw = torch.rand(5, size, generator=g)
    click = (draw[0] < 0.6).to(dtype)
    buy = torch.where(click == 1, (draw[1] < 0.5).to(dtype), torch.nan)
    stars = torch.where(draw[2] < 0.75, 1 + 4 * draw[3], torch.nan).to(dtype)
    taste = torch.rand(size, 4, generator=g).to(dtype)
    taste = torch.where(draw[4][:, None] < 0.75, taste / taste.sum(1, keepdim=True), torch.nan)
    columns = {"click": click, "buy": buy, "stars": stars, "taste": taste}
    return Interaction({"user_id": users, "item_id": items, **columns})


@each_model
def test_page_has_the_settings(name):
    kind = get_type_hints(row_models()[name])["settings"]
    page = load_properties("model", name)
    assert sorted(page) == sorted(field.name for field in fields(kind))


@each_model
def test_page_says_type_and_meaning(name):
    text = (properties_folder() / "model" / f"{name}.yaml").read_text("utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"\w+: +\S.* # \([a-z ~]+\).*", line), line


@each_model
def test_header_and_docstring(name):
    cls = row_models()[name]
    head = sys.modules[cls.__module__].__doc__.strip().splitlines()
    assert head[0] == name and head[1] == "#" * 48 and len(head) > 2
    assert cls.__doc__ and cls.__doc__ != cls.__mro__[1].__doc__
    assert cls.group in ("floor", "rule", "single", "published", "ours")


@each_trained
def test_outputs_have_their_shapes_and_meanings(name, make_rows_model):
    model = make_rows_model(name, MIXED, TASTE)
    rows = batch()
    found = model.outputs(rows["user_id"], rows["item_id"])
    assert list(found) == list(MIXED)
    assert [tuple(out.shape) for out in found.values()] == [(24,), (24,), (24,), (24, 4)]
    said = model.expected(rows["user_id"], rows["item_id"])
    assert (said["click"] > 0).all() and (said["buy"] <= 1).all()
    assert torch.equal(said["stars"], found["stars"])
    torch.testing.assert_close(said["taste"].sum(1), torch.ones(24))


@each_trained
def test_rows_do_not_see_each_other(name, make_rows_model):
    model, rows = make_rows_model(name, MIXED, TASTE).eval(), batch()
    together = model.outputs(rows["user_id"], rows["item_id"])
    alone = model.outputs(rows["user_id"][5:6], rows["item_id"][5:6])
    for key in MIXED:
        torch.testing.assert_close(together[key][5:6], alone[key])


@each_trained
def test_some_objectives_alone_are_as_among_all(name, make_rows_model):
    model, rows = make_rows_model(name, MIXED, TASTE).eval(), batch()
    users, items = rows["user_id"], rows["item_id"]
    together = model.outputs(users, items)
    for names in (["taste"], ["click"], ["click", "buy"]):
        alone = model.outputs(users, items, names)
        assert list(alone) == names
        for key in names:
            torch.testing.assert_close(alone[key], together[key])


def test_the_product_of_the_ids_stands_last_and_says_nothing_of_a_user_alone(make_rows_model):
    embed = make_rows_model("MMoE", MIXED, TASTE, product=True, embedding_std=0.2).embed
    users, items = batch()["user_id"], batch()["item_id"]
    x = embed(users, items)
    user, item = (side.weights[0] for side in (embed.user, embed.item))
    d = user.shape[1]
    assert x.shape == (24, 3 * d) and embed.size == 3 * d
    for n, (u, i) in enumerate(zip(users.tolist(), items.tolist())):
        for k in range(d):
            assert x[n, 2 * d + k].item() == pytest.approx((user[u, k] * item[i, k]).item() / 0.2)
    assert torch.equal(x[:, :d], user[users]) and torch.equal(x[:, d : 2 * d], item[items])
    assert not embed(users, items, with_items=False)[:, d:].any()


@each_trained
def test_a_distribution_reads_the_user_alone(name, make_rows_model):
    """Its label is made of items' categories: an item would tell it."""
    model = make_rows_model(name, MIXED, TASTE, item_fields=True)
    users = torch.tensor([3, 3, 8])
    one, two = (model.outputs(users, torch.tensor(items)) for items in ([1, 2, 3], [9, 4, 30]))
    assert torch.equal(one["taste"], two["taste"])
    assert torch.equal(one["taste"][0], one["taste"][1])
    assert not torch.equal(one["taste"][0], one["taste"][2])
    assert not torch.equal(one["click"], two["click"])


@each_trained
def test_fields_are_read_only_where_they_are_on(name, make_rows_model):
    plain, more = (make_rows_model(name, item_fields=on, user_fields=on) for on in (False, True))
    width = lambda model: sum(  # noqa: E731
        p.numel() for n, p in model.named_parameters() if "embed" in n or "table" in n
    )
    assert width(more) > width(plain) or name == "SingleTask"


@each_trained
def test_a_loss_is_the_mean_of_the_observed_rows(name, make_rows_model):
    """Rows without a label may hold any item: they change nothing."""
    if name in ("ESMM", "AITM"):
        pytest.skip("their losses are of the whole space, and have oracles of their own")
    model, rows = make_rows_model(name, MIXED, TASTE), batch()
    losses = model.losses(rows)
    said = model.expected(rows["user_id"], rows["item_id"])
    click, p = rows["click"], said["click"]
    wanted = -(click * p.log() + (1 - click) * (1 - p).log()).mean()
    torch.testing.assert_close(losses["click"], wanted)
    inside, p = rows["buy"][click == 1], said["buy"][click == 1]
    wanted = -(inside * p.log() + (1 - inside) * (1 - p).log()).mean()
    torch.testing.assert_close(losses["buy"], wanted)
    there = ~rows["stars"].isnan()
    torch.testing.assert_close(
        losses["stars"], (said["stars"] - rows["stars"])[there].square().mean()
    )
    there = ~rows["taste"].isnan().any(1)
    wanted = -(rows["taste"] * said["taste"].log())[there].sum(1).mean()
    torch.testing.assert_close(losses["taste"], wanted)
    weights = {"click": 1.0, "buy": 2.0, "stars": 0.5, "taste": 1.0}
    torch.testing.assert_close(
        model.calculate_loss(rows), sum(weights[key] * losses[key] for key in MIXED)
    )


@each_trained
def test_rows_outside_a_space_count_nothing_there(name, make_rows_model):
    """A label of buy where click is 0 is no observation, whatever the file says."""
    model, rows = make_rows_model(name, MIXED, TASTE), batch()
    losses = model.losses(rows)
    filled = rows["buy"].nan_to_num(1.0)
    other = Interaction({**rows.interaction, "buy": filled})
    for key, loss in model.losses(other).items():
        assert torch.equal(loss, losses[key])


@each_trained
def test_a_batch_without_labels_has_a_loss_of_zero(name, make_rows_model):
    model, rows = make_rows_model(name, MIXED, TASTE), batch()
    empty = {key: torch.full_like(rows[key], NAN) for key in MIXED}
    losses = model.losses(Interaction({**rows.interaction, **empty}))
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@each_trained
def test_parameters_are_shared_or_one_objectives_own(name, make_rows_model):
    """What is an objective's own is reached by its loss and by no other one."""
    model, rows = make_rows_model(name, MIXED, TASTE, embedding_std=1.0), batch(200)
    if name == "PLE":
        model = make_rows_model(name, MIXED, TASTE, embedding_std=1.0, levels=3)
    parts = [*model.shared_parameters()]
    for key in MIXED:
        parts += model.objective_parameters(key)
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
    owned = {key: model.objective_parameters(key) for key in MIXED}
    for key, loss in model.losses(rows).items():
        for other, own in owned.items():
            if own:
                grads = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
                reached = any(g is not None and g.any() for g in grads)
                assert reached == (key == other), (key, other)


@each_trained
def test_what_is_shared_is_reached_by_two(name, make_rows_model):
    model, rows = make_rows_model(name, MIXED, TASTE, embedding_std=1.0), batch(200)
    losses = model.losses(rows)
    for parameter in model.shared_parameters():
        reached = 0
        for loss in losses.values():
            (grad,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
            reached += grad is not None and bool(grad.any())
        # a table of items may be read by a single objective that reads items at all
        assert reached >= 2


@each_trained
def test_rank_is_the_expectation_of_the_whole_catalogue(name, make_rows_model):
    model = make_rows_model(name, MIXED, TASTE).eval()
    users, items = torch.tensor([4, 17]), torch.arange(31)
    for place, user in enumerate(users):
        said = model.expected(user.repeat(31), items)
        one = {key: model.rank(users, key)[place] for key in MIXED}
        torch.testing.assert_close(one["click"], said["click"])
        if name != "AITM":  # which has an oracle
            torch.testing.assert_close(one["buy"], said["click"] * said["buy"])
        torch.testing.assert_close(one["stars"], said["stars"])
        kinds = [[], [0], [1], [2]]  # of item 1, 2, .. by their genres in order of ids
        shares = model.categories_taste
        torch.testing.assert_close(one["taste"], shares @ said["taste"][0])
        assert kinds and shares.shape == (31, 4)
    rows = Interaction({"user_id": users, "item_id": torch.tensor([7, 4])})
    click = model.rank(users, "click")
    torch.testing.assert_close(model.predict(rows), click[[0, 1], [7, 4]])
    torch.testing.assert_close(model.full_sort_predict(rows), click.reshape(-1))


@each_trained
def test_parts_of_a_ranking_are_the_ranking(name, make_rows_model, monkeypatch):
    model, users = make_rows_model(name, MIXED, TASTE).eval(), torch.tensor([4, 17, 2])
    whole = model.rank(users, "buy")
    monkeypatch.setattr("recbole_meta.model.row_recommender._ROWS_AT_ONCE", 31)
    torch.testing.assert_close(model.rank(users, "buy"), whole)


@each_trained
def test_a_state_makes_the_same_model(name, make_rows_model):
    one, two = (make_rows_model(name, MIXED, TASTE, seed=seed) for seed in (1, 2))
    users = torch.tensor([4, 17])
    assert not torch.equal(one.rank(users, "buy"), two.rank(users, "buy"))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.rank(users, "buy"), two.rank(users, "buy"))


def test_shares_of_an_items_categories(make_rows_model, rows_dataset):
    shares = make_rows_model("MMoE", MIXED, TASTE).categories_taste
    names = rows_dataset.field2id_token["genre"]
    for item, token in enumerate(rows_dataset.field2id_token["item_id"]):
        if item == 0:
            assert not shares[0].any()
            continue
        number = int(token[1:])
        genres = {f"g{number % 3}"} | ({"g3"} if number % 2 else set())
        for place in range(4):
            wanted = 1 / len(genres) if names[place + 1] in genres else 0.0
            assert shares[item, place].item() == pytest.approx(wanted)


def test_row_loss_is_finite_for_any_output():
    output = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    loss, there = row_loss("binary", output, torch.tensor([0.0, 1.0, NAN]))
    assert loss.tolist() == [1e4, 1e4, 0.0] and there.tolist() == [True, True, False]
    loss.sum().backward()
    assert output.grad.tolist() == [1.0, -1.0, 0.0]


# Known world: two groups of users and items; whoever likes an item clicks it, and buys the half of
# those whose number can be divided by 4.


def known(size=4096):
    g = torch.Generator().manual_seed(5)
    users, items = (torch.randint(1, n, (size,), generator=g) for n in (41, 31))
    click = (users % 2 == items % 2).float()
    buy = torch.where(click == 1, (items % 4 < 2).float(), torch.nan)
    return Interaction({"user_id": users, "item_id": items, "click": click, "buy": buy})


@each_trained
def test_known_world_is_ranked_nearly_perfectly(name, make_rows_model):
    model = make_rows_model(name, embedding_std=0.3)
    rows = known()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.train()
    for step in range(240):
        part = rows[torch.arange(512) + 512 * (step % 8)]
        optimizer.zero_grad()
        model.calculate_loss(part).backward()
        optimizer.step()
    users, items = torch.arange(1, 41), torch.arange(1, 31)
    liked = users[:, None] % 2 == items % 2
    bought = liked & (items % 4 < 2)
    for objective, right in (("click", liked), ("buy", bought)):
        scores = model.eval().rank(users, objective)[:, 1:]
        above = [
            (score[yes][:, None] > score[~yes]).float().mean() for score, yes in zip(scores, right)
        ]
        assert torch.stack(above).mean() > 0.98, objective


# What is refused.


REFUSED = [
    ({"a": {"label": "a", "type": "binry"}}, "Did you mean 'binary'"),
    ({"a": {"label": "a", "type": "binary", "given": "b"}}, "is given 'b', which there is not"),
    (
        {
            "a": {"label": "a", "type": "binary", "given": "b"},
            "b": {"label": "b", "type": "binary", "given": "a"},
        },
        "'given' leads back to 'a'",
    ),
    (
        {
            "a": {"label": "a", "type": "regression"},
            "b": {"label": "b", "type": "binary", "given": "a"},
        },
        "whose type is regression",
    ),
]


@pytest.mark.parametrize(("entries", "said"), REFUSED)
def test_objectives_that_cannot_be_are_refused(entries, said):
    with pytest.raises(SettingError, match=said):
        read_row_objectives(entries)


def test_a_distribution_needs_its_field(make_rows_model):
    with pytest.raises(
        DataError, match=r"the item field 'genres', which is not loaded\. Did you me"
    ):
        make_rows_model("MMoE", {"taste": {"label": "genres", "type": "distribution"}}, TASTE)
    with pytest.raises(DataError, match="'categories' says 5, the field 'genre' of the items has"):
        make_rows_model("MMoE", MIXED, {"taste": 5})


@each_trained
def test_settings_that_cannot_be_are_refused(name, make_rows_model):
    with pytest.raises(SettingError, match="'embedding_size' must be at least 1"):
        make_rows_model(name, embedding_size=0)
