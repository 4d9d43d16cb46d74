"""RatingRidges against its copies: their mean before the stairs, and the training of each alone."""

import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.episode import Examples
from recbole_meta.errors import SettingError
from recbole_meta.fitting import fit_learner
from recbole_meta.settings import load_properties
from recbole_meta.stage import load_stage

SMALL = dict(embedding_size=3, embedding_std=1.0, hidden_size=[5], directions=4, id_dropout=0.0)
TRAINING = dict(
    epochs=2, train_batch_size=12, average=0.5, learning_rate=0.01, weight_decay=0.0
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(sample_path, tmp_path_factory):
    target = tmp_path_factory.mktemp("prepared")
    wanted = read_protocol("user_cold_5_rating")
    return open_prepared(prepare("tiny", wanted, "user_cold_5_rating", sample_path, target))


def stage_of(name, folder, settings):
    choice = choose_model(name)
    return choice, load_stage(choice, folder, "valid", 5, 7, settings)


def started(folder, **changes):
    settings = TRAINING | {"copies": 3, "member": SMALL} | changes
    choice, stage = stage_of("RatingRidges", folder, settings)
    torch.manual_seed(7)
    return choice.cls(stage.config, stage.dataset), stage


def built(folder, **changes):
    """No parameter at a round value, and a batch."""
    model, stage = started(folder, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
    return model, next(iter(EpisodeDataLoader(stage.dataset, 12, 7)))


def test_one_copy_is_the_model_itself(folder):
    choice, stage = stage_of("RatingRidge", folder, TRAINING | SMALL)
    alone = fit_learner(choice, stage)
    choice, stage = stage_of("RatingRidges", folder, TRAINING | {"copies": 1, "member": SMALL})
    whole = fit_learner(choice, stage)
    assert len(alone.history) == 2 and alone.history == whole.history
    for one, other in zip(alone.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("link", ["identity", "stairs"])
def test_the_mean_is_taken_before_the_stairs(float64, folder, link):
    model, batch = built(folder, member=SMALL | {"link": link})
    support, items = model._examples(batch, "support"), model.all_others[1:]
    differ = 0
    for task in range(len(support.mask)):
        one = Examples(*(part[task] for part in support))
        state = model.adapt(model._encoded(one))
        said = []
        for copy in model.copies:
            x = copy.encode(items)
            own = copy.adapt(copy._encoded(one))
            said.append((copy._predicted(own, x) + copy._directions(x) @ own["w"], own, copy))
        m = torch.stack([each[0] for each in said]).mean(0)
        if link == "stairs":
            cuts = torch.stack([own["cuts"] for _, own, _ in said]).mean(0)
            width = torch.stack([copy.log_width.exp() for *_, copy in said]).mean()
            grades, rating = said[0][2].grades, torch.zeros_like(m)
            for low, high, cut in zip(grades[:-1], grades[1:], cuts, strict=True):
                rating = rating + (high - low) / (1 + torch.exp(-(m - cut) / width))
            m = rating + grades[0]
            each = [copy.score(own, copy.encode(items)) for _, own, copy in said]
            differ += not torch.allclose(torch.stack(each).mean(0), m)
        torch.testing.assert_close(model.score(state, model.encode(items)), m)
    assert bool(differ) == (link == "stairs")  # elsewhere it is the mean of ratings


def test_each_copy_has_the_gradient_that_it_would_have_alone(folder):
    model, batch = built(folder)
    model.train().calculate_loss(batch).backward()
    for copy in model.copies:
        together = {name: p.grad.clone() for name, p in copy.named_parameters()}
        copy.zero_grad()
        copy.calculate_loss(batch).backward()
        for name, p in copy.named_parameters():
            torch.testing.assert_close(p.grad, together[name])
    assert any(p.grad.abs().max() > 0 for p in model.parameters())


def test_copies_start_apart(folder):
    model, _ = started(folder)
    first, *others = model.copies
    assert all(not torch.equal(first.vectors, other.vectors) for other in others)


def test_what_is_judged_is_the_moving_average(folder):
    fits = {}
    for average in (0.0, 0.5):
        choice, stage = stage_of("RatingRidge", folder, TRAINING | SMALL | {"average": average})
        fits[average] = fit_learner(choice, stage)
    last, mean = fits[0.0].history[0], fits[0.5].history[0]
    assert last["loss"] == mean["loss"]  # of the steps, which are the same
    assert last["valid"] != mean["valid"]


def test_rows_of_a_query_are_drawn_for_the_whole(folder):
    losses = []
    for rows in (1, None):
        settings = TRAINING | {"copies": 2, "member": SMALL, "query_rows": rows}
        losses.append(fit_learner(*stage_of("RatingRidges", folder, settings)).history[0]["loss"])
    assert losses[0] != losses[1]


def test_what_no_id_has_is_read_by_each_copy(folder):
    """A new item with the features of a known one is that item without its id."""
    model, _ = started(folder)
    item, size = 3, SMALL["embedding_size"]
    values = {}
    for field in model.copies[0].other_fields[1:]:
        given = field.values[item]
        several = field.kind == "token_seq"
        tokens = [field.tokens[place] for place in given.reshape(-1).tolist() if place]
        values[field.name] = tokens if several else tokens[0]
    known = torch.stack(model.encode(torch.tensor([item]))[0].chunk(3))  # [M, D]
    known[:, :size] = 0
    new = torch.stack(model.encode_new_others([values])[0].chunk(3))
    assert known.abs().sum() > 0
    torch.testing.assert_close(new, known)


def test_it_reads_what_its_copies_read():
    choice = choose_model("RatingRidges")
    page = load_properties("model", "RatingRidges")
    reads = choice.reads(page | {"member": {"user_fields": False}}, "rating", "user")
    assert reads == "ids +ratings +item fields"
    whole = "ids +ratings +user fields +item fields"
    assert choice.reads(page | {"member": {}}, "rating", "user") == whole


@pytest.mark.parametrize(
    "member, message",
    [
        ({"learning_rate": 0.1}, "'learning_rate' is a setting of the whole"),
        ({"average": 0.1}, "'average' is a setting of the whole"),
        ({"query_rows": 3}, "'query_rows' is a setting of the whole"),
        ({"direction": 3}, "direction"),
        ({"directions": 0}, "directions"),
        ({"loss": "softmax"}, "RatingRidges, 'member': RatingRidge: 'loss' is softmax"),
    ],
)
def test_settings_of_a_member_that_cannot_be_are_refused(folder, member, message):
    with pytest.raises(SettingError, match=message):
        built(folder, member=member)
