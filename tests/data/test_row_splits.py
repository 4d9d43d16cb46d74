"""Split rows: who is where, what a label is, what is refused; the loader's batches."""

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_meta.data.row_loader import LabelledRows, RowDataLoader, category_shares
from recbole_meta.data.row_splits import SPLITS, RowSplits, open_rows, prepare_rows
from recbole_meta.errors import DataError, LeakError, SettingError
from recbole_meta.row_fitting import fit_rows, row_dataset

PAGE = """
user: user_id
item: item_id
rating: rating
time: timestamp
user_features: []
item_features: [genre]
objectives:
  like: {label: "rating >= 4", type: binary}
  rating: {label: rating, type: regression}
  love: {label: "rating == 5", type: binary, given: like}
  taste: {label: genre, type: distribution, given: like}
"""
GENRES = {"i0": "a b", "i1": "a", "i2": "c", "i3": ""}


def world(folder, rows=None, page=PAGE, n_users=12):
    """Users u0.. with 20 rows each but the last, who has 5; ratings 1 to 5, one of them unknown."""
    random = np.random.default_rng(0)
    if rows is None:
        rows = [
            (f"u{u}", f"i{i}", "" if (u, i) == (0, 0) else 1 + (u * i) % 5, random.integers(9999))
            for u in range(n_users)
            for i in random.permutation(40)[: 20 if u < n_users - 1 else 5]
        ]
        rows.append(("u0", "i99", "", 99_999))
    (folder / "made").mkdir(exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in rows]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "made" / "made.inter").write_text("\n".join([head, *lines]) + "\n", "utf-8")
    items = sorted({row[1] for row in rows})
    lines = [f"{item}\t{GENRES.get(item, 'a c')}" for item in items]
    text = "\n".join(["item_id:token\tgenre:token_seq", *lines]) + "\n"
    (folder / "made" / "made.item").write_text(text, "utf-8")
    (folder / "made" / "made.yaml").write_text(page, "utf-8")
    return pd.DataFrame(rows, columns=["user", "item", "rating", "time"])


def made(folder, protocol="rows_random", **changes) -> RowSplits:
    world(folder, **changes)
    return open_rows(prepare_rows("made", protocol, folder, folder / "prepared"))


def test_random_splits_hold_a_tenth_of_every_user(tmp_path):
    whole, splits = world(tmp_path), made(tmp_path)
    frames = {name: splits.rows(name) for name in SPLITS}
    assert sum(map(len, frames.values())) == len(whole)
    for user, rows in whole.groupby("user"):
        held = round(0.1 * len(rows))
        assert [(frames[name]["user"] == user).sum() for name in SPLITS] == [
            len(rows) - 2 * held, held, held,
        ]  # fmt: skip
    again = open_rows(prepare_rows("made", "rows_random", tmp_path, tmp_path / "again"))
    assert again.rows("test").equals(splits.rows("test"))
    other = open_rows(prepare_rows("made", "rows_random", tmp_path, tmp_path / "again", seed=1))
    assert not other.rows("test").equals(splits.rows("test"))


def test_splits_by_time_never_look_back(tmp_path):
    whole, splits = world(tmp_path), made(tmp_path, "rows_time")
    time = whole.set_index(["user", "item"])["time"]
    of = {n: [time[pair] for pair in zip(f["user"], f["item"], strict=True)]
          for n, f in ((n, splits.rows(n)) for n in SPLITS)}  # fmt: skip
    assert max(of["train"]) < min(of["valid"]) and max(of["valid"]) < min(of["test"])
    train = splits.rows("train")
    for name in ("valid", "test"):
        assert set(splits.rows(name)["user"]) <= set(train["user"])
        assert set(splits.rows(name)["item"]) <= set(train["item"])
    left = splits.description["counts"]["left_out"]
    assert left == len(whole) - sum(map(len, of.values())) > 0


def test_labels_are_those_of_the_expressions_and_spaces(tmp_path):
    whole, splits = world(tmp_path), made(tmp_path)
    rating = pd.to_numeric(whole.set_index(["user", "item"])["rating"])
    for name in SPLITS:
        for _, row in splits.rows(name).iterrows():
            value = rating[row["user"], row["item"]]
            if np.isnan(value):
                assert np.isnan([row["like"], row["rating"], row["love"], row["taste"]]).all()
                continue
            assert row["rating"] == value and row["like"] == (value >= 4)
            assert np.isnan(row["love"]) == np.isnan(row["taste"]) == (value < 4)
            assert value < 4 or row["love"] == (value == 5)


def refused(tmp_path, said, kind=DataError, protocol="rows_random", **changes):
    with pytest.raises(kind, match=said):
        made(tmp_path, protocol, **changes)
    assert not list((tmp_path / "prepared").glob("made-*"))


def test_what_cannot_be_labels_is_refused(tmp_path):
    rows = [(f"u{u}", f"i{i}", 3, i) for u in range(5) for i in range(20)]
    refused(tmp_path, "objective 'like' has one class: 'rating >= 4' is 0", rows=rows)
    empty = [(*row[:2], "", row[3]) for row in rows]
    refused(tmp_path, "objective 'like': all labels of 'rating >= 4' are NaN", rows=empty)
    page = PAGE.replace("rating >= 4", "ratng >= 4")
    refused(tmp_path, r"names 'ratng'.*Did you mean 'rating'", SettingError, page=page)
    page = PAGE.replace("label: genre", "label: gender")
    refused(tmp_path, "'taste'.*'gender'.*Did you mean 'genre'", SettingError, page=page)
    page = PAGE.replace("[genre]", "[]")
    refused(tmp_path, "'genre' is none of the page's 'item_features'", SettingError, page=page)
    page = PAGE.replace('"rating >= 4"', "rating")
    refused(tmp_path, "two objectives have the label 'rating'", SettingError, page=page)
    page = PAGE.replace('"rating >= 4"', '"rating - 1"')
    refused(tmp_path, "must be 0 or 1", page=page)
    refused(tmp_path, "a pair of user and item stands", rows=[*rows, rows[0]])
    bad = [*rows[:-1], ("u9", "i0", "four", 1)]
    refused(tmp_path, "'rating' has no number", rows=bad)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [("float", "1.5", "'genre' is of type float"), ("token_seq", "", "'genre' has 0 categories"),
     ("token_seq", "a", "'genre' has 1 categories")],
)  # fmt: skip
def test_what_cannot_be_categories_is_refused(tmp_path, kind, value, said):
    items = world(tmp_path)["item"].unique()
    text = f"item_id:token\tgenre:{kind}\n" + "".join(f"{item}\t{value}\n" for item in items)
    (tmp_path / "made" / "made.item").write_text(text, "utf-8")
    with pytest.raises(DataError, match=said):
        prepare_rows("made", "rows_random", tmp_path, tmp_path / "prepared")


def test_a_protocol_that_splits_no_rows_is_refused(tmp_path):
    with pytest.raises(SettingError, match="splits no rows"):
        prepare_rows("made", "rows_randm", tmp_path)


def test_a_label_among_the_inputs_is_a_leak(tmp_path):
    folder = made(tmp_path).path
    text = (folder / "recbole.yaml").read_text("utf-8")
    splits = RowSplits(folder)
    (folder / "recbole.yaml").write_text(
        text.replace("  - item_id\n", "  - item_id\n  - rating\n", 1)
    )
    with pytest.raises(LeakError, match="'rating', of the label of objective 'like'"):
        splits.check_leaks()


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return made(tmp_path_factory.mktemp("rows"))


def test_a_row_says_the_categories_of_its_item(splits):
    dataset = row_dataset(splits)
    shares = category_shares(dataset, "genre")
    names = list(dataset.field2id_token["genre"][1:])
    items = dataset.field2token_id["item_id"]
    both = shares[items["i0"]].tolist()
    assert both[names.index("a")] == both[names.index("b")] == 0.5
    assert shares[items["i3"]].sum() == 0
    rows = LabelledRows(splits, "train", dataset)
    liked = splits.rows("train")["like"].to_numpy() == 1
    known = shares[rows.item].sum(1).numpy() > 0
    there = ~rows.labels["taste"].isnan().any(1).numpy()
    assert (there == (liked & known)).all() and there.any()
    torch.testing.assert_close(rows.labels["taste"][there], shares[rows.item[there]])


def test_a_batch_has_its_rows_and_drawn_ones_nobody_knows(splits):
    dataset = row_dataset(splits)
    rows = LabelledRows(splits, "train", dataset)
    loader = RowDataLoader(rows, 16, 3, 5, dataset.item_num)
    known = set(zip(rows.user.tolist(), rows.item.tolist(), strict=True))
    seen = []
    for batch in loader:
        size = len(batch) // 4
        pairs = list(zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True))
        seen += pairs[:size]
        assert not known & set(pairs[size:])
        assert pairs[size][0] == pairs[0][0]  # negatives of the first row's user
        assert (batch["like"][size:] == 0).all()
        for name in ("rating", "love", "taste"):
            assert batch[name][size:].isnan().all()
    assert len(seen) == len(rows) and set(seen) == known
    assert len(loader) == -(-len(rows) // 16)


def test_the_loader_goes_on_from_its_state(splits):
    dataset = row_dataset(splits)
    rows = LabelledRows(splits, "train", dataset)
    one = RowDataLoader(rows, 16, 2, 5, dataset.item_num)
    list(one)
    other = RowDataLoader(rows, 16, 2, 99, dataset.item_num)
    other.load_state_dict(one.state_dict())
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["item_id"], b["item_id"])


def test_rows_that_are_held_out_are_trained_on_by_no_batch(splits):
    dataset = row_dataset(splits)
    rows = LabelledRows(splits, "train", dataset)
    loader = RowDataLoader(rows, 16, 6, 5, dataset.item_num)
    held = loader.hold_out(0.25)

    def pairs(batch, part) -> set:
        return set(zip(batch["user_id"][part].tolist(), batch["item_id"][part].tolist()))

    n = round(0.25 * len(rows))
    out = pairs(held, slice(n))
    every = set(zip(rows.user.tolist(), rows.item.tolist()))
    assert len(out) == n and out < every and len(held) == 7 * n
    assert not every & pairs(held, slice(n, None)) and (held["like"][n:] == 0).all()
    trained, drawn = set(), set()
    for batch in loader:
        size = len(batch) // 7
        trained |= pairs(batch, slice(size))
        drawn |= pairs(batch, slice(size, None))
    assert trained == every - out
    assert not drawn & every  # a held-out positive is no negative


def test_who_has_every_item_gets_no_drawn_row(splits):
    dataset = row_dataset(splits)
    rows = LabelledRows(splits, "train", dataset)
    every = np.arange(1, dataset.item_num)
    rows = rows.part(np.zeros(len(every), dtype=np.int64))  # one row, over and over
    rows.item = every  # and now all items of one user
    loader = RowDataLoader(rows, 8, 2, 5, dataset.item_num)
    assert sum(len(batch) for batch in loader) == len(every)


def test_implicit_feedback_needs_drawn_rows(tmp_path):
    page = PAGE.replace('"rating >= 4"', '"rating >= 1"').replace("rating: rating", "rating: ~")
    rows = [(f"u{u}", f"i{i}", 1 + (u + i) % 5, i) for u in range(5) for i in range(20)]
    splits = made(tmp_path, rows=rows, page=page)
    assert (splits.rows("train")["like"] == 1).all()
    small = {"epochs": 1, "embedding_size": 4, "bottom_sizes": [4], "tower_sizes": [4]}
    with pytest.raises(SettingError, match=r"'negatives' is 0, and objective 'like' is 1 in all"):
        fit_rows("SharedBottom", splits, 0, {**small, "negatives": 0})
    with pytest.raises(SettingError, match="'like/auc' cannot choose: valid has one class"):
        fit_rows("SharedBottom", splits, 0, {**small, "stop_by": "like/auc"})
    fit = fit_rows("SharedBottom", splits, 0, {**small, "stop_by": "like/ndcg@10"})
    assert np.isnan(fit.valid.means()["like/auc"])
