"""What every multi-task model keeps, found by itself under ``model/multitask``."""

import re
import sys
from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.errors import SettingError
from recbole_meta.model import multitask_models
from recbole_meta.objective_fitting import check_objective_settings, fit_objectives, train_set
from recbole_meta.settings import load_properties, properties_folder


def page_of(name: str) -> dict:
    return load_properties("model", name)


each_model = pytest.mark.parametrize("name", multitask_models())
FEW = {"epochs": 2, "eval_step": 1, "train_batch_size": 8}


def few_of(name: str, bought: str = "purchase", clicked: str = "click") -> dict:
    """Settings with which a model is soon trained, and all of its parts are used."""
    if not page_of(name)["epochs"]:
        return {}
    if name == "SeveralStarts":
        return FEW | {
            "member": {"WalkMTA": {"embedding_size": 4, "walk": {bought: 0.1}}},
            "copies": 2,
        }
    paths = {"linear": {bought: 20.0}, "walk": {bought: 0.1, clicked: 0.5}}
    return FEW | {"embedding_size": 4} | {k: v for k, v in paths.items() if k in page_of(name)}


@pytest.fixture(scope="module", params=multitask_models())
def fitted(request, shop):
    return fit_objectives(request.param, shop, 1, few_of(request.param))


@each_model
def test_page_has_the_settings(name):
    kind = get_type_hints(multitask_models()[name])["settings"]
    assert sorted(page_of(name)) == sorted(field.name for field in fields(kind))


@each_model
def test_page_says_type_and_meaning(name):
    text = (properties_folder() / "model" / f"{name}.yaml").read_text("utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"\w+: +\S.* # \([a-z ~]+\).*", line), line


@each_model
def test_header_and_docstring(name):
    cls = multitask_models()[name]
    head = sys.modules[cls.__module__].__doc__.strip().splitlines()
    assert head[0] == name and head[1] == "#" * 48 and len(head) > 2
    assert cls.__doc__ and cls.__doc__ != cls.__mro__[1].__doc__
    assert cls.group in ("floor", "rule", "ours")


def test_every_objective_has_a_finite_ranking(fitted, shop):
    users = torch.arange(1, len(set(shop.rows("train")["user"])) + 1)
    for name in shop.objectives:
        with torch.no_grad():
            scores = fitted.model.rank(users, name)
        assert scores.shape == (len(users), len(shop.catalogue) + 1)
        assert scores.isfinite().all()


def test_users_do_not_see_each_other(fitted, shop):
    users = torch.tensor([3, 9, 1, 20])
    for name in shop.objectives:
        with torch.no_grad():
            together = fitted.model.rank(users, name)
            alone = torch.cat([fitted.model.rank(user[None], name) for user in users])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_recbole_gets_the_main_objective(fitted):
    model, users = fitted.model, torch.tensor([2, 5])
    with torch.no_grad():
        scores = model.rank(users, "purchase")
        whole = model.full_sort_predict(Interaction({"user_id": users}))
        rows = Interaction({"user_id": users, "item_id": torch.tensor([7, 4])})
        torch.testing.assert_close(model.predict(rows), scores[[0, 1], [7, 4]])
    torch.testing.assert_close(whole, scores.reshape(-1))


def test_ranking_changes_nothing(fitted, shop):
    users = torch.tensor([2, 5])
    for name in shop.objectives:
        with torch.no_grad():
            first = fitted.model.rank(users, name).clone()
            fitted.model.rank(users, name)[:] = -torch.inf  # a caller masks what is no candidate
            assert torch.equal(fitted.model.rank(users, name), first)


def test_the_same_seed_gives_the_same_bits(fitted, shop):
    again = fit_objectives(type(fitted.model).__name__, shop, 1, fitted.settings)
    for name in shop.objectives:
        for query, metrics in fitted.valid.metrics[name].items():
            np.testing.assert_array_equal(
                metrics["ndcg@10"], again.valid.metrics[name][query]["ndcg@10"]
            )


def test_no_label_of_another_split_reaches_a_model(write_splits, shop_rows, fitted, shop):
    """Other labels in valid and test, and another test: nothing that a model says of a user moves.

    Rows keep their pairs, so that ids stay as they are.
    """
    from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours

    rows = dict(shop_rows)
    for split in ("valid", "test"):
        trained = {row[:2]: row[2:] for row in shop_rows["train"]}
        moved = []
        for user, item, *labels in shop_rows[split]:
            free = [not known for known in trained.get((user, item), (0, 0, 0))]
            other = [int(free[place] and not label) for place, label in enumerate(labels)]
            moved.append((user, item, *other))
        rows[split] = moved
    taken = {row[:2]: row[2:] for row in rows["valid"]}
    rows["test"] = [
        (u, i, *(int(y and not t) for y, t in zip(labels, taken.get((u, i), (0, 0, 0)))))
        for u, i, *labels in rows["test"]
    ]
    folder = write_splits(**rows)
    other = open_behaviours(prepare_behaviours("shop", folder, folder / "prepared"))
    settings = fitted.settings | ({"eval_step": 9} if fitted.history else {})
    name = type(fitted.model).__name__
    one, two = (fit_objectives(name, b, 1, settings) for b in (shop, other))
    users = torch.arange(1, 30)
    for objective in shop.objectives:
        with torch.no_grad():
            assert torch.equal(one.model.rank(users, objective), two.model.rank(users, objective))


REFUSED = [
    ("ObjectiveEASE", {"reg_weight": 0.0}, "must be above 0"),
    ("ObjectiveEASE", {"target": "onw"}, "Did you mean 'own'"),
    ("ObjectiveEASE", {"reg_weigt": 1.0}, "Did you mean 'reg_weight'"),
    ("ObjectivePp", {}, "Did you mean 'ObjectivePop'"),
]


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(name, settings, said):
    with pytest.raises(SettingError, match=said):
        check_objective_settings(name, settings, ("purchase", "click"))


@pytest.mark.parametrize("name", [n for n in multitask_models() if "weights" in page_of(n)])
def test_weights_name_objectives(name, shop):
    with pytest.raises(SettingError, match="'weights' names the objective 'clik', which"):
        fit_objectives(name, shop, 1, {"weights": {"clik": 2.0}})


@each_model
def test_a_model_says_a_distribution_or_refuses(name, films):
    """Never a number that is made up for it."""
    few = few_of(name, "like", "love")
    fit = fit_objectives(name, films, 1, few)
    users, said = torch.arange(1, 41), [key for key in fit.valid.means() if "interest" in key]
    if not multitask_models()[name].distributes:
        assert not said and not fit.model.distributions
        for ask in (fit.model.rank, fit.model.distribution):
            with pytest.raises(SettingError, match=f"{name} .*'interest'"):
                ask(users, "interest")
        return
    assert said == ["interest/cross_entropy", "interest/recall@3"]
    with torch.no_grad():
        share, scores = (ask(users, "interest") for ask in (fit.model.distribution, fit.model.rank))
    torch.testing.assert_close(share.sum(1), torch.ones(40))
    item = train_set(films).field2token_id["item_id"]
    about = {"i4": ["b", "d"], "i5": ["c"], "i7": []}  # genres of some
    genre = train_set(films).field2token_id["genre"]
    for token, genres in about.items():
        wanted = sum(share[:, genre[each] - 1] / len(genres) for each in genres)
        torch.testing.assert_close(scores[:, item[token]], wanted + torch.zeros(40))


# Floors and rules by loops.


def test_pop_counts_the_own_behaviour(shop):
    model = fit_objectives("ObjectivePop", shop, 1, {}).model
    rows = shop.positives("train", "cart")["item"].value_counts()
    ids = model.history["cart"], train_ids(shop)["item_id"]
    scores = model.rank(torch.tensor([1]), "cart")[0]
    assert {item: scores[ids[1][item]].item() for item in rows.index} == rows.to_dict()
    assert scores.sum() == rows.sum()


def test_copy_other_puts_what_was_met_first(shop):
    model, pop = (fit_objectives(n, shop, 1, {}).model for n in ("CopyOther", "ObjectivePop"))
    ids, known = train_ids(shop), shop.known("train")
    for user in ("u0", "u7"):
        place = torch.tensor([ids["user_id"][user]])
        scores, counts = model.rank(place, "cart")[0], pop.rank(place, "cart")[0]
        met = [ids["item_id"][item] for item in known.loc[known["user"] == user, "item"]]
        other = [i for i in range(1, len(scores)) if i not in met]
        assert scores[met].min() > scores[other].max()
        for part in (met, other):
            order = counts[part].argsort(stable=True)
            assert torch.equal(scores[part][order].argsort(stable=True), torch.arange(len(part)))


def train_ids(shop):
    from recbole_meta.objective_fitting import train_set

    return train_set(shop).field2token_id
