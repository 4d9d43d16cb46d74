"""A fused model as a RecBole model: scores, settings, and RecBole's own evaluation of it."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.compat import contained, recbole_config, recbole_model
from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours
from recbole_meta.errors import SettingError
from recbole_meta.evaluation.graded import GradedJudge, regret
from recbole_meta.evaluation.metrics import mean
from recbole_meta.fused_recommender import FusedRecommender, Head, objective_heads
from recbole_meta.fusion import Fusion, fuse
from recbole_meta.objective_fitting import fit_model, objective_config, train_set

OBJECTIVES = ("purchase", "click", "cart")


@pytest.fixture(scope="module")
def parts(shop):
    """(config, dataset, heads): three objectives of one rule, and a model of another kind."""
    rule = fit_model("ObjectiveEASE", shop, 1, {"target": "own", "reg_weight": 5.0})[0]
    return (
        objective_config("ObjectivePop", shop, 1, {}),
        train_set(shop),
        objective_heads(rule, OBJECTIVES),
    )


def fused(parts, **settings) -> FusedRecommender:
    config, dataset, heads = parts
    return FusedRecommender(config, dataset, heads, settings)


USERS = torch.tensor([4, 9, 2])


def test_its_scores_are_those_of_fuse(parts):
    model = fused(parts, method="sum", scale="zscore", weights={"click": 0.5, "cart": 0.0},
                  hide_known=False)  # fmt: skip
    scores = torch.stack([head.scores(USERS) for head in model.heads.values()])
    scores[:, :, 0] = -torch.inf
    found = model.rank(USERS)
    torch.testing.assert_close(found, fuse(scores, (1, 0.5, 0), Fusion("sum", "zscore", 1e-6, 60)))
    torch.testing.assert_close(model.full_sort_predict(Interaction({"user_id": USERS})),
                               found.reshape(-1))  # fmt: skip
    rows = Interaction({"user_id": USERS, "item_id": torch.tensor([7, 3, 11])})
    torch.testing.assert_close(model.predict(rows), found[[0, 1, 2], [7, 3, 11]])


def test_items_of_train_are_hidden_before_the_scale_is_taken(parts, shop):
    model = fused(parts, method="sum", scale="rank")
    known, ids = shop.known("train"), train_set(shop).field2token_id
    names = train_set(shop).field2id_token["user_id"]
    found = model.rank(USERS)
    for row, user in zip(found, USERS.tolist()):
        items = known.loc[known["user"] == names[user], "item"]
        hidden = {0, *(ids["item_id"][item] for item in items)}
        assert set((row == -torch.inf).nonzero().flatten().tolist()) == hidden
        # three heads: a candidate that is last of all has 3 / n
        assert row[row > -torch.inf].min() >= 3 / (len(row) - len(hidden)) - 1e-6


def test_a_funnel_is_read_in_its_own_order(parts):
    model = fused(parts, method="funnel", scale="softmax", funnel=["click", "cart", "purchase"])
    p = {name: row for name, row in zip(OBJECTIVES, model.head_scores(USERS).softmax(-1))}
    click, cart = p["click"], p["click"] * p["cart"]
    wanted = click + cart + cart * p["purchase"]
    found = model.rank(USERS)
    there = found > -torch.inf
    torch.testing.assert_close(found[there], wanted[there])


def test_models_of_recbole_are_heads_too(parts, shop):
    """BPR beside a rule; both are parts of the fused model and are saved with it."""
    config, dataset, heads = parts
    bpr_config = recbole_config(
        recbole_model("BPR"), shop.name, [shop.path / "recbole.yaml"],
        {"data_path": str(shop.path.parent), "embedding_size": 4},
    )  # fmt: skip
    with contained():
        bpr = recbole_model("BPR")(bpr_config, dataset)
    both = {"bpr": Head(bpr), "buy": heads["purchase"]}
    settings = {"method": "sum", "scale": "none", "weights": {"buy": 0.0}}
    model = FusedRecommender(config, dataset, both, settings)
    with torch.no_grad():
        found = model.rank(USERS)
        wanted = bpr.user_embedding(USERS) @ bpr.item_embedding.weight.T
    there = found > -torch.inf
    torch.testing.assert_close(found[there], wanted[there])
    assert any(name.startswith("models.0.user_embedding") for name in model.state_dict())


def test_no_regret_where_all_weight_is_on_one_objective(parts, shop):
    judge = GradedJudge(shop, "test", train_set(shop), {"flat": dict.fromkeys(OBJECTIVES, 1.0)})
    rule = parts[2]["click"].model
    own = {name: judge.judge(lambda users, n=name: rule.rank(users, n)) for name in OBJECTIVES}
    for method, scale in (("reciprocal", "rank"), ("sum", "softmax"), ("product", "rank")):
        for name in OBJECTIVES:
            alone = {other: float(other == name) for other in OBJECTIVES}
            values = judge.judge(fused(parts, method=method, scale=scale, weights=alone).rank)
            assert regret(values, own[name], name) == pytest.approx(0, abs=1e-12)
            assert mean(values["flat"]) == pytest.approx(mean(own[name]["flat"]))
    mixed = judge.judge(fused(parts).rank)
    assert any(abs(regret(mixed, own[name], name)) > 1e-3 for name in OBJECTIVES)


@pytest.fixture(scope="module")
def once(write_splits, shop_rows):
    """The shop, each pair in one split: RecBole counts a hidden positive, we do not."""
    rows, seen = {}, set()
    for split in ("train", "valid", "test"):
        rows[split] = [row for row in shop_rows[split] if row[:2] not in seen]
        seen |= {row[:2] for row in shop_rows[split]}
    folder = write_splits(**rows)
    return open_behaviours(prepare_behaviours("shop", folder, folder / "prepared"))


@pytest.mark.parametrize("method", ["reciprocal", "sum", "product"])
def test_recbole_evaluates_it_as_our_judge_does(once, method):
    """RecBole's own trainer on its own loader, the union of all behaviours, and clicks alone."""
    rule = fit_model("ObjectiveEASE", once, 1, {"target": "own", "reg_weight": 5.0})[0]
    heads = objective_heads(rule, OBJECTIVES)
    scale = "none" if method == "sum" else "softmax"  # rank fusion would tie at the cut
    settings = {"method": method, "scale": scale, "weights": {"purchase": 0.37, "cart": 0.21}}
    judge = GradedJudge(once, "valid", train_set(once), {})
    for splits, objective in ((["train", "valid_click", "test_click"], "click"),):
        config = recbole_config(
            recbole_model("EASE"), once.name, [once.path / "recbole.yaml"],
            {"data_path": str(once.path.parent), "benchmark_filename": splits, "epochs": 0},
        )  # fmt: skip
        with contained():
            from recbole.data import create_dataset, data_preparation
            from recbole.trainer import Trainer

            dataset = create_dataset(config)
            _, valid, _ = data_preparation(config, dataset)
            assert dataset.field2token_id == {**train_set(once).field2token_id}
            model = FusedRecommender(config, train_set(once), heads, settings)
            theirs = Trainer(config, model).evaluate(valid, load_best_model=False)
        values = judge.judge(model.rank)
        assert theirs["ndcg@10"] == pytest.approx(mean(values[objective]), abs=1e-4)
        assert 0.1 < theirs["ndcg@10"] < 0.99


REFUSED = [
    (
        {"weights": {"clik": 1.0}},
        "'weights' names the objective 'clik', which no head has. Did you",
    ),
    ({"funnel": ["click", "buy", "cart"]}, "'funnel' names the objective 'buy'"),
    ({"funnel": ["click", "cart"]}, "must name each head once"),
    ({"weights": dict.fromkeys(OBJECTIVES, 0.0)}, "all 'weights' are 0"),
    ({"weights": {"click": -1.0}}, "must be at least 0"),
    ({"method": "summ"}, "Did you mean 'sum'"),
    ({"method": "product", "scale": "zscore"}, "'scale' is zscore. Allowed: softmax, rank"),
    ({"method": "funnel", "scale": "none"}, "multiplies values within"),
    ({"epsilon": 0.0}, "must be above 0"),
    ({"wieghts": {}}, "Did you mean 'weights'"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(parts, settings, said):
    with pytest.raises(SettingError, match=said):
        fused(parts, **settings)
