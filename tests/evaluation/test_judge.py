"""The judge against a brute-force computation from the rows themselves."""

import io
from math import comb, log2

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.choice import choose_model
from recbole_meta.errors import DataError
from recbole_meta.evaluation.judge import Judge
from recbole_meta.fitting import fit_learner, judge_learner
from recbole_meta.recbole_fitting import judge_recbole
from recbole_meta.stage import load_stage

N_USERS, N_ITEMS, RESERVE, HORIZON = 50, 40, 4, 5
CURVE = {"shots": [0, 1, 3], "reserve": RESERVE, "horizon": HORIZON, "eligible": 10, "folds": 0}


@pytest.fixture(scope="module")
def rows():
    """Users like some of 40 items, and each has two that nobody else has."""
    rng = np.random.default_rng(11)
    made = []
    for user in range(N_USERS):
        known = [f"i{item}" for item in rng.choice(N_ITEMS, rng.integers(10, 30), replace=False)]
        items = rng.permutation([*known, f"only{user}a", f"only{user}b"])
        made += [(f"u{user}", item, int(rng.integers(1, 6)), n) for n, item in enumerate(items)]
    return made


@pytest.fixture(scope="module")
def curve(make_world, rows):
    return make_world(rows, "user_cold_curve", **CURVE)


class World:
    """What the judge must know, from the rows and the names of the tasks alone."""

    def __init__(self, prepared, rows):
        self.prepared = prepared
        self.stage = load_stage(choose_model("Random"), prepared, "test", 0, 2020, {})
        dataset = self.stage.dataset
        self.users = dataset.field2token_id["user_id"]
        self.items = dataset.field2token_id["item_id"]
        self.tasks = prepared.tasks("test")
        cold = {*self.tasks, *prepared.tasks("valid")}
        history = {user: [] for user in self.tasks}
        self.warm = {item for user, item, _, _ in rows if user not in cold}
        for user, item, _, _ in rows:
            if user in history:
                history[user].append(item)
        self.early = {user: items[:RESERVE] for user, items in history.items()}
        self.query = {
            "rows_5_9": {user: items[RESERVE:][:HORIZON] for user, items in history.items()},
            "after": {user: items[RESERVE:] for user, items in history.items()},
        }

    def candidates(self, user) -> list[str]:
        return sorted(self.warm - set(self.early[user]))

    def judge(self, scores, parts: int = 1, phase: str = "test"):
        """Judge scores [n_users, n_items] by RecBole's ids."""
        judge = Judge(self.prepared, phase, self.stage.dataset, "Made")
        users = [self.users[user] for user in self.prepared.tasks(phase)][::-1]
        for some in np.array_split(users, parts):
            batch = Interaction({"user_id": torch.tensor(some)})
            judge.eval_batch_collect(scores[some].clone(), batch, None, None)
        return judge.get_data_struct()

    def of(self, scores, user) -> dict[str, float]:
        """Score of each item by token."""
        row = scores[self.users[user]].tolist()
        return {item: row[number] for item, number in self.items.items()}


@pytest.fixture(scope="module")
def world(curve, rows):
    return World(curve, rows)


def random_scores(world, seed=0, levels=None) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    shape = (len(world.users), len(world.items))
    made = rng.normal(size=shape) if levels is None else rng.integers(0, levels, shape)
    return torch.tensor(made, dtype=torch.float32)


def naive(ranked: list[str], positives: set[str]) -> dict[str, float]:
    hits = [place for place, item in enumerate(ranked[:10]) if item in positives]
    ideal = sum(1 / log2(place + 2) for place in range(min(10, len(positives))))
    return {
        "ndcg@10": sum(1 / log2(place + 2) for place in hits) / ideal,
        "recall@10": len(hits) / len(positives),
        "mrr@10": 1 / (hits[0] + 1) if hits else 0.0,
        "hit@10": float(bool(hits)),
    }


def expect(world, judged, ranking) -> None:
    """``ranking(user)`` is the list that each task must have been judged by."""
    assert judged.arrays["task"].tolist() == world.tasks
    assert list(judged.metrics)[:2] == ["rows_5_9", "after"]
    for query, positives in world.query.items():
        for number, user in enumerate(world.tasks):
            for metric, value in naive(ranking(user), set(positives[user])).items():
                found = judged.metrics[query][metric][number]
                assert found == pytest.approx(value), (query, user, metric)


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_rankings_equal_brute_force(world, parts):
    scores = random_scores(world, seed=parts)

    def ranking(user):
        score = world.of(scores, user)
        return sorted(world.candidates(user), key=lambda item: -score[item])

    judged = world.judge(scores, parts)
    expect(world, judged, ranking)
    for number, user in enumerate(world.tasks):
        assert judged.arrays["topk"][number].tolist() == ranking(user)[:10]
        best = [world.of(scores, user)[item] for item in ranking(user)[:10]]
        assert judged.arrays["topk_score"][number].tolist() == best
    means = judged.means()
    assert means["ndcg@10"] == pytest.approx(np.mean(judged.metrics["rows_5_9"]["ndcg@10"]))


def test_means_leave_out_tasks_that_are_not_in_a_slice(world):
    judged = world.judge(random_scores(world))
    for query, metrics in judged.metrics.items():
        if query.startswith("after_"):
            low, high = map(int, query.split("_")[1:])
            inside = [low <= len(world.query["after"][user]) <= high for user in world.tasks]
            assert 0 < sum(inside) < len(inside)
            assert (~np.isnan(metrics["ndcg@10"])).tolist() == inside
            whole = judged.metrics["after"]["ndcg@10"]
            assert judged.means(query)["ndcg@10"] == pytest.approx(whole[inside].mean())


def test_what_is_no_candidate_is_never_listed(world):
    wanted = torch.zeros(len(world.users), len(world.items))
    wanted[:, 0] = 9  # padding
    for item, number in world.items.items():
        if item not in world.warm:
            wanted[:, number] = 8
    for user, items in world.early.items():
        wanted[world.users[user], [world.items[item] for item in items]] = 7
    judged = world.judge(wanted)
    for number, user in enumerate(world.tasks):
        listed = judged.arrays["topk"][number].tolist()
        assert listed == world.candidates(user)[:10]  # all others tie, so by token
        assert judged.arrays["cut_tie_size"][number] == len(world.candidates(user))


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("name", ["Random", "Pop", "ItemKNNFoldIn", "BPR", "recbole.Pop"])
def test_models_list_candidates_only(world, name, k):
    choice = choose_model(name)
    if choice.ours:
        stage = load_stage(choice, world.prepared, "test", 0, 2020, {})
        trainer = fit_learner(choice, stage)
        judged = judge_learner(trainer, choice, stage, "test", k)
    else:
        few = {} if name == "recbole.Pop" else {"epochs": 1}
        judged = judge_recbole(choice, world.prepared, k, 2020, few).tested
    assert judged.arrays["task"].tolist() == world.tasks
    for user, listed in zip(world.tasks, judged.arrays["topk"], strict=True):
        assert len(set(listed)) == 10
        assert set(listed) <= set(world.candidates(user))


def test_unseen_query_items_stay_in_the_ideal(world):
    oracle = torch.zeros(len(world.users), len(world.items))
    for user, items in world.query["rows_5_9"].items():
        oracle[world.users[user], [world.items[item] for item in items]] = 1.0
    judged = world.judge(oracle)
    unseen = 0
    for number, user in enumerate(world.tasks):
        items = world.query["rows_5_9"][user]
        seen = sum(item in world.warm for item in items)
        unseen += HORIZON - seen
        dcg = sum(1 / log2(place + 2) for place in range(seen))
        ideal = sum(1 / log2(place + 2) for place in range(HORIZON))
        assert judged.metrics["rows_5_9"]["ndcg@10"][number] == pytest.approx(dcg / ideal)
        assert judged.metrics["rows_5_9"]["recall@10"][number] == pytest.approx(seen / HORIZON)
    assert unseen > 0


def by_chance(n: int, m: int, unseen: int) -> dict[str, float]:
    """The expectation over all orders of n candidates, m of them positive, and more unseen ones."""
    ideal = sum(1 / log2(place + 2) for place in range(min(10, m + unseen)))
    none = [comb(n - m, places) / comb(n, places) for places in range(11)]  # positive among them
    return {
        "ndcg@10": sum(m / n / log2(place + 2) for place in range(10)) / ideal,
        "recall@10": 10 * m / n / (m + unseen),
        "mrr@10": sum((none[place] - none[place + 1]) / (place + 1) for place in range(10)),
        "hit@10": 1 - none[10],
    }


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e9])
def test_a_constant_scores_what_chance_scores(world, constant):
    judged = world.judge(torch.full((len(world.users), len(world.items)), constant))
    for query, positives in world.query.items():
        for number, user in enumerate(world.tasks):
            among = len(set(positives[user]) & set(world.candidates(user)))
            unseen = len(positives[user]) - among
            expected = by_chance(len(world.candidates(user)), among, unseen)
            for metric, value in expected.items():
                assert judged.metrics[query][metric][number] == pytest.approx(value)


def test_ties_are_the_mean_over_their_orders(world):
    scores = random_scores(world, levels=3)
    judged = world.judge(scores)
    rng = np.random.default_rng(0)
    for number, user in enumerate(world.tasks):
        score, candidates = world.of(scores, user), world.candidates(user)
        positives = set(world.query["after"][user])
        drawn = []
        for _ in range(300):
            order = dict(zip(candidates, rng.random(len(candidates)), strict=True))
            ranked = sorted(candidates, key=lambda item: (-score[item], order[item]))
            drawn.append(list(naive(ranked, positives).values()))
        found = [values[number] for values in judged.metrics["after"].values()]
        error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
        assert (np.abs(np.mean(drawn, axis=0) - found) <= 4.5 * error + 0.01).all()
        cut = sorted((score[item] for item in candidates), reverse=True)[9]
        tied = [item for item in candidates if score[item] == cut]
        assert judged.arrays["cut_tie_size"][number] == len(tied)
        assert judged.arrays["after/cut_tie_positives"][number] == len(positives & set(tied))


def test_fewer_candidates_than_places(make_world):
    items = {user: [item for item in range(9) if item != user % 9] for user in range(20)}
    made = [(f"u{user}", f"i{item}", 1, item) for user in items for item in items[user]]
    world = World(make_world(made, "user_cold_5"), made)
    judged = world.judge(torch.zeros(len(world.users), len(world.items)))
    for user, listed in zip(world.tasks, judged.arrays["topk"].tolist(), strict=True):
        support = items[int(user[1:])][:5]
        left = [f"i{item}" for item in range(9) if item not in support]  # one is no query item
        assert listed == [*left, *[""] * 6]
    assert np.isneginf(judged.arrays["topk_score"][:, 4:]).all()
    assert judged.means()["recall@10"] == pytest.approx(1)
    assert judged.means()["mrr@10"] == pytest.approx(3 / 4 + 1 / 4 / 2)


def test_arrays_are_saved_without_objects(world):
    judged = world.judge(random_scores(world))
    file = io.BytesIO()
    np.savez(file, **judged.to_npz())
    file.seek(0)
    loaded = np.load(file, allow_pickle=False)
    assert {"task", "topk", "topk_score", "cut_tie_size", "cut_tie_positives"} <= set(loaded)
    assert loaded["ndcg@10"].tolist() == judged.metrics["rows_5_9"]["ndcg@10"].tolist()
    assert loaded["after/mrr@10"].tolist() == judged.metrics["after"]["mrr@10"].tolist()


# What cannot be judged.


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_scores_are_refused(world, value):
    scores = random_scores(world)
    scores[world.users[world.tasks[3]], 5] = value
    with pytest.raises(DataError, match="Made scores NaN or infinity for 1 entries"):
        world.judge(scores)


def test_a_diverged_model_is_named(world):
    choice = choose_model("Pop")
    stage = load_stage(choice, world.prepared, "test", 0, 2020, {})
    trainer = fit_learner(choice, stage)
    trainer.model.pop[3] = torch.nan
    with pytest.raises(DataError, match=r"^Pop scores NaN"):
        judge_learner(trainer, choice, stage, "test", 1)


def test_a_task_that_was_left_out_is_named(world):
    judge = Judge(world.prepared, "test", world.stage.dataset, "Made")
    asked = torch.tensor([world.users[user] for user in world.tasks[1:]])
    scores = random_scores(world)[asked]
    judge.eval_batch_collect(scores, Interaction({"user_id": asked}), None, None)
    with pytest.raises(DataError, match=f"not asked about task '{world.tasks[0]}'"):
        judge.get_data_struct()


def test_nothing_was_evaluated(world):
    with pytest.raises(DataError, match="Made was not evaluated yet"):
        Judge(world.prepared, "test", world.stage.dataset, "Made").last()


# Ratings and labels.


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("feedback", ["rating", "label"])
def test_rows_equal_brute_force(make_world, rows, feedback, parts):
    prepared = make_world(rows, f"user_cold_5_{feedback}")
    floor = choose_model("Constant")
    dataset = load_stage(floor, prepared, "test", 5, 2020, {}).dataset
    judge = Judge(prepared, "test", dataset, "Made")
    tasks = prepared.tasks("test")
    truth: dict[str, dict[str, float]] = {user: {} for user in tasks}
    seen = dict.fromkeys(tasks, 0)
    for user, item, rating, _ in rows:
        if user in truth:
            seen[user] += 1
            if seen[user] > 5:
                truth[user][item] = rating if feedback == "rating" else float(rating >= 4)
    asked = [(user, item) for user in tasks for item in truth[user]]
    rng = np.random.default_rng(2)
    asked = [asked[number] for number in rng.permutation(len(asked))]
    guess = {pair: float(np.float32(value)) for pair, value in zip(asked, rng.random(len(asked)))}
    for part in np.array_split(np.arange(len(asked)), parts):
        some = [asked[number] for number in part]
        batch = {
            "user_id": torch.tensor([dataset.field2token_id["user_id"][user] for user, _ in some]),
            "item_id": torch.tensor([dataset.field2token_id["item_id"][item] for _, item in some]),
            prepared.target: torch.tensor([float(truth[user][item]) for user, item in some]),
        }
        score = torch.tensor([guess[pair] for pair in some])
        judge.eval_batch_collect(score, Interaction(batch), None, None)
    judged = judge.get_data_struct()
    assert judged.primary == "after"
    for number, user in enumerate(tasks):
        label = np.array(list(truth[user].values()), dtype=float)
        value = np.array([guess[user, item] for item in truth[user]])
        if feedback == "rating":
            gain = label[np.argsort(-value)] / np.log2(np.arange(2, len(label) + 2))
            ideal = -np.sort(-label) / np.log2(np.arange(2, len(label) + 2))
            expected = {
                "mae": np.mean(np.abs(label - value)),
                "rmse": np.sqrt(np.mean((label - value) ** 2)),
                "ndcg_linear@3": gain[:3].sum() / ideal[:3].sum(),
            }
        else:
            wins = [float(a > b) for a in value[label == 1] for b in value[label == 0]]
            loss = -np.log(np.where(label == 1, value, 1 - value))
            expected = {"auc": np.mean(wins), "logloss": loss.mean()}
        for metric, found in expected.items():
            assert judged.metrics["after"][metric][number] == pytest.approx(found), metric
    stored = zip(*(judged.arrays[key] for key in ("query_task", "query_item")), strict=True)
    assert list(stored) == sorted(guess)
    assert judged.arrays["prediction"].tolist() == [guess[pair] for pair in sorted(guess)]
