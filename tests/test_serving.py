"""Serving: what a saved model says of newcomers, and what it refuses."""

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recbole_meta
from recbole_meta.cli import main
from recbole_meta.data.prepared import open_prepared
from recbole_meta.errors import DataError, RecboleMetaError, SettingError
from recbole_meta.quick_start import run
from recbole_meta.saved_model import load
from recbole_meta.serving import Served
from recbole_meta.settings import load_properties

SMALL = {"epochs": 1, "embedding_size": 4, "hidden_size": [6], "embedding_std": 1.0}
CONTEXT = {"epochs": 2, "embedding_size": 4, "token_size": 8, "heads": 2}
RANKERS = {
    "Pop": {}, "QueryPop": {}, "Random": {}, "ItemKNNFoldIn": {}, "EASEFoldIn": {},
    "ContentKNN": {}, "PriorRidge": {}, "EpisodicRidge": {}, "SubsetRidge": {}, "KernelRidge": {},
    "MAML": SMALL, "ANIL": SMALL, "MetaSGD": SMALL, "CAVIA": SMALL, "BOIL": SMALL, "Reptile": SMALL,
    "RESUSRR": SMALL, "LWA": SMALL | {"support_negatives": 2}, "NLBA": SMALL, "TaNP": SMALL,
    "RESUSNN": SMALL, "MetaCF": {"epochs": 1, "embedding_size": 4, "embedding_std": 1.0},
    "MAMO": SMALL, "CNP": SMALL | {"support_negatives": 2},
    "MetaRidge": {"epochs": 2, "embedding_size": 4}, "InContext": CONTEXT,
    "Blend": {"epochs": 1, "members": {"InContext": CONTEXT, "KernelRidge": {}}},
}  # fmt: skip
FIELDS = {"item_fields": True, "user_fields": True}
RATERS = {
    "Constant": {}, "SupportMean": {}, "SupportMedian": {}, "ShrunkMedian": {}, "UserItemBias": {},
    "MAML": SMALL | FIELDS, "MeLU": SMALL | {"inner_lr": 0.1}, "CNP": SMALL | FIELDS,
    "RatingRidge": SMALL | {"directions": 3}, "InContext": CONTEXT | FIELDS,
    "RatingRidges": {"epochs": 1, "copies": 2, "member": {"embedding_size": 4, "directions": 3}},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(sample_path, tmp_path_factory):
    """``saved(model, protocol)``: what `run` says of a saved model, made once."""
    target, made = tmp_path_factory.mktemp("saved"), {}

    def make(model: str, protocol: str = "user_cold_5") -> dict:
        wanted = (RANKERS if protocol == "user_cold_5" else RATERS)[model]
        if (model, protocol) not in made:
            made[model, protocol] = run(
                model, "tiny", protocol, settings=wanted, data_path=sample_path,
                prepared_path=target / "prepared", results=target / "runs", save=True,
            )  # fmt: skip
        return made[model, protocol]

    return make


@pytest.fixture(scope="module")
def served(saved):
    made: dict[tuple[str, str], Served] = {}

    def load_once(model: str, protocol: str = "user_cold_5") -> Served:
        key = (model, protocol)
        if key not in made:
            made[key] = load(saved(model, protocol)["saved"])
        return made[key]

    return load_once


def bits(state: dict) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.items()}


# What it says is what was judged.


@pytest.mark.parametrize("model", RANKERS)
def test_a_newcomer_gets_the_ranking_that_was_judged(saved, served, model) -> None:
    found = saved(model)
    prepared = open_prepared(found["prepared"])
    support = prepared.support("test", 5)
    arrays = np.load(Path(found["runs"][0]["folder"]) / "tasks.npz")
    for user, top, scores in zip(arrays["task"], arrays["topk"], arrays["topk_score"]):
        likes = support[support["user"] == user]["item"].tolist()
        ranked = served(model).adapt(likes).rank(10)
        judged = [(item, score) for item, score in zip(top, scores) if item]
        assert [score for _, score in ranked] == pytest.approx(
            [score for _, score in judged], rel=1e-4, abs=1e-5
        )
        gaps = np.diff([score for _, score in judged])
        if (np.abs(gaps) > 1e-4).all():
            assert [item for item, _ in ranked] == [item for item, _ in judged]


@pytest.mark.parametrize("model", RATERS)
def test_a_newcomer_gets_the_predictions_that_were_judged(saved, served, model) -> None:
    """Ratings; his features come by name, not from a table of users."""
    found = saved(model, "user_cold_5_rating")
    prepared = open_prepared(found["prepared"])
    support = prepared.support("test", 5)
    arrays = np.load(Path(found["runs"][0]["folder"]) / "tasks.npz")
    reads = served(model, "user_cold_5_rating").info()["features of users"]
    features = features_of(prepared, reads)
    for user in arrays["task"]:
        rows = support[support["user"] == user]
        ratings = dict(zip(rows["item"], rows["target"]))
        newcomer = served(model, "user_cold_5_rating").adapt(
            ratings=ratings, features=features[user]
        )
        mine = arrays["query_task"] == user
        scores = newcomer.score(arrays["query_item"][mine].tolist())
        assert list(scores) == arrays["query_item"][mine].tolist()
        np.testing.assert_allclose(
            list(scores.values()), arrays["prediction"][mine], rtol=1e-4, atol=1e-4
        )


def features_of(prepared, names) -> dict[str, dict]:
    """User -> what the file says of him, without what nobody had in training."""
    lines = (prepared.path / f"{prepared.name}.user").read_text("utf-8").splitlines()
    columns = [column.split(":") for column in lines[0].split("\t")]
    warm = set(prepared.warm_rows("test")["user"])
    rows = [dict(zip([name for name, _ in columns], line.split("\t"))) for line in lines[1:]]
    met = {n: {row[n] for row in rows if row["user_id"] in warm} for n, _ in columns}
    found = {}
    for row in rows:
        found[row["user_id"]] = {
            name: float(row[name]) if kind == "float" else row[name]
            for name, kind in columns
            if name in names and row[name] and (kind == "float" or row[name] in met[name])
        }
    return found


# A newcomer is a value.


@pytest.mark.parametrize("model", ["PriorRidge", "EASEFoldIn", "EpisodicRidge", "MAML", "CNP"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_all_at_once_or_one_by_one_in_any_order(served, model, data) -> None:
    items = served(model).items[1:]
    likes = data.draw(st.lists(st.sampled_from(items), max_size=7, unique=True))
    whole = served(model).adapt(likes)
    grown = served(model).adapt()
    for item in data.draw(st.permutations(likes)):
        grown = grown.update([item])
    assert bits(grown.state) == bits(whole.state)
    assert grown.rank(5) == whole.rank(5)


@pytest.mark.parametrize("model", ["PriorRidge", "MAML", "CNP"])
def test_adapting_changes_neither_the_model_nor_the_newcomer(served, model) -> None:
    one = served(model)
    before = bits(one.model.state_dict())
    first = one.adapt(one.items[1:3])
    state = bits(first.state)
    first.update(one.items[3:6]).rank(3)
    assert bits(one.model.state_dict()) == before and bits(first.state) == state
    assert one.model.support is None


@pytest.mark.parametrize("model", RANKERS)
def test_many_at_once_are_each_as_alone(served, model) -> None:
    one = served(model)
    rng = np.random.default_rng(1)
    said = [{"likes": rng.choice(one.items[1:], n, replace=False).tolist()} for n in (3, 0, 6, 1)]
    said += [{}, {"dislikes": one.items[4:6]}] if one.model.reads_labels else [{}]
    for found, each in zip(one.adapt_many(said), said, strict=True):
        alone = one.adapt(**each)
        assert found.said == alone.said
        asked = one.items[1:]
        assert found.score(asked) == pytest.approx(alone.score(asked), rel=1e-4, abs=1e-5)
    assert one.adapt_many([]) == []


def test_how_uncertain_a_score_is_falls_with_what_is_said(served) -> None:
    model = served("MetaRidge")
    tokens = [model.items[i] for i in torch.nonzero(model.candidate).flatten().tolist()]
    nobody = model.adapt().deviation(tokens)
    some = model.adapt(likes=tokens[:2])
    known = some.deviation(tokens)
    assert list(known) == tokens
    assert all(0 <= known[token] <= nobody[token] for token in tokens)
    assert sum(known.values()) < sum(nobody.values())
    again = model.adapt(likes=tokens[:1]).update(likes=tokens[1:2]).deviation(tokens)
    assert again == pytest.approx(known)
    with pytest.raises(DataError, match="Unknown items: nothing"):
        some.deviation(["nothing"])
    with pytest.raises(DataError, match="CNP has no posterior"):
        served("CNP").adapt().deviation(tokens)


def test_features_move_the_scores_and_not_how_certain_they_are(sample_path, tmp_path) -> None:
    made = run(
        "MetaRidge", "tiny", "user_cold_5", settings=RANKERS["MetaRidge"] | {"user_fields": True},
        data_path=sample_path, prepared_path=tmp_path / "prepared", results=tmp_path, save=True,
    )  # fmt: skip
    model = load(made["saved"])
    tokens = [model.items[i] for i in torch.nonzero(model.candidate).flatten().tolist()]
    nobody, somebody = model.adapt(), model.adapt(features={"gender": "F"})
    assert nobody.score(tokens) != somebody.score(tokens)
    assert nobody.deviation(tokens) == somebody.deviation(tokens)
    later = somebody.update(likes=tokens[:2])
    both = model.adapt(likes=tokens[:2], features={"gender": "F"})
    assert later.score(tokens) == both.score(tokens)
    assert sum(later.deviation(tokens).values()) < sum(somebody.deviation(tokens).values())
    with pytest.raises(DataError, match="Did you mean 'gender'"):
        model.adapt(features={"gendr": "F"})


@pytest.mark.parametrize("missing", ["user_fields", "field_reg"])
def test_a_file_of_before_a_setting_reads_as_its_page(saved, tmp_path, missing) -> None:
    source = saved("MetaRidge")["saved"]
    content = torch.load(source, weights_only=True)
    del content["settings"][missing]
    torch.save(content, tmp_path / "old.pt")
    found, wanted = load(tmp_path / "old.pt"), load(source)
    assert found.model.settings == wanted.model.settings
    asked = wanted.items[1:]
    assert found.adapt(likes=asked[:2]).score(asked) == wanted.adapt(likes=asked[:2]).score(asked)


def test_a_file_holds_all_settings_of_its_parts(saved) -> None:
    """Not only those that were named: a page may say something else later."""
    blend = torch.load(saved("Blend")["saved"], weights_only=True)["settings"]
    named = RANKERS["Blend"]["members"]
    assert blend["members"] == {
        name: load_properties("model", name) | own for name, own in named.items()
    }
    path = saved("RatingRidges", "user_cold_5_rating")["saved"]
    whole = torch.load(path, weights_only=True)["settings"]
    page = load_properties("model", "RatingRidge") | RATERS["RatingRidges"]["member"]
    assert whole["member"] == {k: v for k, v in page.items() if k not in whole}


def test_many_of_any_iterable(served) -> None:
    one = served("PriorRidge")
    said = [{"likes": one.items[n : n + 2]} for n in (1, 3)]
    found = one.adapt_many(each for each in said)
    assert [newcomer.said for newcomer in found] == [one.adapt(**each).said for each in said]
    for odd in (3, ["a"], [3]):
        with pytest.raises(DataError, match="must be"):
            one.adapt_many(odd)


def test_what_pandas_and_numpy_hold_is_taken_and_written(served) -> None:
    one = served("CNP", "user_cold_5_rating")
    item, genres = one.items[1], [np.str_("Drama")]
    features = {"gender": np.str_("F"), "age": np.int64(44)}
    features = {
        name: features[name] for name in one.info()["features of users"] if name in features
    }
    assert features
    newcomer = one.adapt(ratings={np.str_(item): np.int64(4)}, features=features)
    again = one.read_newcomer(newcomer.to_bytes())
    assert again.said == newcomer.said and again.features == newcomer.features
    assert bits(again.state) == bits(newcomer.state)
    new = {"new": {"genre": genres}}
    ranked = newcomer.rank(np.int64(1), only=[], new_items=new)
    genres.append("Comedy")
    assert ranked == newcomer.rank(1, only=[], new_items={"new": {"genre": ["Drama"]}})


def test_many_raters_with_features(served) -> None:
    one = served("MAML", "user_cold_5_rating")
    said = [{"ratings": {one.items[n]: n}, "features": {"gender": "FM"[n % 2]}} for n in (1, 2, 3)]
    for found, each in zip(one.adapt_many([*said, {}]), [*said, {}], strict=True):
        asked = one.items[5:9]
        assert found.score(asked) == pytest.approx(one.adapt(**each).score(asked), rel=1e-4)


@pytest.mark.parametrize("model", ["PriorRidge", "MAML", "MetaSGD", "CNP"])
def test_eight_threads_give_what_one_gives(served, model) -> None:
    one = served(model)
    rng = np.random.default_rng(0)
    asked = [rng.choice(one.items[1:], n % 6, replace=False).tolist() for n in range(64)]
    alone = [one.adapt(likes).rank(10) for likes in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda likes: one.adapt(likes).rank(10), asked))
    assert together == alone and len({str(ranked) for ranked in alone}) > 10


@pytest.mark.parametrize("model", ["PriorRidge", "MAML"])
def test_a_newcomer_is_written_and_read_again(served, model) -> None:
    one = served(model)
    newcomer = one.adapt(one.items[1:4])
    again = one.read_newcomer(newcomer.to_bytes())
    assert bits(again.state) == bits(newcomer.state) and again.said == newcomer.said
    assert again.rank(4) == newcomer.rank(4)


def test_what_he_says_again_replaces_the_old(served) -> None:
    one = served("CNP")
    item, other = one.items[1:3]
    turned = one.adapt([item, other]).update(dislikes=[item])
    assert bits(turned.state) == bits(one.adapt([other], [item]).state)
    assert bits(turned.state) != bits(one.adapt([item, other]).state)
    rater = served("UserItemBias", "user_cold_5_rating")
    low = rater.adapt(ratings={item: 5}).update(ratings={item: 1})
    assert bits(low.state) == bits(rater.adapt(ratings={item: 1}).state)


# Candidates.


def test_the_candidates_of_a_ranking(served) -> None:
    one = served("PriorRidge")
    items = one.items[1:]
    newcomer = one.adapt(items[:2])
    ranked = dict(newcomer.rank(10**6))
    known = {token for token, there in zip(one.items, one.candidate) if there}
    assert set(ranked) == known - set(items[:2]) and len(known) > 20
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    some = items[:8]
    assert {item for item, _ in newcomer.rank(10, only=some)} == set(some[2:])
    assert {item for item, _ in newcomer.rank(10, items[5:], some)} == set(items[2:5])
    assert len(newcomer.rank(3)) == 3
    assert newcomer.score(some) == pytest.approx({**newcomer.score(some[:2]),
                                                  **{i: ranked[i] for i in some[2:]}})  # fmt: skip


def test_equal_scores_go_by_token(served) -> None:
    one = served("Random")
    ranked = one.adapt().rank(10**6)
    assert [item for item, _ in ranked] == sorted(item for item, _ in ranked)


def test_items_that_were_never_met_by_their_features(saved, served) -> None:
    """With the features of a known item and an unknown id they score as it does without its id."""
    one = served("CNP", "user_cold_5_rating")
    prepared = open_prepared(saved("CNP", "user_cold_5_rating")["prepared"])
    names = one.info()["features of items"]
    assert names
    lines = (prepared.path / f"{prepared.name}.item").read_text("utf-8").splitlines()
    columns = [column.split(":") for column in lines[0].split("\t")]
    row = dict(zip([name for name, _ in columns], lines[1].split("\t")))
    kinds = dict(columns)
    features = {
        name: float(row[name]) if kinds[name] == "float"
        else row[name].split(" ") if kinds[name] == "token_seq" else row[name]
        for name in names
    }  # fmt: skip
    newcomer = one.adapt(ratings={row["item_id"]: 4})
    scores = newcomer.score([row["item_id"]], {"new": features, "blank": {}})
    assert list(scores) == [row["item_id"], "new", "blank"] and len(set(scores.values())) == 3
    with torch.no_grad():
        weight = one.model.item_embedding.weights[0]
        place = one.ids([row["item_id"]])[0]
        kept = weight[place].clone()
        weight[place] = 0
        content = torch.load(saved("CNP", "user_cold_5_rating")["saved"], weights_only=True)
        other = replace(newcomer, served=Served(one.model, content))
        without = other.score([row["item_id"]])[row["item_id"]]
        weight[place] = kept
    assert scores["new"] == pytest.approx(without, abs=1e-5)
    ranked = newcomer.rank(1, only=[], new_items={"new": features})
    assert ranked == [("new", pytest.approx(scores["new"], abs=1e-6))]


# What moved a ranking.


@pytest.mark.parametrize("model", RANKERS)
def test_an_explanation_is_adapting_without_each_item(served, model) -> None:
    one = served(model)
    likes, dislikes = one.items[1:5], one.items[5:7] if one.model.reads_labels else []
    newcomer = one.adapt(likes, dislikes)
    found = newcomer.explain(7, exclude=one.items[8:9])
    assert [entry[:2] for entry in found] == newcomer.rank(7, exclude=one.items[8:9])
    top = [item for item, _, _ in found]
    whole = newcomer.score(top)
    for left in [*likes, *dislikes]:
        less = one.adapt(*([item for item in each if item != left] for each in (likes, dislikes)))
        for item, score in less.score(top).items():
            moved = found[top.index(item)][2][left]
            assert moved == pytest.approx(whole[item] - score, rel=1e-3, abs=1e-5)
    for _, _, moved in found:
        assert set(moved) == {*likes, *dislikes}
        assert [*moved] == sorted(moved, key=lambda item: (-moved[item], item))


@pytest.mark.parametrize("model", RATERS)
def test_an_explanation_of_ratings(served, model) -> None:
    """With features of the newcomer, which stay."""
    one = served(model, "user_cold_5_rating")
    ratings = {one.items[1]: 5, one.items[2]: 1, one.items[3]: 4}
    about = {"gender": "F"} if "gender" in one.info()["features of users"] else {}
    newcomer = one.adapt(ratings=ratings, features=about)
    for item, score, moved in newcomer.explain(5):
        assert score == pytest.approx(newcomer.score([item])[item], abs=1e-5)
        assert set(moved) == set(ratings)
        for left, by in moved.items():
            others = {other: rating for other, rating in ratings.items() if other != left}
            less = one.adapt(ratings=others, features=about).score([item])[item]
            assert by == pytest.approx(score - less, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("model", ["PriorRidge", "EASEFoldIn", "MAML", "CNP"])
def test_nothing_moved_the_prior_and_one_item_all_the_rest(served, model) -> None:
    one = served(model)
    nobody, item = one.adapt(), one.items[1]
    assert nobody.explain(4) == [(*entry, {}) for entry in nobody.rank(4)]
    for found, score, moved in one.adapt([item]).explain(4):
        gain = score - nobody.score([found])[found]
        assert moved == {item: pytest.approx(gain, rel=1e-4, abs=1e-5)}


def test_an_item_of_a_fold_in_rule_moves_the_same_in_any_company(served) -> None:
    """The score is a sum over the support, beside what is everybody's."""
    one = served("EASEFoldIn")
    few, many = one.items[1:3], one.items[1:7]
    alike = {item: moved for item, _, moved in one.adapt(many).explain(10**6)}
    for item, _, moved in one.adapt(few).explain(10, exclude=many):
        assert moved == pytest.approx({left: alike[item][left] for left in few}, abs=1e-5)


def test_even_items_bring_even_items(served) -> None:
    """Even users love even items: what comes first among them is the even likes' doing."""
    one = served("PriorRidge")
    parity = {item: int(item[1:]) % 2 for item in one.items[1:]}
    even = [item for item, odd in parity.items() if not odd]
    odd = [item for item, odd in parity.items() if odd]
    found = one.adapt([*even[:2], odd[0]]).explain(5, only=even)
    assert len(found) == 5
    for _, _, moved in found:
        assert [*moved][-1] == odd[0] and moved[even[0]] > 0 and moved[even[1]] > 0


def test_what_has_no_id_is_explained_too(served) -> None:
    one = served("CNP", "user_cold_5_rating")
    newcomer, new = one.adapt(ratings={one.items[1]: 4, one.items[2]: 2}), {7: {"genre": ["Drama"]}}
    (found, score, moved), *_ = newcomer.explain(1, only=[], new_items=new)
    assert (found, score) == ("7", pytest.approx(newcomer.score([], new)["7"], abs=1e-6))
    less = one.adapt(ratings={one.items[2]: 2}).score([], new)["7"]
    assert moved[one.items[1]] == pytest.approx(score - less, rel=1e-3, abs=1e-5)
    assert len(newcomer.explain(10**6, new_items=new)) == len(newcomer.rank(10**6, new_items=new))


# What is refused.


def refused(function, said: str, kind=DataError) -> None:
    with pytest.raises(kind) as error:
        function()
    assert said in str(error.value)


def test_what_a_newcomer_cannot_say(served) -> None:
    ridge, cnp = served("PriorRidge"), served("CNP")
    item, other = ridge.items[1:3]
    refused(lambda: ridge.adapt(["nothing", item, "at all"]), "Unknown items: nothing, at all.")
    refused(lambda: cnp.adapt([item], [item]), f"Liked and disliked at once: {item}")
    refused(lambda: ridge.adapt([item], [other]), "PriorRidge learns from likes alone")
    refused(lambda: ridge.adapt(ratings={item: 3}), "The model learnt no ratings")
    for odd in ("50", b"50", None, 50):
        refused(lambda odd=odd: ridge.adapt(odd), "'likes' must be a list")
    refused(lambda: ridge.adapt().rank(3, exclude="50"), "'exclude' must be a list")
    refused(lambda: ridge.adapt(features=[3]), "'features' must be 'name: value' pairs")
    refused(lambda: ridge.adapt(ratings=[item]), "'ratings' must be 'name: value' pairs")
    refused(lambda: ridge.adapt(features={"age": 3}), "PriorRidge reads no features of users")
    refused(lambda: ridge.adapt().rank(0), "'k' must be at least 1", SettingError)
    refused(lambda: ridge.adapt().rank(3, only=[]), "No candidate is left")
    refused(lambda: ridge.adapt([item]).explain(3, only=[item]), "No candidate is left")
    for k in (0, -1, 2.0, "3"):
        refused(lambda k=k: ridge.adapt([item]).explain(k), "'k' must be at least 1", SettingError)
    refused(
        lambda: ridge.adapt().rank(3, new_items={"new": {"a": 1}}), "reads no features of items"
    )
    newcomer = ridge.adapt()
    for ask in (
        partial(newcomer.rank, 3),
        partial(newcomer.explain, 3),
        partial(newcomer.score, []),
    ):
        pairs = "must be 'name: value' pairs"
        refused(partial(ask, new_items=["new"]), f"'new_items' {pairs}")
        refused(partial(ask, new_items={"new": 3}), f"The features of 'new' {pairs}")
        refused(partial(ask, new_items={item: {}}), f"Not new: {item}.")
    refused(lambda: ridge.adapt(unknown="drop"), "'unknown' is 'drop'", SettingError)
    refused(lambda: ridge.adapt(unknown=["error"]), "'unknown' is ['error']", SettingError)
    for k in (True, 1.5, None):
        refused(lambda k=k: ridge.adapt().rank(k), "'k' must be at least 1", SettingError)
    knn = served("ContentKNN")
    refused(lambda: knn.adapt().score([], {"new": {}}), "of its data only")
    refused(lambda: ridge.adapt_many([{"like": [item]}]), "Did you mean 'likes'", SettingError)
    refused(lambda: ridge.adapt_many([{}, {"likes": ["none"]}]), "Unknown items: none.")
    with pytest.warns(UserWarning, match="left out: nothing"):
        kept = ridge.adapt(["nothing", item], unknown="ignore")
    assert bits(kept.state) == bits(ridge.adapt([item]).state)


@pytest.mark.parametrize("value", [9, 0, -1, float("nan"), float("inf"), "4", None, True])
def test_a_rating_that_is_none(served, value) -> None:
    one = served("MeLU", "user_cold_5_rating")
    refused(lambda: one.adapt(ratings={one.items[1]: value}), f"The rating of '{one.items[1]}'")


def test_ratings_are_not_likes(served) -> None:
    one = served("MeLU", "user_cold_5_rating")
    refused(lambda: one.adapt([one.items[1]]), "The model learnt ratings")


def test_features_of_the_wrong_name_or_type(served) -> None:
    one = served("MeLU", "user_cold_5_rating")
    fields = {field.name: field for field in one.model.facts.user_fields}
    refused(lambda: one.adapt(features={"shoe": 3}), "No feature 'shoe' of users")
    for name, field in fields.items():
        assert field.kind == "token"
        refused(lambda n=name: one.adapt(features={n: "never met"}), "nobody had in training")
        refused(lambda n=name: one.adapt(features={n: ["a", "b"]}), "must be one token")
    newcomer = one.adapt()
    refused(
        lambda: newcomer.score([], {"new": {"genre": "Drama"}}), "'genre' must be a list of tokens"
    )
    refused(lambda: newcomer.score([], {"new": {"genre": ["Cake"]}}), "'genre' is 'Cake'")
    assert newcomer.score([], {"new": {"genre": ["Drama"]}, "none": {"genre": []}})


def test_new_items_can_be_excluded(served) -> None:
    newcomer = served("CNP", "user_cold_5_rating").adapt()
    new = {"one": {"genre": ["Drama"]}, "two": {}}
    ranked = newcomer.rank(5, exclude=["two"], only=[], new_items=new)
    assert [item for item, _ in ranked] == ["one"]
    assert [item for item, *_ in newcomer.explain(5, ["two"], [], new)] == ["one"]
    refused(lambda: newcomer.rank(5, exclude=["three"], new_items=new), "Unknown items: three.")
    both = newcomer.rank(5, only=["one", "two"], new_items=new)
    assert {item for item, _ in both} == {"one", "two"}


def test_bytes_of_what_this_model_cannot_be_told(served) -> None:
    ridge, rater = served("PriorRidge"), served("CNP", "user_cold_5_rating")
    item = ridge.items[1]
    liked, rated = ridge.adapt([item]).to_bytes(), rater.adapt(ratings={item: 4}).to_bytes()
    refused(lambda: rater.read_newcomer(liked), "its feedback is 'implicit', not 'rating'")
    refused(lambda: ridge.read_newcomer(rated), "its feedback is 'rating', not 'implicit'")
    assert served("CNP").read_newcomer(liked).said == ridge.read_newcomer(liked).said

    def changed(content: bytes, **changes) -> bytes:
        buffer = io.BytesIO()
        torch.save(torch.load(io.BytesIO(content), weights_only=True) | changes, buffer)
        return buffer.getvalue()

    for one, content, said, message in (
        (ridge, liked, {item: 0.5}, "neither 1 nor 0"),
        (ridge, liked, {item: 0.0}, "PriorRidge learns from likes alone"),
        (rater, rated, {item: 99.0}, f"The rating of '{item}' is 99"),
        (rater, rated, {"none": 4.0}, "Unknown items: none"),
        (rater, rated, [4.0], "'ratings' must be"),
    ):
        refused(partial(one.read_newcomer, changed(content, said=said)), message)
    item_side = changed(liked, side="item")
    refused(lambda: ridge.read_newcomer(item_side), "its side is 'item', not 'user'")
    old = changed(liked, format=1)
    refused(lambda: ridge.read_newcomer(old), "has format 1, this version reads 2")


def test_bytes_that_are_no_newcomer(served) -> None:
    one = served("PriorRidge")
    good = one.adapt(one.items[1:3]).to_bytes()
    for bad in (b"", b"abc", good[:-9], good[: len(good) // 2]):
        refused(lambda b=bad: one.read_newcomer(b), "no newcomer")


@pytest.mark.parametrize("model", ["PriorRidge", "CNP"])
def test_a_damaged_file_is_named(saved, tmp_path, model) -> None:
    content = Path(saved(model)["saved"]).read_bytes()
    path = tmp_path / "model.pt"
    for size in {0, 1, 10, len(content) // 3, len(content) // 2, len(content) - 20}:
        path.write_bytes(content[:size])
        refused(lambda: load(path), str(path))
    refused(lambda: load(tmp_path / "none.pt"), "none.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "has format 99, this version reads 3"),
        ({"kind": "cake"}, "is no saved model"),
        ({"model": "Priorridge"}, "Did you mean 'PriorRidge'"),
        ({"items": ["[PAD]"]}, "no catalogue"),
        ({"items": None}, "damaged"),
        ({"settings": None}, "damaged"),
        ({"settings": {"epochs": -1}}, "'epochs' must be at least 0"),
        ({"state": {}}, "damaged"),
        ({"side": "planet"}, "a user or an item"),
        ({"model": "CNP", "settings": load_properties("model", "CNP")}, "not say which fields"),
        ({"candidates": torch.ones(3)}, "no catalogue"),
    ],
)
def test_a_file_of_something_else(saved, tmp_path, change, said) -> None:
    content = torch.load(saved("PriorRidge")["saved"], weights_only=True)
    path = tmp_path / "model.pt"
    torch.save(content | change, path)
    refused(lambda: load(path), said, RecboleMetaError)
    torch.save([1, 2], path)
    refused(lambda: load(path), "is no saved model")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_loading_runs_no_code(saved, served, tmp_path) -> None:
    mark, path = tmp_path / "was here", tmp_path / "model.pt"
    hostile = Hostile(mark)
    pickle.loads(pickle.dumps(hostile))
    assert mark.exists(), "it would have run"
    mark.unlink()
    good = torch.load(saved("PriorRidge")["saved"], weights_only=True)
    for content in (hostile, good | {"about": hostile}):
        torch.save(content, path)
        refused(lambda: load(path), f"{path} is damaged or no saved model: it holds more than")
        refused(lambda: served("PriorRidge").read_newcomer(path.read_bytes()), "no newcomer")
    path.write_bytes(pickle.dumps(hostile))
    refused(lambda: load(path), str(path))
    assert not mark.exists()


def test_recboles_models_are_not_saved(sample_path, tmp_path) -> None:
    refused(lambda: run("BPR", "tiny", data_path=sample_path, prepared_path=tmp_path, save=True),
            "BPR cannot be saved", SettingError)  # fmt: skip


def test_a_file_holds_nothing_of_the_training_users(saved) -> None:
    found = saved("MeLU", "user_cold_5_rating")
    content = torch.load(found["saved"], weights_only=True)
    n_users = open_prepared(found["prepared"]).description["counts"]["users"]
    sizes = {size for value in content["state"].values() for size in value.shape}
    assert not {n_users, n_users + 1} & sizes
    assert "u001" not in str({k: v for k, v in content.items() if k != "state"})


# The command line.


def test_adapt_and_info_from_the_command_line(saved, served, capsys) -> None:
    path, one = saved("CNP")["saved"], served("CNP")
    items = one.items[1:]
    likes = f"{items[0]}, {items[1]}"
    assert (
        main(["adapt", path, "--likes", likes, "--dislikes", items[2], "--k", "3", "--json"]) == 0
    )
    found = [(entry["item"], entry["score"]) for entry in json.loads(capsys.readouterr().out)]
    assert found == one.adapt(items[:2], [items[2]]).rank(3)
    assert main(["adapt", path, "--likes", likes, "--only", ",".join(items[3:5])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert {line.split()[1] for line in lines} == set(items[3:5])
    assert main(["info", path, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["model"], about["dataset"], about["items"]) == ("CNP", "tiny", len(items))
    assert main(["info", path]) == 0
    assert "takes" in capsys.readouterr().out


def test_reasons_from_the_command_line(saved, served, capsys) -> None:
    path, one = saved("PriorRidge")["saved"], served("PriorRidge")
    likes = one.items[1:4]
    words = ["adapt", path, "--likes", ",".join(likes), "--k", "3", "--explain"]
    found = one.adapt(likes).explain(3)
    assert main([*words, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [(entry["item"], entry["score"], entry["moved"]) for entry in entries] == found
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for n, (line, (item, score, moved)) in enumerate(zip(lines, found, strict=True), start=1):
        *head, shown = line.split()[:3]
        assert head == [str(n), item] and float(shown) == pytest.approx(score, abs=1e-4)
        reasons = line.split()[3:]
        assert reasons[1::2] == [*moved]
        assert [float(by) for by in reasons[::2]] == pytest.approx([*moved.values()], abs=1e-4)


def test_ratings_and_features_from_the_command_line(saved, served, capsys) -> None:
    path, one = saved("MeLU", "user_cold_5_rating")["saved"], served("MeLU", "user_cold_5_rating")
    item = one.items[1]
    arguments = ["--ratings", f"{item}=4.0", "--features", "{gender: F}", "--json"]
    assert main(["adapt", path, *arguments]) == 0
    found = [(entry["item"], entry["score"]) for entry in json.loads(capsys.readouterr().out)]
    assert found == one.adapt(ratings={item: 4.0}, features={"gender": "F"}).rank(10)
    assert found != one.adapt(ratings={item: 4.0}, features={"gender": "M"}).rank(10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--likes", "nothing"], "Unknown items: nothing."),
        (["--ratings", "a=b"], "item=rating"),
        (["--ratings", "=3"], "item=rating"),
        (["--ratings", "a=3,a=4"], "'a' twice"),
        (["--features", "{a: 2020-99-99}"], "Cannot read --features"),
        (["--features", "[1]"], "--features must be"),
        (["--k", "0"], "'k' must be at least 1"),
    ],
)
def test_errors_of_the_command_line(saved, capsys, arguments, said) -> None:
    assert main(["adapt", saved("PriorRidge")["saved"], *arguments]) == 2
    assert said in capsys.readouterr().err


def test_load_is_at_the_top() -> None:
    assert recbole_meta.load is load
    with pytest.raises(AttributeError):
        recbole_meta.unload  # noqa: B018
