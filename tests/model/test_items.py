"""Items as tasks: content rules against plain loops, learners, judging, serving."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import recbole_meta
from recbole_meta.choice import choose_model
from recbole_meta.cli import main
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.support import read_support
from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.metrics import ranking_metrics
from recbole_meta.evaluation.recompute import recompute
from recbole_meta.fitting import judge_learner
from recbole_meta.quick_start import run
from recbole_meta.recbole_fitting import judge_recbole
from recbole_meta.saved_model import model_bytes

GENRES = 4


@pytest.fixture(scope="module")
def world(make_world):
    """120 items of 4 genres; a user takes items of his genre, and of another now and then."""
    rng = np.random.default_rng(5)
    genres = {f"i{item}": [f"g{item % GENRES}", "film"] for item in range(120)}
    rows = [
        (f"u{user}", f"i{item}", 5, 100 * item + user)
        for user in range(80)
        for item in range(120)
        if rng.random() < (0.7 if item % GENRES == user % GENRES else 0.08)
    ]
    return make_world(rows, "item_cold_curve", genres, shots=[0, 1, 3], reserve=3)


def genre_of(token: str) -> int:
    return int(token[1:]) % GENRES


def columns(fitted) -> np.ndarray:
    """0/1 of warm items' rows, [I, U], by RecBole's ids."""
    x = np.zeros((fitted.model.n_tasks, fitted.model.n_others))
    for user, item in fitted.prepared.warm_rows("test")[["user", "item"]].itertuples(index=False):
        x[fitted.id_of("item")[item], fitted.id_of("user")[user]] = 1
    return x


def one_hot(fitted) -> np.ndarray:
    """The genres of the items, one column each, by RecBole's ids."""
    tokens = fitted.stage.dataset.field2id_token["item_id"]
    c = np.zeros((len(tokens), GENRES + 1))
    for place, token in enumerate(tokens):
        if place:
            c[place, [genre_of(token), GENRES]] = 1
    return c


def scores(fitted, k: int = 0) -> np.ndarray:
    """Scores [U, I] after k raters of each item."""
    judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", k)
    users = torch.arange(fitted.model.n_others)
    with torch.no_grad():
        found = fitted.model.full_sort_predict({fitted.model.USER_ID: users})
    return found.view(len(users), -1).numpy()


def content(fitted) -> np.ndarray:
    """The columns that a warm item carries, less the one of ones."""
    found = fitted.model.content[:, :-1].numpy()
    return found[:, found[columns(fitted).any(axis=1)].any(axis=0)]


def test_content_is_one_column_per_category(world, fit) -> None:
    fitted = fit(world, "ContentRidge")
    assert (fitted.model.content[:, -1] == 1).all()
    found = content(fitted)
    expected = one_hot(fitted)
    assert found.shape == expected.shape
    assert sorted(map(tuple, found.T)) == sorted(map(tuple, expected.T))


def test_what_cold_items_alone_carry_is_no_column(world, make_world, fit) -> None:
    """Nor does it move a warm item's neighbours."""
    rows = pd.concat([world.rows(name) for name in ("train_0", "reserved", "valid", "test")])
    rows = [(user, item, 5, time) for user, item, time in rows[["user", "item", "time"]].to_numpy()]
    cold = world.cold_tasks("test")
    genres = {
        f"i{n}": [f"g{n % GENRES}", "film", *(["late"] if f"i{n}" in cold else [])]
        for n in range(120)
    }
    other = make_world(rows, "item_cold_curve", genres, shots=[0, 1, 3], reserve=3)
    assert other.cold_tasks("test") == cold
    fitted = fit(other, "ContentRidge")
    np.testing.assert_array_equal(content(fitted), content(fit(world, "ContentRidge")))
    genre, *said = np.flatnonzero(fitted.model.weight.abs().sum(1))
    assert len([genre, *said]) == GENRES + 2, "nothing is said of what no warm item carries"
    np.testing.assert_allclose(
        scores(fit(other, "ContentKNN")), scores(fit(world, "ContentKNN")), atol=1e-6
    )


def test_content_knn_of_users_is_by_the_neighbours_of_what_is_scored(worlds, fit) -> None:
    fitted = fit(worlds["implicit"], "ContentKNN", neighbours=4)
    tokens = fitted.stage.dataset.field2id_token["item_id"]
    c = np.array([[*np.eye(4)[n % 4], *np.eye(3)[n % 3]] for n in (int(i[1:]) for i in tokens[1:])])
    ids = fitted.id_of("item")
    met = {ids[item] - 1 for item in fitted.prepared.warm_rows("test")["item"]}
    centred = c - c[sorted(met)].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    support = [1, 5, 8]
    expected = []
    for i in range(len(c)):
        near = {j: max(0.0, centred[i] @ centred[j]) if j != i else 0.0 for j in met}
        least = sorted(near.values(), reverse=True)[3] - 1e-9
        near = {j: w for j, w in near.items() if w >= least}
        expected.append(sum(near.get(s - 1, 0.0) for s in support) / sum(near.values()))
    found = fitted.scores_after(support)[0, 1:]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("neighbours", [3, 1000])
def test_content_knn_is_the_weighted_mean_of_like_items(world, fit, neighbours: int) -> None:
    fitted = fit(world, "ContentKNN", neighbours=neighbours)
    x, c = columns(fitted), one_hot(fitted)
    warm = np.flatnonzero(x.any(axis=1))
    centred = c - c[warm].mean(axis=0)
    for item in (fitted.id_of("item")[token] for token in world.tasks("test")):
        near = {}
        for j in warm:
            cosine = centred[item] @ centred[j]
            near[j] = cosine / np.linalg.norm(centred[item]) / np.linalg.norm(centred[j])
        least = sorted(near.values(), reverse=True)[: min(neighbours, len(near))][-1]
        near = {j: w for j, w in near.items() if w >= max(least - 1e-12, 1e-12)}
        expected = sum(w * x[j] for j, w in near.items()) / sum(near.values())
        np.testing.assert_allclose(scores(fitted)[:, item], expected, atol=1e-5)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_content_ridge_is_the_posterior_of_a_gaussian(world, fit, k: int) -> None:
    """Against the conditional of the joint Gaussian of all users' entries of an item."""
    s = dict(embedding_size=5, reg_weight=2.0, noise=0.4)
    fitted = fit(world, "ContentRidge", **s)
    x, c = columns(fitted), one_hot(fitted)
    c = np.concatenate([c, np.ones((len(c), 1))], axis=1)
    warm = np.flatnonzero(x.any(axis=1))
    p = x[warm].mean(axis=0)
    _, singular, vt = np.linalg.svd(x[warm] - p, full_matrices=False)
    v = (vt[:5] * singular[:5, None]).T / np.sqrt(len(warm))  # [U, d]
    w, *_ = np.linalg.lstsq(v, (x[warm] - p).T, rcond=None)  # [d, n]
    b = np.linalg.solve(c[warm].T @ c[warm] + 2 * np.eye(c.shape[1]), c[warm].T @ w.T)
    left = ((w.T - c[warm] @ b) ** 2).mean(axis=0)
    found = scores(fitted, k)
    support = world.support("test", k)
    for token in world.tasks("test"):
        item = fitted.id_of("item")[token]
        mean, cov = p + v @ (c[item] @ b), v @ np.diag(left) @ v.T
        raters = support.loc[support["item"] == token, "user"].map(fitted.id_of("user")).to_numpy()
        assert len(raters) == k
        noisy = cov[np.ix_(raters, raters)] + 0.4 * np.eye(k)
        expected = mean + cov[:, raters] @ np.linalg.solve(noisy, 1 - mean[raters])
        np.testing.assert_allclose(found[:, item], expected, atol=1e-4)


def test_content_finds_the_genre_and_raters_do_without(world, fit) -> None:
    """The known answer: who loves the genre comes first."""

    def found(name: str, k: int, **settings) -> float:
        fitted = fit(world, name, **settings)
        judged = judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", k)
        return judged.means()["ndcg@10"]

    chance = found("Random", 0)
    assert found("ContentKNN", 0) > chance + 0.3
    assert found("ContentRidge", 0) > chance + 0.3
    assert found("PriorRidge", 0) == pytest.approx(chance)
    assert found("PriorRidge", 3) > chance + 0.3
    trained = dict(epochs=15, train_batch_size=8)
    assert found("CNP", 0, **trained) > chance + 0.2
    assert found("MAML", 3, item_fields=False, **trained) > chance + 0.2


def test_recboles_models_rank_cold_items_by_their_raters(world, fit) -> None:
    settings = dict(epochs=60, learning_rate=0.01, train_batch_size=256)
    chance = fit(world, "Random")
    chance = judge_learner(chance.trainer, chance.choice, chance.stage, "test", 0).means()
    found = [
        judge_recbole(choose_model("BPR"), world, k, 2020, settings).tested.means()["ndcg@10"]
        for k in (0, 3)
    ]
    assert found[0] < chance["ndcg@10"] + 0.1 < chance["ndcg@10"] + 0.3 < found[1]


def test_a_users_scores_must_be_comparable(world, fit) -> None:
    with pytest.raises(SettingError, match=r"'loss' is softmax.*bce"):
        fit(world, "CNP", loss="softmax")


@pytest.mark.parametrize("negatives", [None, 2])
def test_what_is_drawn_of_a_query_stands_for_all_of_it(worlds, fit, negatives) -> None:
    """Its loss is that of all users in expectation, however few are drawn."""
    fitted = fit(worlds["items"], "CNP", query_rows=None, query_negatives=None)
    model, dataset = fitted.model, fitted.stage.dataset
    batch = next(iter(EpisodeDataLoader(dataset, 10**4, 0)))
    taken, left = batch["query_mask"].sum(1), 60 - (batch["history_item"] > 0).sum(1)
    assert taken.max() > 3 * taken.min() > 9, "items that few take, and many"
    some = EpisodeDataLoader(dataset, 10**4, 0, query_rows=3)._some
    found = []
    with torch.no_grad():
        expected = float(model.calculate_loss(batch))
        model.settings = replace(model.settings, query_negatives=negatives)
        for _ in range(60):
            drawn = some(batch)
            query, _ = model.query(drawn)
            for label, number in ((1, taken), (0, left.float())):
                torch.testing.assert_close((query.mask * (query.label == label)).sum(1), number)
            assert (query.mask * query.label > 0).sum(1).max() == 3
            found.append(float(model.calculate_loss(drawn)))
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - expected) < 4 * error and error < 0.02 * expected


@pytest.mark.parametrize("drawn", [20, None])
def test_how_many_take_an_item_is_learnt(make_world, fit, drawn) -> None:
    """Two genres that are equally loved by all, one of them by three times as many."""
    rng = np.random.default_rng(3)
    genres = {f"i{item}": [f"g{item % 2}"] for item in range(80)}
    rows = [
        (f"u{user}", f"i{item}", 5, 100 * item + user)
        for user in range(60)
        for item in range(80)
        if rng.random() < (0.6 if item % 2 else 0.2)
    ]
    world = make_world(rows, "item_cold", genres)
    few = dict(epochs=12, train_batch_size=8, query_rows=drawn, query_negatives=drawn)
    found = torch.from_numpy(scores(fit(world, "CNP", **few))).sigmoid()
    ids = fit(world, "Random").id_of("item")
    share = [
        float(found[1:, [ids[i] for i in world.tasks("test") if int(i[1:]) % 2 == genre]].mean())
        for genre in (0, 1)
    ]
    assert share[0] < 0.25 and 0.45 < share[1] < 0.75


@pytest.mark.parametrize("feedback", ["implicit", "rating"])
def test_a_support_is_the_first_rows_of_every_item_that_training_met(make_world, feedback) -> None:
    """Of warm ones too, for they are ranked beside the cold; with what the raters said."""
    rows = [(f"u{n % 9}", f"i{n // 9}", n % 5 + 1, n) for n in range(270) if n % 4]
    world = make_world(rows, "item_cold_curve", shots=[0, 1, 3], reserve=3, feedback=feedback)
    items, users = ({"[PAD]": 0} | {f"{side}{n}": n + 1 for n in range(30)} for side in "iu")
    support = read_support(world, "test", 3, items, users)
    stars = {(user, item): rating for user, item, rating, _ in rows}
    first = world.rows("train_3").query("position < 3")
    assert set(first["item"]) == set(items) - {"[PAD]"} and not support.mask[0].any()
    for item, place in list(items.items())[1:]:
        raters = first.loc[first["item"] == item].sort_values("position")["user"]
        assert support.x[place].tolist() == [users[user] for user in raters]
        said = [stars[user, item] if feedback == "rating" else 1 for user in raters]
        assert support.label[place].tolist() == said and support.mask[place].tolist() == [1] * 3


def test_all_items_are_ranked_in_a_second_list(world, fit, tmp_path) -> None:
    fitted = fit(world, "ContentRidge")
    judged = judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", 1)
    found = scores(fitted, 1)
    assert list(judged.metrics) == ["cold", "all"]
    rows, early = world.rows("test"), world.rows("reserved")  # of both phases
    had = [world.rows("train_0"), world.rows("valid"), early]  # RecBole hides what a user had
    for query, candidates in (("cold", world.candidates("test")), ("all", set(world.catalogue))):
        for task, user in enumerate(judged.arrays["task"]):
            own = set().union(*(part.loc[part["user"] == user, "item"] for part in had))
            free = sorted(candidates - own)
            asked = found[fitted.id_of("user")[user], [fitted.id_of("item")[i] for i in free]]
            best = [free[i] for i in np.argsort(-asked, kind="stable")[:10]]
            prefix = "" if query == "cold" else "all/"
            listed = judged.arrays[f"{prefix}topk"][task]
            assert [i for i in listed if i] == best
            liked = set(rows.loc[rows["user"] == user, "item"])
            hits = np.array([[i in liked for i in listed]])
            expected = ranking_metrics(
                hits, judged.arrays[f"{prefix}topk_score"][task : task + 1],
                judged.arrays[f"{prefix}cut_tie_size"][task : task + 1],
                judged.arrays[f"{prefix}cut_tie_positives"][task : task + 1], [len(liked)],
            )  # fmt: skip
            np.testing.assert_allclose(
                judged.metrics[query]["ndcg@10"][task], expected["ndcg@10"][0]
            )


# On ml-100k.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``runs(model, protocol)``: the test result, and what was written."""
    root = tmp_path_factory.mktemp("runs")

    def found(model: str, protocol: str, **settings):
        where = dict(prepared_path=root / "prepared", results=root / "runs")
        return run(model, protocol=protocol, settings=settings, **where), root / "prepared"

    return found


def test_floors_are_at_their_references(runs) -> None:
    """Random .060 and genres .221 on another split, with a standard deviation of .03."""
    values = {
        model: np.mean([
            runs(model, "item_cold", split=split)[0]["test_result"]["ndcg@10"] for split in range(3)
        ])
        for model in ("Random", "ContentKNN", "ContentRidge")
    }  # fmt: skip
    assert values["Random"] == pytest.approx(0.060, abs=0.015)
    assert 0.221 < values["ContentKNN"] < 0.221 + 0.1
    assert 0.268 < values["ContentRidge"] < 0.268 + 0.1


@pytest.mark.parametrize("protocol", ["item_cold_curve", "both_cold"])
def test_a_run_is_recomputed(runs, protocol: str) -> None:
    found, prepared = runs("ContentKNN", protocol)
    for entry in found["runs"]:
        assert recompute(Path(entry["folder"]), prepared)["cold"]["ndcg@10"] == pytest.approx(
            entry["test"]["ndcg@10"]
        )


# Serving.


def test_a_new_item_is_shown_to_those_who_would_take_it(world, tmp_path, fit) -> None:
    settings = dict(epochs=40, train_batch_size=8, item_fields=True)
    fitted = fit(world, "CNP", **settings)
    served = saved(fitted, tmp_path / "model.pt")
    assert served.info()["newcomers are"] == "items" and served.info()["users"] == 80
    assert served.info()["features of items"] == ["class"]
    silent = served.adapt()
    lovers = [
        genre_of(user) == genre
        for genre in range(GENRES)
        for user, _ in served.adapt(features={"class": [f"g{genre}"]}).rank(10)
    ]
    assert len(lovers) == 40 and sum(lovers) > 20  # 10 by chance
    raters = [f"u{n}" for n in range(0, 12, GENRES)]
    told = served.adapt(likes=raters)
    assert not {user for user, _ in told.rank(10)} & set(raters)
    assert told.score(raters) != silent.score(raters)
    # the same as the fitted model says of an item with these raters
    item = fitted.id_of("item")[world.tasks("test")[0]]
    x = torch.tensor([[fitted.id_of("user")[user] for user in raters]])
    from recbole_meta.episode import Examples

    ones = torch.ones(x.shape)
    genre = genre_of(world.tasks("test")[0])
    told = served.adapt(likes=raters, features={"class": [f"g{genre}", "film"]})
    expected = fitted.scores(Examples(x, ones, ones, torch.tensor([item])))[0]
    tokens = fitted.stage.dataset.field2id_token["user_id"]
    for user, score in told.score(["u5", "u6", "u77"]).items():
        assert score == pytest.approx(float(expected[list(tokens).index(user)]), abs=1e-5)


def saved(fitted, path: Path):
    """The fitted model read from its file."""
    users = set(fitted.prepared.warm_rows("test")["user"])
    path.write_bytes(model_bytes(fitted.model, fitted.stage.dataset, "implicit", users, {}))
    return recbole_meta.load(path)


def test_content_ridge_serves_new_items_by_their_content(world, fit, tmp_path, capsys) -> None:
    fitted = fit(world, "ContentRidge")
    served = saved(fitted, tmp_path / "model.pt")
    assert served.info()["features of items"] == ["class"]
    support = world.support("test", 3)
    found, ids = scores(fitted, 3), fitted.id_of("user")
    for item in world.tasks("test"):
        raters = support.loc[support["item"] == item, "user"].tolist()
        new = served.adapt(raters, features={"class": [f"g{genre_of(item)}", "film"]})
        users = [user for user in ids if user in served.items[1:]]
        expected = found[[ids[user] for user in users], fitted.id_of("item")[item]]
        np.testing.assert_allclose(list(new.score(users).values()), expected, atol=1e-5)
    with pytest.raises(DataError, match="Unknown users: i1"):
        served.adapt(["i1"])
    assert main(["adapt", str(tmp_path / "model.pt"), "--likes", "u1", "--k", "2", "--json"]) == 0
    assert [set(entry) for entry in json.loads(capsys.readouterr().out)] == [{"user", "score"}] * 2
    with pytest.raises(DataError, match="'g9', which nobody had in training"):
        served.adapt(features={"class": ["g9"]})


def test_those_who_are_shown_a_new_item_are_the_users_of_warm_items(world, tmp_path) -> None:
    found = run(
        "PriorRidge", protocol="item_cold", save=True,
        prepared_path=tmp_path / "prepared", results=tmp_path / "runs",
    )  # fmt: skip
    warm = set(open_prepared(found["prepared"]).warm_rows("test")["user"])
    served = recbole_meta.load(found["saved"])
    assert {user for user, _ in served.adapt().rank(10**6)} == warm


def test_a_rule_that_keeps_all_raters_is_refused_before_it_is_fitted(tmp_path) -> None:
    with pytest.raises(SettingError, match="ContentKNN cannot be saved: it knows the items"):
        run("ContentKNN", protocol="item_cold", save=True, results=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("model", ["CNP", "MAML"])
def test_learners_need_features_where_nothing_else_is_known(make_world, fit, model) -> None:
    rows = [(f"u{n % 9}", f"i{n // 9}", 5, n) for n in range(270) if n % 4]
    world = make_world(rows, "item_cold", {f"i{n}": [f"g{n % 3}"] for n in range(30)})
    with pytest.raises(SettingError, match="Set 'item_fields' to true"):
        fit(world, model, item_fields=False)


def test_content_ridge_needs_items_as_tasks() -> None:
    with pytest.raises(SettingError, match="ContentRidge has no task that is a user"):
        run("ContentRidge", protocol="user_cold_5")


def test_content_needs_features(make_world, fit) -> None:
    rows = [(f"u{n % 9}", f"i{n // 9}", 5, n) for n in range(270) if n % 4]
    bare = make_world(rows, "item_cold")
    with pytest.raises(DataError, match="no feature of items"):
        fit(bare, "ContentKNN")
