"""RatingRidge against a loop over unpadded tasks that solves the dual, and its stairs."""

import numpy as np
import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, SettingError
from recbole_meta.stage import load_stage

SMALL = dict(
    embedding_size=3, embedding_std=1.0, hidden_size=[5], directions=4, train_batch_size=12,
    id_dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(sample_path, tmp_path_factory):
    """``made(**settings)``: a fresh model, no parameter at a round value, and a batch."""
    target = tmp_path_factory.mktemp("prepared")

    def make(**changes):
        wanted = read_protocol("user_cold_5_rating")
        folder = prepare("tiny", wanted, "user_cold_5_rating", sample_path, target)
        choice = choose_model("RatingRidge")
        stage = load_stage(choice, open_prepared(folder), "test", 5, 7, SMALL | changes)
        torch.manual_seed(7)
        model = choice.cls(stage.config, stage.dataset)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.rand_like(parameter)
        return model, next(iter(EpisodeDataLoader(stage.dataset, 12, 7)))

    return make


def naive(model, u, x, y, asked):
    """Ratings of rows asked of one task with this support, unpadded; the dual of the ridge."""
    p = model.shared

    def predicted(rows):
        first = torch.cat([u.expand(len(rows), -1), rows], 1)
        h = torch.relu(first @ torch.cat([p["task_weight"], p["weight_0"]]) + p["bias_0"])
        return (h @ p["weight_1"] + p["bias_1"]).squeeze(-1)

    def phi(rows):
        ones = torch.ones(len(rows), 1)
        return torch.cat([rows @ model.vectors, ones], 1) * model.log_scale.exp()

    m = predicted(asked)
    if len(y):
        kernel = phi(x) @ phi(x).T + model.log_noise.exp() * torch.eye(len(y))
        m = m + phi(asked) @ phi(x).T @ torch.linalg.solve(kernel, y - predicted(x))
    if model.settings.link == "identity":
        return m
    grades, c = model.grades, model.log_count.exp()
    given = torch.stack([(y == g).sum() for g in grades])
    share = (given + c * model.grade_share) / (len(y) + c)
    cuts = model.cuts + (share - model.grade_share) @ model.moved
    found = []
    for value in m:
        rating = grades[0]
        for cut, low, high in zip(cuts, grades[:-1], grades[1:], strict=True):
            edge = 1 / (1 + torch.exp(-(value - cut) / model.log_width.exp()))
            rating = rating + (high - low) * edge
        found.append(rating)
    return torch.stack(found)


@pytest.mark.parametrize("link", ["identity", "stairs"])
def test_value_and_gradient(float64, made, link):
    model, batch = made(link=link)
    support, (query, _) = model._examples(batch, "support"), model.query(batch)
    fast = model.calculate_loss(batch)
    losses = []
    for task in range(len(support.mask)):
        kept, asked = support.mask[task] > 0, query.mask[task] > 0
        u = model.encode_tasks(support.task[task])
        ratings = naive(
            model, u, model.encode(support.x[task][kept]), support.label[task][kept],
            model.encode(query.x[task][asked]),
        )  # fmt: skip
        losses.append((ratings - query.label[task][asked]).abs().mean())
    slow = torch.stack(losses).mean()
    torch.testing.assert_close(fast, slow)
    parameters = dict(model.named_parameters())
    for name, of_fast, of_slow in zip(
        parameters,
        torch.autograd.grad(fast, parameters.values(), allow_unused=True),
        torch.autograd.grad(slow, parameters.values(), allow_unused=True),
        strict=True,
    ):
        assert (of_fast is None) == (of_slow is None), name
        if of_fast is not None:
            torch.testing.assert_close(of_fast, of_slow, msg=lambda text, n=name: f"{n}: {text}")


def test_the_grades_and_their_shares_are_those_of_training(made):
    model, _ = made()
    assert model.grades.tolist() == [1, 2, 3, 4, 5]
    assert model.grade_share.sum() == pytest.approx(1)
    assert (model.grade_share > 0).all()


def test_stairs_keep_the_order_and_stay_on_the_scale(made):
    model, _ = made()
    with torch.no_grad():
        model.moved.zero_()
        model.log_width.fill_(np.log(0.05))
        model._directions = lambda x: torch.zeros(len(x), 5)
        model._predicted = lambda state, x: x.squeeze(-1)
    m = torch.linspace(-2, 8, 400).unsqueeze(-1)
    ratings = model.score({"w": torch.zeros(5), "cuts": model.cuts.detach()}, m).detach()
    assert (ratings.diff() >= 0).all()
    assert ratings.min() >= 1 and ratings.max() <= 5
    near_a_grade = (ratings - ratings.round()).abs() < 0.1
    assert near_a_grade.float().mean() > 0.8


def test_a_user_who_gives_a_grade_often_moves_the_cuts(made):
    model, _ = made()
    support = Examples(
        torch.zeros(3, model.other_embedding.size), torch.tensor([5.0, 5.0, 1.0]),
        torch.tensor([1.0, 1.0, 0.0]), torch.zeros(model.task_embedding.size),
    )  # fmt: skip
    shares, c = model._shares(support), model.log_count.exp()
    expected = c * model.grade_share / (2 + c)
    expected[4] += 2 / (2 + c)
    torch.testing.assert_close(shares, expected)  # the row of padding counts nothing
    empty = support._replace(mask=torch.zeros(3))
    torch.testing.assert_close(model._shares(empty), model.grade_share)


def test_hidden_ids_leave_the_fields_and_evaluation_sees_all(made):
    model, _ = made(id_dropout=1.0 - 1e-9)
    items = torch.arange(1, 6)
    model.eval()
    whole = model.encode(items)
    model.train()
    hidden = model.encode(items)
    size = model.settings.embedding_size
    assert (hidden[:, :size] == 0).all() and (whole[:, :size] != 0).any()
    torch.testing.assert_close(hidden[:, size:], whole[:, size:])


def test_a_scale_without_grades_has_no_stairs(made, monkeypatch):
    from recbole_meta.model.meta import rating_ridge

    model, _ = made(link="identity")
    assert not hasattr(model, "cuts")
    model.facts = type("Facts", (), {"grades": torch.zeros(0)})()
    with pytest.raises(DataError, match="needs 2 to 20 different ratings"):
        rating_ridge.RatingRidge._build_stairs(model)


def test_a_link_that_is_none_is_refused(made):
    with pytest.raises(SettingError, match="link"):
        made(link="ladder")
