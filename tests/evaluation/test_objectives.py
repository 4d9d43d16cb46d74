"""Judging per objective against plain loops."""

import math

import numpy as np
import pytest
import torch

from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.objectives import ObjectiveJudge, check_metric, metric_name
from recbole_meta.objective_fitting import train_set


@pytest.fixture(scope="module")
def dataset(shop):
    return train_set(shop)


@pytest.fixture(scope="module")
def scores(dataset):
    """Per objective a score of every user and item."""
    rng = np.random.default_rng(0)
    shape = dataset.user_num, dataset.item_num
    return {
        name: torch.from_numpy(rng.normal(size=shape)) for name in ("purchase", "click", "cart")
    }


def judged(shop, dataset, scores, split="test"):
    rank = lambda users, objective: scores[objective][users]  # noqa: E731
    return ObjectiveJudge(shop, split, dataset).judge(rank, "Model")


def pairs(rows) -> set[tuple[str, str]]:
    return set(zip(rows["user"], rows["item"]))


def by_hand(shop, dataset, scores, objective: str, query: str, cutoff: int = 10) -> dict:
    """NDCG and recall of every user with a positive, by loops."""
    train = shop.rows("train")
    labels = list(shop.objectives)
    hidden = pairs(train[train[objective] if query == "all" else train[labels].any(axis=1)])
    test = pairs(shop.rows("test")[lambda rows: rows[objective]])
    if query == "novel":
        test -= pairs(train[train[labels].any(axis=1)])
    ids = dataset.field2token_id
    found = {}
    for user in sorted({user for user, _ in test}):
        wanted = {item for other, item in test if other == user}
        row = scores[objective][ids["user_id"][user]]
        candidates = [item for item in shop.catalogue if (user, item) not in hidden]
        best = sorted(candidates, key=lambda item: -row[ids["item_id"][item]])[:cutoff]
        gain = sum(1 / math.log2(n + 2) for n, item in enumerate(best) if item in wanted)
        ideal = sum(1 / math.log2(n + 2) for n in range(min(cutoff, len(wanted))))
        found[user] = gain / ideal, len(wanted & set(best)) / len(wanted)
    return found


@pytest.mark.parametrize("query", ["all", "novel"])
@pytest.mark.parametrize("objective", ["purchase", "click", "cart"])
def test_every_user_equals_a_plain_loop(shop, dataset, scores, objective, query):
    expected = by_hand(shop, dataset, scores, objective, query)
    result = judged(shop, dataset, scores)
    metrics, tasks = result.metrics[objective][query], result.tasks[objective]
    assert len(expected) > 5
    for place, user in enumerate(tasks):
        ndcg, recall = expected.get(user, (np.nan, np.nan))
        np.testing.assert_allclose(metrics["ndcg@10"][place], ndcg, rtol=1e-12)
        np.testing.assert_allclose(metrics["recall@10"][place], recall, rtol=1e-12)
    assert set(expected) <= set(tasks)


def test_all_hides_the_same_behaviour_and_novel_every_one(shop, dataset):
    """What was seen in train is no help where it is masked."""
    ids = dataset.field2token_id
    seen = torch.zeros(dataset.user_num, dataset.item_num)
    for user, item in pairs(shop.known("train")):
        seen[ids["user_id"][user], ids["item_id"][item]] = 1
    result = judged(shop, dataset, dict.fromkeys(shop.objectives, seen))
    blind = judged(shop, dataset, dict.fromkeys(shop.objectives, torch.zeros_like(seen)))
    for name in shop.objectives:
        assert result.means()[f"{name}/ndcg@10"] > 1.2 * blind.means()[f"{name}/ndcg@10"]
        np.testing.assert_array_equal(
            result.metrics[name]["novel"]["ndcg@10"], blind.metrics[name]["novel"]["ndcg@10"]
        )


def test_a_constant_scores_what_a_random_order_does(shop, dataset):
    """Recall of ten of the candidates that are left, in expectation."""
    blind = torch.zeros(dataset.user_num, dataset.item_num)
    result = judged(shop, dataset, dict.fromkeys(shop.objectives, blind))
    own = pairs(shop.positives("train", "click"))
    for user, recall in zip(result.tasks["click"], result.metrics["click"]["all"]["recall@10"]):
        left = len(shop.catalogue) - sum(other == user for other, _ in own)
        np.testing.assert_allclose(recall, min(1, 10 / left), rtol=1e-12)


def test_names_of_metrics_the_mean_and_the_worst(shop, dataset, scores):
    means = judged(shop, dataset, scores).means()
    each = [means[f"{name}/ndcg@10/novel"] for name in shop.objectives]
    np.testing.assert_allclose(means["mean/ndcg@10/novel"], np.mean(each), rtol=1e-12)
    assert means["worst/ndcg@10/novel"] == min(each)
    assert metric_name("click", "mrr@10") == "click/mrr@10"
    check_metric("worst/recall@10", tuple(shop.objectives), "here")
    with pytest.raises(SettingError, match=r"here is 'buy/ndcg@10'\. "):
        check_metric("buy/ndcg@10", tuple(shop.objectives), "here")


def test_valid_is_judged_on_its_own_rows(shop, dataset, scores):
    valid = judged(shop, dataset, scores, "valid")
    for name in shop.objectives:
        assert valid.tasks[name].tolist() == shop.tasks("valid", name)


def test_what_is_written_of_a_run(shop, dataset, scores):
    result = judged(shop, dataset, scores)
    arrays = result.to_npz()
    assert arrays["cart/task"].tolist() == shop.tasks("test", "cart")
    assert arrays["cart/topk"].shape == (len(arrays["cart/task"]), 10)
    np.testing.assert_array_equal(
        arrays["cart/ndcg@10/novel"], result.metrics["cart"]["novel"]["ndcg@10"]
    )
    assert not any(array.dtype == object for array in arrays.values())


def test_scores_that_are_no_numbers_are_refused(shop, dataset, scores):
    broken = dict(scores)
    broken["cart"] = torch.full_like(scores["cart"], torch.nan)
    with pytest.raises(DataError, match=r"Model scores NaN .* of objective 'cart'"):
        judged(shop, dataset, broken)


# Distributions over categories.


def said_of(films):
    """A made-up distribution of every user."""
    n = train_set(films).user_num
    share = torch.from_numpy(np.random.default_rng(2).dirichlet(np.ones(4), n))
    return share, lambda users, name: {"interest": share}[name][users]


def judged_films(films, say, split="test"):
    dataset = train_set(films)
    scores = torch.rand(dataset.user_num, dataset.item_num)
    judge = ObjectiveJudge(films, split, dataset, distributions=("interest",))
    return judge.judge(lambda users, objective: scores[users], "Model", say)


def observed(films, genres: dict, split: str) -> dict[str, np.ndarray]:
    """Of each user with such the mean of what he likes is about, film by film."""
    genre = train_set(films).field2token_id["genre"]
    found: dict[str, list] = {}
    rows = films.positives(split, "like")
    for user, item in zip(rows["user"], rows["item"]):
        if genres[item]:
            share = np.zeros(4)
            for each in genres[item].split():
                share[genre[each] - 1] += 1 / len(genres[item].split())
            found.setdefault(user, []).append(share)
    return {user: np.mean(shares, axis=0) for user, shares in found.items()}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_distribution_is_judged_by_what_its_user_likes_in_the_split(films, film_rows, split):
    share, say = said_of(films)
    result, wanted = judged_films(films, say, split), observed(films, film_rows[1], split)
    assert result.tasks["interest"].tolist() == sorted(wanted) and 5 < len(wanted) < 40
    ids = train_set(films).field2token_id["user_id"]
    for place, user in enumerate(sorted(wanted)):
        p, q = wanted[user], share[ids[user]].numpy()
        listed = np.argsort(-q)[:3]
        values = result.shares["interest"]
        np.testing.assert_allclose(values["cross_entropy"][place], -(p * np.log(q)).sum())
        best = p[listed].sum() / np.sort(p)[-3:].sum()
        np.testing.assert_allclose(values["recall@3"][place], best)
    found = result.to_npz()["interest/cross_entropy"].mean()
    assert result.means()["interest/cross_entropy"] == pytest.approx(found)


def test_a_mean_of_rankings_has_no_distribution(films):
    means = judged_films(films, said_of(films)[1]).means()
    assert means.keys() - judged_films(films, None).means().keys() == {
        "interest/cross_entropy", "interest/recall@3",
    }  # fmt: skip
    each = [means[f"{name}/ndcg@10"] for name in ("like", "love", "seen")]
    assert means["mean/ndcg@10"] == pytest.approx(np.mean(each))
    assert not any("cross_entropy" in name for name in means if name[:4] in ("mean", "wors"))
    check_metric("interest/recall@3", tuple(films.objectives), "here", ("interest",))
    for name in ("mean/cross_entropy", "interest/ndcg@10", "like/cross_entropy"):
        with pytest.raises(SettingError, match="here is"):
            check_metric(name, tuple(films.objectives), "here", ("interest",))


@pytest.mark.parametrize("broken", [torch.nan, -0.1, 0.9])
def test_what_is_no_distribution_is_refused(films, broken):
    share, say = said_of(films)
    share[:, 0] = broken
    with pytest.raises(DataError, match="Model says no distribution of 'interest' for"):
        judged_films(films, say)


def test_judging_leaves_the_scores_of_a_model_alone(shop, dataset, scores):
    before = {name: score.clone() for name, score in scores.items()}
    judged(shop, dataset, {name: score for name, score in scores.items()})
    for name, score in scores.items():
        assert torch.equal(score, before[name])
