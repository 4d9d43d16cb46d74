"""RecBole's own models under the judge of rows."""

import numpy as np
import pytest
import torch

from recbole_meta.data.row_splits import open_rows, prepare_rows
from recbole_meta.errors import SettingError
from recbole_meta.row_fitting import fit_rows, judge_of, row_dataset
from recbole_meta.row_recbole import check_ranker_settings, fit_ranker_of_rows, positives
from tests.data.test_row_splits import world


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranked")
    world(folder, n_users=30)
    return open_rows(prepare_rows("made", "rows_random", folder, folder / "prepared"))


def test_ease_is_fitted_to_the_positives_of_train_alone(splits):
    """Against the closed form on a matrix made from the prepared files by hand."""
    fit = fit_ranker_of_rows("EASE", splits, 1, {"objective": "like", "reg_weight": 5.0})
    dataset = row_dataset(splits)
    users, items = (dataset.field2token_id[f] for f in ("user_id", "item_id"))
    x = np.zeros((dataset.user_num, dataset.item_num))
    rows = splits.rows("train")
    for user, item in rows.loc[rows["like"] == 1, ["user", "item"]].itertuples(index=False):
        x[users[user], items[item]] = 1
    inverse = np.linalg.inv(x.T @ x + 5 * np.eye(x.shape[1]))
    weight = -inverse / np.diag(inverse)
    np.fill_diagonal(weight, 0)
    said = fit.model.rank(torch.arange(dataset.user_num), "like").numpy()
    np.testing.assert_allclose(said[1:, 1:], (x @ weight)[1:, 1:], atol=1e-5)
    assert 0 < (rows["like"] == 1).sum() == x.sum() < len(rows)


def test_it_is_judged_as_a_model_of_ours_with_the_same_scores(splits):
    fit = fit_ranker_of_rows("EASE", splits, 1, {"objective": "like", "reg_weight": 5.0})
    found = fit.test(splits)
    assert list(found.values) == [f"like/{m}@10" for m in ("ndcg", "recall", "mrr", "hit")]

    class Twin:
        device = torch.device("cpu")
        rank_all = staticmethod(fit.model.rank_all)

        def expected(self, users, items):
            return floor.model.expected(users, items)

    floor = fit_rows("ObjectiveRate", splits, 1, {})
    twin = judge_of(splits, "test", None).judge(Twin())
    for metric, values in found.values.items():
        np.testing.assert_array_equal(values, twin.values[metric])
    assert found.means()["like/ndcg@10"] != floor.test(splits).means()["like/ndcg@10"]


def test_valid_chooses_the_epoch(splits):
    few = {"objective": "like", "epochs": 5, "embedding_size": 4, "learning_rate": 0.1}
    fit = fit_ranker_of_rows("BPR", splits, 1, few)
    scores = [entry["valid"] for entry in fit.history]
    assert len(scores) == 5 and len(set(scores)) > 1 and scores[fit.epochs - 1] == max(scores)
    assert fit.valid.means()["like/ndcg@10"] == pytest.approx(max(scores))


def test_no_row_of_another_label_split_or_pair_is_learned(splits):
    dataset = row_dataset(splits)
    for objective in ("like", "love"):
        place = positives(splits, dataset, objective)
        rows = splits.rows("train")
        assert len(place) == (rows[objective] == 1).sum()
        user, item = (dataset.field2id_token[f][dataset.inter_feat[f].numpy()[place]]
                      for f in ("user_id", "item_id"))  # fmt: skip
        found = set(zip(user, item))
        liked = rows.loc[rows[objective] == 1, ["user", "item"]]
        assert found == set(liked.itertuples(index=False, name=None))


REFUSED = [
    ("EASE", {}, "'objective' is None: it says whose positives"),
    ("EASE", {"objective": "liek"}, "Did you mean 'like'"),
    ("EASE", {"objective": "rating"}, "'objective' is 'rating'"),
    ("EASE", {"objective": "like", "reg": 1.0}, "reg_weight"),
    ("FM", {"objective": "like"}, "does not rank a whole catalogue"),
    ("MAML", {"objective": "like"}, "is of cold users or items"),
]


@pytest.mark.parametrize(("model", "settings", "said"), REFUSED)
def test_settings_that_cannot_be_are_refused(splits, model, settings, said):
    with pytest.raises(SettingError, match=said):
        check_ranker_settings(model, settings, splits)
