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


def test_judging_leaves_the_scores_of_a_model_alone(shop, dataset, scores):
    before = {name: score.clone() for name, score in scores.items()}
    judged(shop, dataset, {name: score for name, score in scores.items()})
    for name, score in scores.items():
        assert torch.equal(score, before[name])
