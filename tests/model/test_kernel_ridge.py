"""KernelRidge against the dual, explicit refits and loops; what it reads, and how it is served."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_meta.data.episodes import Histories
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.support import read_support
from recbole_meta.data.warm import warm_ratings, warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.controls import shuffled
from recbole_meta.export import exported
from recbole_meta.fitting import judge_learner
from recbole_meta.model.meta.kernel_ridge import Ridge, _Asked
from recbole_meta.quick_start import run
from recbole_meta.saved_model import load

ALL = {"posterior": [1.0], "support": [0.5], "ratings": [0.3], "fields": [0.7]}


def rated(rows, source: Path):
    """Rows with what was given in them, as the source has it."""
    lines = (source / "tiny" / "tiny.inter").read_text("utf-8").splitlines()[1:]
    given = {tuple(line.split("\t")[:2]): float(line.split("\t")[2]) for line in lines}
    return rows.assign(rating=[given[pair] for pair in zip(rows["user"], rows["item"])])


# Against the dual, with loops.


@pytest.mark.parametrize("fills", [0, 1])
def test_all_kernels_against_the_dual(tiny, sample_path, fit, float64, fills: int) -> None:
    fitted = fit(tiny, "KernelRidge", embedding_size=3, noise=0.4, reg_weights=[2.0], fills=fills,
                 **ALL)  # fmt: skip
    warm, ids = rated(tiny.warm_rows("test"), sample_path), fitted.id_of("item")
    users = sorted(set(warm["user"]), key=lambda token: fitted.id_of("user")[token])
    had = {user: rows.sort_values("position") for user, rows in warm.groupby("user")}
    features = said(tiny)
    n = fitted.model.n_items
    x = np.zeros((len(users), n))
    for row, user in enumerate(users):
        x[row, [ids[item] for item in had[user]["item"]]] = 1
    p, (_, s, vt) = x.mean(axis=0), np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    v = (vt.T * s)[:, :3] / np.sqrt(len(x))

    def read(items, ratings, user) -> list[np.ndarray]:
        v_s = v[items]
        posterior = v_s.T @ np.linalg.solve(v_s @ v_s.T + 0.4 * np.eye(len(items)), 1 - p[items])
        given = np.array(ratings) - warm["rating"].mean()
        return [posterior, v_s.sum(axis=0), v_s.T @ given, indicators_of(features, users, user)]

    y, hidden = np.zeros((len(users), n)), np.zeros((len(users), n))
    for row, user in enumerate(users):
        places = [ids[item] for item in had[user]["item"]]
        hidden[row, places[:4]], y[row, places[4:7]] = 1, 1
    mean = y.sum(axis=0) / np.maximum((1 - hidden).sum(axis=0), 1)
    target = (y - mean) * (1 - hidden)
    for k in (1, 3):
        rows = [had[user].iloc[:k] for user in users]
        told = [([ids[i] for i in r["item"]], list(r["rating"]), u) for r, u in zip(rows, users)]
        parts = [np.array(part) for part in zip(*(read(*each) for each in told))]
        centers = [part.mean(axis=0) for part in parts]
        squares = [np.square(part - c).sum(axis=1).mean() for part, c in zip(parts, centers)]
        weights = [w[0] / square for w, square in zip(ALL.values(), squares)]
        kernel = sum(w * (z - c) @ (z - c).T for w, z, c in zip(weights, parts, centers))
        filled = target
        for _ in range(fills):  # by refits without the user
            filled = target + hidden * refitted(kernel, 2.0, filled)
        alpha = np.linalg.solve(kernel + 2.0 * np.eye(len(users)), filled)
        cold = rated(tiny.support("test", k), sample_path)
        table = read_support(tiny, "test", k, fitted.id_of("user"), ids, rated=True)
        for user, own in cold.groupby("user"):
            z = read([ids[item] for item in own["item"]], list(own["rating"]), user)
            row = sum(w * (a - c) @ (b - c).T for w, a, b, c in zip(weights, z, parts, centers))
            found = fitted.scores(table.of(torch.tensor([fitted.id_of("user")[user]])))
            np.testing.assert_allclose(found[0].numpy(), mean + row @ alpha, atol=1e-9)


def refitted(kernel: np.ndarray, reg: float, target: np.ndarray, draws: int = 1) -> np.ndarray:
    """What the dual ridge of all other users says of each episode; so many are of one user."""
    found = np.empty_like(target)
    for start in range(0, len(kernel), draws):
        own = np.arange(start, start + draws)
        others = np.delete(np.arange(len(kernel)), own)
        inner = kernel[np.ix_(others, others)] + reg * np.eye(len(others))
        found[own] = kernel[np.ix_(own, others)] @ np.linalg.solve(inner, target[others])
    return found


@pytest.mark.parametrize("reg", [0.1, 3.0])
@pytest.mark.parametrize("size", [3, 12])
@pytest.mark.parametrize("draws", [1, 3])
def test_leave_one_out_is_that_of_refits(float64, reg: float, size: int, draws: int) -> None:
    rng = np.random.default_rng(size)
    z, target = rng.normal(size=(9, size)), rng.normal(size=(9, 5))
    user, item = np.array([0, 4, 4, 8]), np.array([1, 0, 3, 3])
    target[user, item] = 0
    unknown = torch.from_numpy(user), torch.from_numpy(item)
    filled, kernel = target.copy(), z @ z.T
    for fills in range(3):
        ridge = Ridge(torch.from_numpy(z), torch.from_numpy(target), unknown, draws)
        b, left_out = ridge.fit(reg, fills)
        np.testing.assert_allclose(left_out, refitted(kernel, reg, filled, draws), atol=1e-9)
        primal = np.linalg.solve(z.T @ z + reg * np.eye(size), z.T @ filled)
        np.testing.assert_allclose(b, primal, atol=1e-9)
        filled[user, item] = refitted(kernel, reg, filled)[user, item]


def test_the_best_by_squared_error_are_averaged(worlds, fit, float64) -> None:
    """Each lambda alone, its loss by refits; together the two best count."""
    regs, loss, maps = [0.3, 5.0, 80.0], {}, {}
    world = worlds["implicit"]
    for reg in regs:
        alone = fit(world, "KernelRidge", reg_weights=[reg], fills=0, embedding_size=4)
        maps[reg] = alone.model.map
        loss[reg] = squared_errors(alone, reg)
    both = fit(world, "KernelRidge", reg_weights=regs, fills=0, embedding_size=4, kept=2,
               loss="squared")  # fmt: skip
    size = both.model.center.shape[1]
    for place in range(1, len(both.model.shots)):
        block = slice(place * size, (place + 1) * size)
        best = sorted(regs, key=lambda reg: loss[reg][place])[:2]
        expected = (maps[best[0]][block] + maps[best[1]][block]) / 2
        torch.testing.assert_close(both.model.map[block], expected)


def squared_errors(fitted, reg: float) -> list[float]:
    """Of leave-one-out by refits, at each k, from the learner's own features."""
    model, warm = fitted.model, warm_users(fitted.stage.dataset)
    users = np.flatnonzero(warm.length > warm.query_start)
    y = warm.query[users].toarray()
    open_ = 1 - warm.window(0, warm.query_start)[users].toarray()
    target = (y - model.query_mean.numpy()) * open_
    found = []
    for k in model.shots.tolist():
        (z,) = model._read(model._rows(Histories(warm), users, None), k)
        z = (z - z.mean(0)).numpy()
        square = np.square(z).sum(axis=1).mean()
        left_out = refitted(z @ z.T / (square or 1), reg, target)
        found.append(np.square((target - left_out) * open_).sum())
    return found


# Random supports.


@pytest.fixture(scope="module")
def shuffled_world(sample_path, tmp_path_factory):
    target = tmp_path_factory.mktemp("shuffled")
    protocol = read_protocol(
        "user_cold_curve", reserve=4, horizon=None, shots=(0, 1, 3), eligible=8, order="random"
    )
    return open_prepared(prepare("tiny", protocol, "user_cold_curve", sample_path, target))


def test_drawn_rows_are_a_support_and_all_the_others(shuffled_world, fit) -> None:
    model = (fitted := fit(shuffled_world, "KernelRidge", draws=3)).model
    warm = warm_users(fitted.stage.dataset)
    users = np.repeat(np.flatnonzero(warm.length > warm.query_start), 3)
    rows = model._rows(Histories(warm), users, np.random.default_rng(0))
    asked = model._asked(warm, rows, 2)
    for episode, user in enumerate(users):
        had = set(warm.item[warm.user == user])
        support = set(rows.item[episode, :2])
        assert rows.task[episode] == warm.ids[user] and len(support) == 2
        assert set(asked.query[episode].nonzero().flatten().tolist()) == had - support
        assert set(asked.unknown[1][asked.unknown[0] == episode].tolist()) == support
    supports = rows.item[:, :2].reshape(-1, 6)  # of each user
    assert any(len(set(support)) > 2 for support in supports)


def test_leave_one_out_with_draws_leaves_all_of_a_user_out(shuffled_world, fit, float64) -> None:
    """The lambda is the best by refits without any draw of the user, not by those that keep his
    other draws, which know him.
    """
    same = {"draws": 6, "fills": 0, "loss": "squared", "kept": 1, "embedding_size": 12}
    regs = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
    fitted = fit(shuffled_world, "KernelRidge", reg_weights=regs, **same)
    model, warm = fitted.model, warm_users(fitted.stage.dataset)
    users = np.repeat(np.flatnonzero(warm.length > warm.query_start), 6)
    rng, apart = np.random.default_rng(fitted.stage.config["seed"]), []
    for place, k in enumerate(model.shots.tolist()):
        rows = model._rows(Histories(warm), users, rng)
        if not k:
            continue
        asked, z = model._asked(warm, rows, k), model._read(rows, k)[0].numpy()
        z = (z - z.mean(axis=0)) / np.sqrt(np.square(z - z.mean(axis=0)).sum(axis=1).mean())
        known = np.ones(asked.query.shape)
        known[asked.unknown[0], asked.unknown[1]] = 0
        target = (asked.query.numpy() - warm.pop) * known
        best, careless = (
            regs[int(np.argmin([
                np.square((target - refitted(z @ z.T, reg, target, draws)) * known).sum()
                for reg in regs
            ]))]
            for draws in (6, 1)
        )  # fmt: skip
        alone = fit(shuffled_world, "KernelRidge", reg_weights=[best], **same).model
        block = slice(place * model.center.shape[1], (place + 1) * model.center.shape[1])
        torch.testing.assert_close(model.map[block], alone.map[block])
        apart.append(best != careless)
    assert any(apart), "here both choose the same, so nothing was shown"


def test_power_divides_the_columns(worlds, fit, float64) -> None:
    fitted = fit(worlds["implicit"], "KernelRidge", power=0.5, embedding_size=4)
    warm = warm_users(fitted.stage.dataset)
    wanted = warm.scaled_directions(0.5)[:, :4]
    np.testing.assert_allclose(fitted.model.item_vector.numpy(), wanted)
    assert not np.allclose(np.abs(wanted), np.abs(warm.directions[:, :4]))


def test_what_is_in_the_support_does_not_count_in_the_loss(worlds, fit, float64) -> None:
    model = fit(worlds["implicit"], "KernelRidge").model
    query = torch.tensor([[0.0, 0, 1, 0, 1, 0]])
    asked = _Asked(query, (torch.tensor([0]), torch.tensor([5])), query[0],
                   torch.tensor([False, True, True, True, True, True]))  # fmt: skip
    scores = torch.tensor([[9.0, 1, 5, 4, 3, 8]])  # 0 nobody has, 5 is in the support
    ideal = 1 + 1 / np.log2(3)
    assert model._loss(asked, scores) == pytest.approx(-(1 + 1 / np.log2(4)) / ideal)


def test_draws_count_where_the_order_is_random(shuffled_world, tiny, fit, float64) -> None:
    for world, same in ((tiny, True), (shuffled_world, False)):
        one, many = (fit(world, "KernelRidge", draws=draws).model for draws in (1, 4))
        assert torch.allclose(one.map, many.map) == same
        many_again = fit(world, "KernelRidge", draws=4).model
        assert torch.equal(many.map, many_again.map)


def test_random_supports_against_the_primal(shuffled_world, fit, float64) -> None:
    """One lambda, no fills: the map of each k is a ridge over the very episodes that were drawn."""
    fitted = fit(shuffled_world, "KernelRidge", draws=3, fills=0, reg_weights=[2.0])
    model, warm = fitted.model, warm_users(fitted.stage.dataset)
    users = np.repeat(np.flatnonzero(warm.length > warm.query_start), 3)
    rng = np.random.default_rng(fitted.stage.config["seed"])
    for place, k in enumerate(model.shots.tolist()):
        rows = model._rows(Histories(warm), users, rng)
        (z,) = model._read(rows, k)
        z = z.numpy() - model.center[place].numpy()
        y = np.zeros((len(users), warm.n_items))
        for episode, length in enumerate(rows.length):
            y[episode] -= warm.pop
            y[episode, rows.item[episode, :length]] += 1
            y[episode, rows.item[episode, :k]] = 0  # unknown
        scale = 1 / (np.square(z).sum(axis=1).mean() or 1)
        b = scale * np.linalg.solve(scale * z.T @ z + 2.0 * np.eye(z.shape[1]), z.T @ y)
        size = model.center.shape[1]
        found = model.map[place * size : (place + 1) * size].numpy()
        np.testing.assert_allclose(found, b if k else 0 * b, atol=1e-9)


# What it reads.


def said(prepared) -> dict[str, dict[str, str]]:
    """User -> feature -> value, as in the prepared file."""
    lines = (prepared.path / f"{prepared.name}.user").read_text("utf-8").splitlines()
    names = [name.split(":")[0] for name in lines[0].split("\t")]
    rows = [dict(zip(names, line.split("\t"))) for line in lines[1:]]
    return {row.pop("user_id"): row for row in rows}


def indicators_of(features, warm, user) -> np.ndarray:
    """0/1 of each category, less its share among warm users; 0 where none of them has his."""
    found = []
    for name in next(iter(features.values())):
        categories = sorted({features[each][name] for each in warm})
        for category in categories:
            share = np.mean([features[each][name] == category for each in warm])
            own = features[user][name]
            found.append((own == category) - share if own in categories else 0.0)
    return np.array(found)


def test_what_it_says_it_reads(tiny, fit) -> None:
    for settings, reads in (
        ({}, "ids"),
        ({"fields": [0.0, 0.1]}, "ids +user fields"),
        ({"ratings": [0.2]}, "ids +ratings"),
        (ALL, "ids +ratings +user fields"),
    ):
        assert fit(tiny, "KernelRidge", **settings).reads == reads


@pytest.mark.parametrize("ratings", [[0.0], [0.5]])
def test_ratings_matter_where_they_are_read(tiny, sample_path, fit, ratings) -> None:
    fitted = fit(tiny, "KernelRidge", ratings=ratings)
    judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", 3)
    support, users = fitted.model.support, fitted.id_of("user")
    rows = rated(tiny.support("test", 3), sample_path)
    own = rows[rows["user"] == tiny.tasks("test")[0]]
    wanted = own["rating"].tolist() if ratings != [0.0] else [1.0] * 3
    assert support.label[users[own["user"].iloc[0]]].tolist() == wanted
    some = torch.tensor([users[user] for user in tiny.tasks("test")])
    told = support.of(some)
    other = shuffled(support, some).of(some)
    same = torch.allclose(fitted.scores(told), fitted.scores(other), atol=1e-7)
    assert same == (ratings == [0.0])


def test_ratings_of_warm_users_are_those_of_their_rows(tiny, sample_path, fit) -> None:
    fitted = fit(tiny, "KernelRidge", ratings=[0.5])
    warm, users, items = (
        warm_users(fitted.stage.dataset),
        fitted.id_of("user"),
        fitted.id_of("item"),
    )
    found = dict(zip(zip(warm.ids[warm.user], warm.item), warm_ratings(fitted.stage.dataset)))
    rows = rated(tiny.warm_rows("test"), sample_path)
    wanted = {(users[r.user], items[r.item]): r.rating for r in rows.itertuples()}
    assert found == wanted and len(set(found.values())) > 1


def test_fields_are_read_without_a_support(tiny, fit) -> None:
    for fields, same in (([0.0], True), ([1.0], False)):
        fitted = fit(tiny, "KernelRidge", fields=fields, reg_weights=[0.1])
        ids = torch.tensor([fitted.id_of("user")[user] for user in tiny.tasks("test")])
        none = torch.zeros(len(ids), 1)
        scores = fitted.scores(Examples(none.long(), none, none, ids))
        assert torch.allclose(scores, scores[:1].expand_as(scores), atol=1e-7) == same


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"posterior": [0.0]}, SettingError, "all weights of posterior, support, ratings, fields"),
        ({"power": 1.0}, SettingError, "'power' must be below 1"),
        ({"posterior": []}, SettingError, "'posterior' must list at least 1"),
        ({"fields": [1.0]}, DataError, "no feature of users"),
    ],
)
def test_what_cannot_be_read(worlds, fit, settings, error, text) -> None:
    with pytest.raises(error, match=text):
        fit(worlds["implicit"], "KernelRidge", **settings)


def test_ratings_that_are_not_there(sample_path, tmp_path, fit) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    rows = (sample_path / "tiny" / "tiny.inter").read_text("utf-8").splitlines()
    columns = [line.split("\t") for line in rows]
    keep = [n for n, name in enumerate(columns[0]) if not name.startswith("rating")]
    text = "\n".join("\t".join(line[n] for n in keep) for line in columns) + "\n"
    (folder / "bare.inter").write_text(text, "utf-8")
    protocol = read_protocol("user_cold_curve", reserve=4, horizon=3, shots=(0, 1), eligible=8)
    bare = open_prepared(prepare("bare", protocol, "user_cold_curve", tmp_path, tmp_path / "made"))
    with pytest.raises(DataError, match="a model reads ratings, and the rows have none"):
        fit(bare, "KernelRidge", ratings=[0.5])
    assert fit(bare, "KernelRidge").reads == "ids"


# Served.


@pytest.fixture(scope="module")
def saved(sample_path, tmp_path_factory):
    target = tmp_path_factory.mktemp("saved")
    return run(
        "KernelRidge", "tiny", "user_cold_5", settings=ALL, data_path=sample_path,
        prepared_path=target / "prepared", results=target / "runs", save=True,
    )  # fmt: skip


def test_a_newcomer_with_ratings_and_features_is_ranked_as_judged(saved, sample_path) -> None:
    prepared, served = open_prepared(saved["prepared"]), load(saved["saved"])
    assert served.info()["takes"] == ["ratings"]
    features, support = said(prepared), rated(prepared.support("test", 5), sample_path)
    arrays = np.load(Path(saved["runs"][0]["folder"]) / "tasks.npz")
    for user, scores in zip(arrays["task"], arrays["topk_score"]):
        own = support[support["user"] == user]
        ratings = dict(zip(own["item"], own["rating"]))
        known = {
            field.name: features[user][field.name]
            for field in served.model.task_fields
            if features[user][field.name] in field.tokens  # what nobody had is unknown
        }
        newcomer = served.adapt(ratings=ratings, features=known)
        ranked = [score for _, score in newcomer.rank(10)]
        assert ranked == pytest.approx(list(scores[: len(ranked)]), rel=1e-4, abs=1e-5)
        again = served.read_newcomer(newcomer.to_bytes()).rank(10)
        assert [score for _, score in again] == pytest.approx(ranked)


def test_likes_are_refused_where_ratings_are_read(saved) -> None:
    served = load(saved["saved"])
    with pytest.raises(DataError, match="give 'ratings', not likes"):
        served.adapt(likes=served.items[1:3])


def test_it_can_be_exported(saved) -> None:
    assert exported(load(saved["saved"]))  # which compares the program's scores with the model's
