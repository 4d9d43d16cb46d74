"""Graded NDCG by hand, over the orders of ties, and against the judge of single objectives."""

import itertools
import math

import numpy as np
import pytest
import torch

from recbole_meta.errors import SettingError
from recbole_meta.evaluation.graded import GradedJudge
from recbole_meta.evaluation.metrics import graded_ndcg
from recbole_meta.evaluation.objectives import ObjectiveJudge
from recbole_meta.objective_fitting import fit_model, train_set

GAINS = {
    "flat": {"purchase": 1.0, "click": 1.0, "cart": 1.0},
    "steep": {"purchase": 5.0, "cart": 0.5},
}


def discounted(gains) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def test_values_by_hand():
    found = graded_ndcg(
        [[0, 5, 1], [2, 0, 0], [0, 0, 0], [3, 9, 9]],
        [[3, 2, 1], [9, 8, -np.inf], [3, 2, 1], [1, -np.inf, -np.inf]],
        [1, 7, 1, 5], [1, 7, 0, 5],
        [[5, 1, 1], [2, 2, 0], [0, 0, 0], [4, 3, 0]],
    )  # fmt: skip
    wanted = [
        discounted([0, 5, 1]) / discounted([5, 1, 1]),
        2 / discounted([2, 2]),  # what stands in an empty slot does not count
        np.nan,  # nothing to gain
        3 / discounted([4, 3]),
    ]
    np.testing.assert_allclose(found, wanted)


def test_ties_are_the_mean_over_their_orders():
    """Four candidates, three tied across the cut at two places."""
    gains, score = [4.0, 0.0, 1.0, 2.0], [9.0, 5.0, 5.0, 5.0]
    ideal = [[4.0, 2.0]]
    each = [discounted([4.0, gains[n[0]]]) for n in itertools.permutations((1, 2, 3))]
    wanted = np.mean(each) / discounted(ideal[0])
    for shown in (1, 2, 3):  # whichever of them is listed
        found = graded_ndcg([[4.0, gains[shown]]], [score[:2]], [3], [3.0], ideal)
        assert found[0] == pytest.approx(wanted)


def by_loop(shop, scores, user: str, gains) -> float:
    """Graded NDCG@10 of scores without ties."""
    tokens = train_set(shop).field2id_token["item_id"]
    known = shop.known("train")
    hidden = set(known.loc[known["user"] == user, "item"])
    worth = dict.fromkeys(shop.catalogue, 0.0)
    for objective, gain in gains.items():
        rows = shop.novel("test", objective)
        for item in rows.loc[rows["user"] == user, "item"]:
            worth[item] += gain
    order = [tokens[n] for n in scores.argsort(descending=True).tolist() if tokens[n] in worth]
    listed = [worth[item] for item in order if item not in hidden][:10]
    return discounted(listed) / discounted(sorted(worth.values(), reverse=True)[:10])


def test_the_judge_equals_a_plain_loop(shop):
    judge = GradedJudge(shop, "test", train_set(shop), GAINS)
    noise = torch.randn(60, judge.n_items, generator=torch.Generator().manual_seed(1))
    values = judge.judge(lambda users: noise[users])
    for name, gains in GAINS.items():
        for user, token, found in zip(judge.user.tolist(), judge.tasks, values[name]):
            if np.isnan(found):
                assert not any(token in set(shop.novel("test", o)["user"]) for o in gains)
            else:
                assert found == pytest.approx(by_loop(shop, noise[user], token, gains))
    assert np.isnan(values["steep"]).any() and not np.isnan(values["flat"]).any()


@pytest.mark.parametrize("name", ["ObjectiveEASE", "ObjectivePop", "CopyOther"])
def test_the_gain_of_one_objective_is_its_own_metric(shop, name):
    """With and without ties: the novel query of `ObjectiveJudge`, user by user."""
    model = fit_model(name, shop, 1, {})[0]
    judged = ObjectiveJudge(shop, "test", train_set(shop)).judge(model.rank, name)
    judge = GradedJudge(shop, "test", train_set(shop), {})
    for objective, metrics in judged.metrics.items():
        values = judge.judge(lambda users, o=objective: model.rank(users, o))[objective]
        theirs = dict(zip(judged.tasks[objective], metrics["novel"]["ndcg@10"]))
        ours = dict(zip(judge.tasks, values))
        assert {k for k, v in ours.items() if v == v} == {k for k, v in theirs.items() if v == v}
        for user, value in theirs.items():
            if value == value:
                assert ours[user] == pytest.approx(value)


def test_a_constant_is_worth_what_a_random_order_is(shop):
    judge = GradedJudge(shop, "test", train_set(shop), GAINS)
    flat = judge.judge(lambda users: torch.zeros(len(users), judge.n_items))
    generator = torch.Generator().manual_seed(2)
    draws = [
        judge.judge(lambda users: torch.randn(len(users), judge.n_items, generator=generator))
        for _ in range(300)
    ]
    for name in GAINS:
        means = [np.nanmean(values[name]) for values in draws]
        error = np.std(means) / math.sqrt(len(means))
        assert abs(np.mean(means) - np.nanmean(flat[name])) < 4 * error


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ({"purchas": 1.0}, "'purchas'. Did you mean 'purchase'"),
        ({"click": 0.0}, "one is above"),
        ({"click": 1.0, "cart": -1.0}, "at least 0"),
    ],
)
def test_gains_that_cannot_be_are_refused(shop, gains, said):
    with pytest.raises(SettingError, match=said):
        GradedJudge(shop, "test", train_set(shop), {"bad": gains})
