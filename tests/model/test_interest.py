"""User interest, a distribution over categories: MTA against plain loops, its floor by hand, and
that both are of train alone.
"""

import math

import numpy as np
import pytest
import torch

from recbole_meta.compat import contained
from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours
from recbole_meta.errors import SettingError
from recbole_meta.model.multitask.mta import MTA
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_objectives,
    objective_config,
    train_set,
)

BEHAVIOURS = ("like", "love", "seen")
SMALL = {"embedding_size": 4, "embedding_std": 0.5, "train_batch_size": 8, "sampled_items": None}
USERS = [4, 17, 9, 30]


@pytest.fixture(autouse=True)
def _double(float64):
    """Oracles are compared in double precision."""


def built(films, **settings) -> MTA:
    """An untrained model whose gates are not at their start."""
    torch.manual_seed(0)
    values = check_objective_settings("MTA", SMALL | settings, BEHAVIOURS, ("interest",))
    with contained():
        model = MTA(objective_config("MTA", films, 1, values), train_set(films))
    with torch.no_grad():
        model.query.normal_()
        model.gate_bias.normal_()
    return model.eval()


def met(films, behaviour: str, user: int) -> list[int]:
    """The items of a user in train, by ids."""
    ids, tokens = train_set(films).field2token_id, train_set(films).field2id_token["user_id"]
    rows = films.positives("train", behaviour)
    return sorted(ids["item_id"][item] for item in rows.loc[rows["user"] == tokens[user], "item"])


def shares(films, genres: dict) -> np.ndarray:
    """q of every item, [I, 4]; zeros of the padding and where none is named."""
    ids = train_set(films).field2token_id
    found = np.zeros((train_set(films).item_num, 4))
    for item, named in genres.items():
        for each in named.split():
            found[ids["item_id"][item], ids["genre"][each] - 1] = 1 / len(named.split())
    return found


def logits(model, films, user: int, kept=None, dropout: float = 0.0) -> np.ndarray:
    """D z + e of one user, [4], by loops; what is not kept is hidden from the encoder."""
    d = model.settings.embedding_size
    weight = {name: each.detach().numpy() for name, each in model.named_parameters()}

    def read(table: np.ndarray, items: list[int]) -> np.ndarray:
        total = np.zeros(d)
        for item in items:
            if kept is None or item in kept:
                total += table[item] / math.sqrt(len(items)) / (1 - dropout)
        return total

    z, gate = [], []
    union = sorted({item for name in BEHAVIOURS for item in met(films, name, user)})
    for b, name in enumerate(BEHAVIOURS):
        shared = 0 if model.own else read(weight["shared"], union)
        z.append(shared + read(weight[f"mean.{name}"], met(films, name, user)))
        gate.append(math.exp(weight["query"][3] @ z[b] / math.sqrt(d) + weight["gate_bias"][3, b]))
    if model.own:
        gate = [1.0, 0.0, 0.0]  # of what is liked alone
    mixed = sum(g / sum(gate) * each for g, each in zip(gate, z))
    return weight["decoder.interest"] @ mixed + weight["bias.interest"]


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


FORMS = [{"latent": "deterministic"}, {"latent": "variational"}, {"inputs": "own"}]


@pytest.mark.parametrize("settings", FORMS)
def test_distribution_and_ranking_equal_a_plain_loop(films, film_rows, settings):
    model, q = built(films, **settings), shares(films, film_rows[1])
    for user in USERS:
        p = softmax(logits(model, films, user))
        one = torch.tensor([user])
        np.testing.assert_allclose(model.distribution(one, "interest")[0].detach(), p)
        expected = [sum(p[c] * q[item, c] for c in range(4)) for item in range(len(q))]
        np.testing.assert_allclose(model.rank(one, "interest")[0].detach(), expected)


@pytest.mark.parametrize("targets", ["all", "dropped"])
@pytest.mark.parametrize("inputs", ["all", "own"])
def test_the_loss_equals_a_plain_loop(films, film_rows, monkeypatch, targets, inputs):
    """Every third entry is dropped: what interest adds to the loss, times its weight."""
    model = built(films, targets=targets, inputs=inputs, dropout=0.3, weights={"interest": 2.5})
    model.train()
    users, q = torch.tensor(USERS), shares(films, film_rows[1])
    entries = model.entries(users)
    kept = torch.arange(len(entries.item)) % 3 > 0
    monkeypatch.setattr(model, "entries", lambda users: entries._replace(kept=kept))
    losses = []
    for place, user in enumerate(USERS):
        seen = set(entries.item[(entries.row == place) & kept].tolist())
        liked = [item for item in met(films, "like", user) if q[item].any()]
        if targets == "dropped":
            liked = [item for item in liked if item not in seen]
        p = np.mean([q[item] for item in liked], axis=0)
        losses.append(-(p * np.log(softmax(logits(model, films, user, seen, 0.3)))).sum())
    whole = model.calculate_loss({"user_id": users})
    model.settings.weights["interest"] = 0.0
    without = model.calculate_loss({"user_id": users})
    np.testing.assert_allclose((whole - without).item(), 2.5 * np.mean(losses))


def test_the_bias_starts_at_what_all_users_like(films, film_rows):
    q = shares(films, film_rows[1])
    total = sum(q[item] for user in range(1, 41) for item in met(films, "like", user)) + 0.5
    bias = built(films).bias["interest"].detach().numpy()
    np.testing.assert_allclose(bias, np.log(total / total.sum()))


def test_interest_has_its_own_decoder(films):
    model = built(films, weights=dict.fromkeys(BEHAVIOURS, 0.0)).train()
    model.calculate_loss({"user_id": torch.arange(1, 41)}).backward()
    moved = {name for name, each in model.decoder.items() if each.grad is not None}
    assert moved == {"interest"} and model.gate_bias.grad[:3].abs().max() == 0
    assert model.gate_bias.grad[3].abs().min() > 1e-8


@pytest.mark.parametrize("reg", [0.0, 3.0])
def test_the_floor_is_a_users_mean_shrunk(films, film_rows, reg):
    q, model = shares(films, film_rows[1]), fit_objectives(
        "ObjectivePop", films, 1, {"reg_user": reg}
    ).model  # fmt: skip
    of_user = {u: [q[i] for i in met(films, "like", u) if q[i].any()] for u in range(1, 41)}
    rows = [row for each in of_user.values() for row in each]
    mean = np.mean(rows, axis=0)
    found = model.distribution(torch.arange(1, 41), "interest").numpy()
    for user, each in of_user.items():
        weight = len(each) + reg
        expected = (np.sum(each, axis=0) + reg * mean) / weight if weight else mean
        np.testing.assert_allclose(found[user - 1], expected)


def test_the_floor_is_the_one_of_models_of_rows(write_films, film_rows):
    """ObjectiveRate, on the same rows."""
    from recbole_meta.data.row_splits import open_rows, prepare_rows
    from recbole_meta.row_fitting import fit_rows
    from tests.conftest import FILMS

    page = FILMS.replace("behaviours:", "objectives:") + "item_features: [genre]\n"
    folder = write_films(*film_rows, page=page.replace('"rating >= 2"', "rating")
                         .replace("rating, type: binary", "rating, type: regression"))  # fmt: skip
    rows = open_rows(prepare_rows("films", "rows_random", folder, folder / "rows"))
    rate = fit_rows("ObjectiveRate", rows, 1, {"reg_user": 4.0}).test(rows).means()
    folder = write_films(*film_rows)
    drawn = open_behaviours(made(folder))
    pop = fit_objectives("ObjectivePop", drawn, 1, {"reg_user": 4.0}).test(drawn).means()
    for metric in ("interest/cross_entropy", "interest/recall@3"):
        assert pop[metric] == pytest.approx(rate[metric], rel=1e-5)


def made(folder):
    return prepare_behaviours("films", folder, folder / "prepared", "behaviours_random")


@pytest.mark.parametrize("name", ["ObjectivePop", "MTA"])
def test_no_rating_of_another_split_reaches_a_distribution(write_films, film_rows, films, name):
    """What is liked in valid and test is disliked, and the other way round."""
    rows, genres = film_rows
    later = {pair for split in ("valid", "test")
             for pair in zip(films.rows(split)["user"], films.rows(split)["item"])}  # fmt: skip
    turned = [(u, i, 7 - r if (u, i) in later else r) for u, i, r in rows]
    assert turned != rows
    other = open_behaviours(made(write_films(turned, genres)))
    assert not other.positives("test", "like").equals(films.positives("test", "like"))
    few = SMALL | {"epochs": 2, "eval_step": 9} if name == "MTA" else {}
    one, two = (fit_objectives(name, b, 1, few).model for b in (films, other))
    users = torch.arange(1, 41)
    with torch.no_grad():
        share = one.distribution(users, "interest")
        assert torch.equal(share, two.distribution(users, "interest"))


def test_training_beats_the_mean_of_all_users(films):
    settings = SMALL | {"embedding_std": 0.05, "epochs": 60, "eval_step": 5, "stopping_step": 9,
                        "learning_rate": 0.02, "stop_by": "interest/cross_entropy"}  # fmt: skip
    fit = fit_objectives("MTA", films, 1, settings)
    mean = fit_objectives("ObjectivePop", films, 1, {"reg_user": 1e9})
    metric = "interest/cross_entropy"
    assert fit.test(films).means()[metric] < mean.test(films).means()[metric] - 0.1
    scores = [-entry["valid"] for entry in fit.history if "valid" in entry]
    assert fit.epochs == 5 * (1 + int(np.argmin(scores)))  # less is better
    assert fit.valid.means()[metric] == pytest.approx(min(scores))


REFUSED = [
    ("MTA", {"stop_by": "interest/ndcg@10"}, "'stop_by' is 'interest/ndcg@10'"),
    ("MTA", {"copy": {"interest": 1.0}}, "'copy' names the objective 'interest'"),
    ("MTA", {"weights": {"intrest": 1.0}}, "Did you mean 'interest'"),
    ("GradedMTA", {"stop_by": "interest/cross_entropy"}, "'stop_by' is 'interest/cross_ent"),
    ("LinearMTA", {"linear": {"interest": 1.0}}, "'linear' names the objective 'interest'"),
    ("ObjectiveEASE", {"weights": {"interest": 1.0}}, "'weights' names the objective 'interest'"),
]


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(films, name, settings, said):
    with pytest.raises(SettingError, match=said):
        fit_objectives(name, films, 1, settings)
