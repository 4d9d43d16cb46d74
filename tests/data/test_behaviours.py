"""Splits with several behaviours: what is written, what is read, what stops a run."""

import json

import pytest
import yaml

from recbole_meta.data.behaviours import (
    Behaviours,
    codes,
    find_splits,
    open_behaviours,
    prepare_behaviours,
)
from recbole_meta.data.folders import digest, sha256
from recbole_meta.data.prepared import open_prepared
from recbole_meta.errors import DataError, LeakError

# user, item, click, cart, buy
ROWS = {
    "train": [("a", "x", 1, 0, 0), ("a", "y", 1, 1, 1), ("b", "x", 0, 0, 1), ("b", "z", 0, 0, 0)],
    "valid": [("a", "x", 0, 1, 0), ("b", "y", 1, 0, 1)],
    "test": [("a", "x", 0, 0, 1), ("a", "z", 1, 1, 1), ("b", "z", 0, 0, 1), ("c", "x", 1, 0, 0)],
}


def made(folder, **rows):
    return prepare_behaviours("shop", folder, folder / "prepared")


def pairs(rows) -> list[tuple[str, str]]:
    return list(zip(rows["user"], rows["item"]))


@pytest.fixture
def folder(write_splits):
    return write_splits(**ROWS)


@pytest.fixture
def behaviours(folder) -> Behaviours:
    return open_behaviours(made(folder))


def test_splits_are_copied_and_each_objective_has_its_own(folder, behaviours):
    def lines(name):
        path = behaviours.path / f"{behaviours.name}.{name}.inter"
        return path.read_text("utf-8").splitlines()

    for split in ROWS:
        source = (folder / "shop" / f"shop.{split}.inter").read_text("utf-8").splitlines()
        assert lines(split) == source
        for name, column in (("click", 2), ("cart", 3), ("purchase", 4)):
            wanted = [line for line in source[1:] if line.split("\t")[column] == "1"]
            assert lines(f"{split}_{name}") == [source[0], *wanted]


def test_the_catalogue_has_all_splits(behaviours):
    assert behaviours.catalogue == ["x", "y", "z"]
    assert behaviours.description["counts"]["users"] == 3
    assert behaviours.description["counts"]["rows_of"]["test_purchase"] == 3


def test_positives_known_and_novel(behaviours):
    assert pairs(behaviours.positives("test", "purchase")) == [("a", "x"), ("a", "z"), ("b", "z")]
    assert pairs(behaviours.known("train")) == [("a", "x"), ("a", "y"), ("b", "x")]
    # a clicked x in train; the row of b and z says that nothing was observed
    assert pairs(behaviours.novel("test", "purchase")) == [("a", "z"), ("b", "z")]
    assert behaviours.tasks("test", "click") == ["a", "c"]


def test_codes(behaviours):
    user, item = codes(behaviours.known("train"), {"a": 4, "b": 7}, {"x": 1, "y": 2, "z": 3})
    assert user.tolist() == [4, 4, 7] and item.tolist() == [1, 2, 1]


def test_made_once_and_anew_where_an_input_differs(folder, write_splits):
    first = made(folder)
    before = (first / "protocol.json").stat().st_mtime_ns
    assert made(folder) == first and (first / "protocol.json").stat().st_mtime_ns == before
    other = write_splits(**ROWS | {"test": ROWS["test"][:2]})
    assert made(other).name != first.name


def test_the_order_of_the_objectives_is_kept_and_counts(folder):
    page = folder / "shop" / "shop.yaml"
    first = made(folder)
    head, *lines = page.read_text("utf-8").splitlines()
    page.write_text("\n".join([head, *lines[::-1]]) + "\n", encoding="utf-8")
    turned = made(folder)
    assert turned != first
    assert list(open_behaviours(turned).objectives) == ["cart", "click", "purchase"]


# Gates.


def planted(write_splits, split: str, row: tuple):
    rows = {name: list(entries) for name, entries in ROWS.items()}
    rows[split].append(row)
    return made(write_splits(**rows))


@pytest.mark.parametrize(
    ("split", "row", "said"),
    [
        ("valid", ("a", "y", 0, 0, 1), "1 pairs of objective 'purchase' are in 'train' and in 'va"),
        ("test", ("b", "x", 0, 0, 1), "objective 'purchase' are in 'train' and in 'test'"),
        ("test", ("b", "y", 1, 0, 0), "objective 'click' are in 'valid' and in 'test'"),
    ],
)
def test_a_behaviours_pair_in_two_splits_stops_the_run(write_splits, split, row, said):
    with pytest.raises(LeakError, match=said):
        open_behaviours(planted(write_splits, split, row))


def test_a_pair_may_have_another_behaviour_in_another_split(behaviours):
    behaviours.check_leaks()  # a and x: clicked in train, in the cart in valid, bought in test
    assert ("a", "x") in pairs(behaviours.positives("test", "purchase"))


def test_a_label_among_the_inputs_stops_the_run(folder):
    path = made(folder)
    settings = yaml.safe_load((path / "recbole.yaml").read_text("utf-8"))
    settings["load_col"]["inter"].append("cart")
    (path / "recbole.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    about = json.loads((path / "protocol.json").read_text("utf-8"))
    about["outputs"]["recbole.yaml"] = sha256((path / "recbole.yaml").read_bytes())
    about["sha256"] = digest(about)
    (path / "protocol.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(LeakError, match="'cart', the label of objective 'cart', is loaded"):
        open_behaviours(path)


def test_a_folder_that_was_changed_stops_the_run(folder):
    path = made(folder)
    file = path / f"{path.name}.train.inter"
    file.write_text(file.read_text("utf-8") + "c\tx\t0\t0\t1\n", encoding="utf-8")
    with pytest.raises(LeakError, match="changed by hand"):
        open_behaviours(path)


# What cannot be read.

BAD = [
    ({"train": [("a", "x", 1, 0, 0), ("a", "x", 0, 1, 1)]}, "line 3: user 'a' and item 'x' stand"),
    ({"train": [("a", "x", 1, 0, 2)]}, "line 2: 'buy' is 2, and the label of objective 'purchase'"),
    ({"test": [("a", "x", 1, "", 0)]}, "line 2: 'cart' is '', not a finite number"),
    ({"valid": [("a", "x", 1, 0, 1)]}, "shop.valid.inter: no row of valid has 'cart' 1"),
    ({"train": [("", "x", 1, 1, 1)]}, "'user_id' is empty"),
]


@pytest.mark.parametrize(("changed", "said"), BAD)
def test_bad_rows_name_file_and_line(write_splits, changed, said):
    folder = write_splits(**ROWS | changed)
    with pytest.raises(DataError, match=said):
        made(folder)
    assert not [path for path in (folder / "prepared").iterdir() if path.is_dir()]


def test_a_label_must_be_a_column_of_numbers(write_splits):
    header = "user_id:token\titem_id:token\tclick:float\tcart:token\tbuy:float"
    with pytest.raises(DataError, match="'cart' has type 'token', must be 'float'"):
        made(write_splits(header, **ROWS))
    header = "user_id:token\titem_id:token\tclick:float\tcar:float\tbuy:float"
    with pytest.raises(DataError, match=r"no column 'cart'\. Did you mean 'car'"):
        made(write_splits(header, **ROWS))


def test_missing_files_name_the_data_set(folder):
    with pytest.raises(DataError, match="Did you mean 'shop'"):
        find_splits("shopp", folder)
    (folder / "shop" / "shop.valid.inter").unlink()
    with pytest.raises(DataError, match=r"No file shop\.valid\.inter"):
        made(folder)


def test_the_two_kinds_of_folders_do_not_pass_for_each_other(folder, make_world):
    with pytest.raises(DataError, match="no folder of a cold-start protocol"):
        open_prepared(made(folder))
    rows = [(f"u{u}", f"i{i}", 4, i) for u in range(40) for i in range(8)]
    with pytest.raises(DataError, match="no folder of splits"):
        open_behaviours(make_world(rows, "user_cold_5").path)


# Plain RecBole.


@pytest.mark.parametrize("part", ["", "_purchase"])
def test_plain_recbole_reads_the_folder_without_labels(shop, part):
    from recbole.data import create_dataset

    from recbole_meta.compat import contained, recbole_config, recbole_model

    names = [f"{split}{part}" for split in ("train", "valid", "test")]
    values = {"data_path": str(shop.path.parent), "benchmark_filename": names}
    files = [shop.path / "recbole.yaml"]
    config = recbole_config(recbole_model("BPR"), shop.name, files, values)
    with contained():
        sets = create_dataset(config).build()
    assert sets[0].fields() == ["user_id", "item_id"]
    assert sets[0].item_num - 1 == len(shop.catalogue)
    for name, data in zip(names, sets):
        assert len(data) == shop.description["counts"]["rows_of"][name]


@pytest.mark.data
def test_jd_has_its_published_counts(data_path, tmp_path):
    behaviours = open_behaviours(prepare_behaviours("jd-bvae", data_path, tmp_path))
    counts = behaviours.description["counts"]
    assert counts["users"] == 10_690
    assert {split: counts["rows_of"][split] for split in ("train", "valid", "test")} == {
        "train": 230_046, "valid": 22_081, "test": 17_625,
    }  # fmt: skip
    bought, novel = behaviours.positives("test", "purchase"), behaviours.novel("test", "purchase")
    assert (len(bought), len(bought) - len(novel)) == (5_013, 359)
    assert len(behaviours.positives("test", "favourite")) == 954
    assert len(behaviours.novel("test", "favourite")) == 954 - 127
