"""The judge of rows against plain loops over its files."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from recbole_meta.data.row_splits import open_rows, prepare_rows
from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.rows import (
    RowJudge,
    RowsJudged,
    _label_values,
    calibration,
    check_row_metric,
    direction,
    metrics_of,
)
from recbole_meta.row_fitting import row_dataset
from recbole_meta.settings import load_properties
from tests.data.test_row_splits import world


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    world(folder, n_users=30)
    return open_rows(prepare_rows("made", "rows_random", folder, folder / "prepared"))


class Said:
    """A model that says numbers of a user and an item, and half of them of ``love``."""

    device = torch.device("cpu")

    def __init__(self, dataset) -> None:
        self.table = torch.rand(dataset.user_num, dataset.item_num, generator=torch.manual_seed(3))
        self.shares = torch.rand(dataset.user_num, dataset.num("genre") - 1).softmax(1)

    def expected(self, users, items):
        p = self.table[users, items]
        return {"like": p, "rating": 1 + 4 * p, "love": p / 2, "taste": self.shares[users]}

    def rank_all(self, users, names):
        tables = {"like": self.table, "love": 1 - self.table}
        return {name: tables[name][users] for name in names}


@pytest.fixture(scope="module")
def judged(splits):
    dataset = row_dataset(splits)
    model = Said(dataset)
    return RowJudge(splits, "test", dataset).judge(model), model, dataset


def by_user(splits, model, dataset):
    users, items = (dataset.field2token_id[f] for f in ("user_id", "item_id"))
    for user, rows in splits.rows("test").groupby("user"):
        p = model.table[users[user], [items[item] for item in rows["item"]]].numpy()
        yield user, rows, p.astype(np.float64)


def test_values_are_those_of_plain_loops(splits, judged):
    found, model, dataset = judged
    place = {user: n for n, user in enumerate(found.users)}
    for user, rows, p in by_user(splits, model, dataset):
        n = place[user]
        known = ~rows["like"].isna().to_numpy()
        if not known.any():
            continue
        y, q = rows["like"].to_numpy()[known], p[known]
        loss = -np.log(np.where(y == 1, q, 1 - q)).mean()
        assert found.values["like/logloss"][n] == pytest.approx(loss)
        error = np.abs(rows["rating"].to_numpy()[known] - (1 + 4 * q)).mean()
        assert found.values["rating/mae"][n] == pytest.approx(error)
        auc = found.values["like/auc"][n]
        if len(set(y)) == 2:
            assert auc == pytest.approx(roc_auc_score(y, q))
        else:
            assert np.isnan(auc)
        inside = known & (rows["like"].to_numpy() == 1)
        love = found.values["love/logloss"][n]
        if inside.any():
            z, r = rows["love"].to_numpy()[inside], p[inside] / 2
            assert love == pytest.approx(-np.log(np.where(z == 1, r, 1 - r)).mean())
        else:
            assert np.isnan(love)


@pytest.mark.parametrize(("objective", "sign"), [("like", 1), ("love", -1)])
def test_rankings_hide_train_and_take_the_positives_of_the_split(splits, judged, objective, sign):
    found, model, dataset = judged
    users, items = (dataset.field2token_id[f] for f in ("user_id", "item_id"))
    train = splits.rows("train").groupby("user")["item"].agg(set)
    met = sorted(set(splits.rows("train")["item"]))
    for n, user in enumerate(found.users):
        rows = splits.rows("test")
        rows = rows[rows["user"] == user]
        positive = set(rows.loc[rows[objective] == 1, "item"])
        value = found.values[f"{objective}/ndcg@10"][n]
        if not positive:
            assert np.isnan(value)
            continue
        free = [token for token in met if token not in train[user]]
        scores = {token: float(model.table[users[user], items[token]]) for token in free}
        best = sorted(free, key=lambda token: -sign * scores[token])[:10]
        discount = 1 / np.log2(np.arange(2, 12))
        gain = sum(d for d, token in zip(discount, best, strict=True) if token in positive)
        assert value == pytest.approx(gain / discount[: len(positive)].sum())


def test_a_distribution_is_the_mean_of_a_users_rows(splits, judged):
    found, model, dataset = judged
    from recbole_meta.data.row_loader import category_shares

    shares = category_shares(dataset, "genre")
    users, items = (dataset.field2token_id[f] for f in ("user_id", "item_id"))
    for n, user in enumerate(found.users):
        rows = splits.rows("test")
        rows = rows[(rows["user"] == user) & (rows["like"] == 1)]
        said = torch.stack([shares[items[i]] for i in rows["item"]] or [shares[0]])
        said = said[said.sum(1) > 0]
        value = found.values["taste/cross_entropy"][n]
        if not len(said):
            assert np.isnan(value)
            continue
        p, q = said.mean(0).double(), model.shares[users[user]].double()
        assert value == pytest.approx(float(-(p * q.log()).sum()))
        best = q.argsort(descending=True)[:3]
        most = p.sort(descending=True).values[:3].sum()
        assert found.values["taste/recall@3"][n] == pytest.approx(float(p[best].sum() / most))


def test_calibration_by_hand():
    label = np.array([0.0] * 50 + [1.0] * 50)
    said = np.array([0.1] * 50 + [0.7] * 50)
    found = calibration(label, said)
    assert found["calibration_error"] == pytest.approx(0.2)
    assert found["ratio"] == pytest.approx(0.8) and found["pooled_auc"] == 1
    honest = calibration(label, np.full(100, 0.5))  # one bin, whatever the order of the rows
    assert honest == {"pooled_auc": 0.5, "calibration_error": 0, "ratio": 1}


def test_users_of_one_class_have_a_loss_and_no_auc():
    task, label = np.array([0, 0, 1]), np.array([1.0, 1.0, 0.0])
    found = _label_values(task, label, np.array([0.5, 0.25, 0.5]), 2)
    assert np.isnan(found["auc"]).all()
    np.testing.assert_allclose(found["logloss"], [-np.log(0.125) / 2, -np.log(0.5)])


def test_means_and_the_worst(judged):
    means = judged[0].means()
    losses = [means["like/logloss"], means["love/logloss"]]
    assert means["mean/logloss"] == pytest.approx(np.mean(losses))
    assert means["worst/logloss"] == max(losses)
    assert means["worst/ndcg@10"] == min(means["like/ndcg@10"], means["love/ndcg@10"])


def test_few_users_rank_as_they_do_among_all(splits, judged):
    found, model, dataset = judged
    few = RowJudge(splits, "test", dataset, 5).judge(model)
    for name in ("like", "love"):
        values, whole = few.values[f"{name}/ndcg@10"], found.values[f"{name}/ndcg@10"]
        there = np.flatnonzero(~np.isnan(values))
        assert len(there) == 5 < (~np.isnan(whole)).sum()
        np.testing.assert_array_equal(values[there], whole[there])
    assert not any("ndcg" in name for name in RowJudge(splits, "test", dataset).judge(
        model, rankings=False).values)  # fmt: skip


def test_a_mean_is_over_the_objectives_that_have_the_metric(judged):
    found, _, _ = judged
    values = {**found.values, "like/auc": found.values["like/auc"] * np.nan}
    without = RowsJudged(found.users, values, found.pooled).means()
    assert without["mean/auc"] == without["worst/auc"] == found.means()["love/auc"]
    assert np.isnan(without["like/auc"])


def test_directions_and_names(splits):
    assert direction("rating/mae") == direction("mean/calibration_error") == -1
    assert direction("like/ndcg@10") == 1
    check_row_metric("worst/auc", splits.objectives, "'stop_by'")
    with pytest.raises(SettingError, match=r"'stop_by' is 'like/ndgc@10'.*like/ndcg@10"):
        check_row_metric("like/ndgc@10", splits.objectives, "'stop_by'")
    assert "ndcg@10" not in metrics_of(splits.objectives["rating"])


def test_numbers_that_are_none_are_refused(splits):
    dataset = row_dataset(splits)
    model = Said(dataset)
    model.table[:] = torch.nan
    with pytest.raises(DataError, match="Said says NaN or infinity of 'like'"):
        RowJudge(splits, "test", dataset).judge(model)


def test_the_page_of_ml_100k_has_objectives_of_each_kind():
    found = load_properties("dataset", "ml-100k")["objectives"]
    kinds = {entry["type"] for entry in found.values()}
    assert kinds == {"binary", "regression", "distribution"}


def test_where_not_all_rank_every_nth_does_by_token(splits, judged):
    whole, model, dataset = judged
    few = RowJudge(splits, "test", dataset, 5).judge(model)
    found, all_of = (each.values["like/ndcg@10"] for each in (few, whole))
    able = np.flatnonzero(~np.isnan(all_of))
    ranked = np.flatnonzero(~np.isnan(found))
    assert list(ranked) == [able[n * len(able) // 5] for n in range(5)]
    assert (found[ranked] == all_of[ranked]).all()
    np.testing.assert_array_equal(few.values["rating/mae"], whole.values["rating/mae"])
