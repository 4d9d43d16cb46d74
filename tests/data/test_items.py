"""Cold items against a naive reading of the protocols, and the gates on their folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recbole_meta.data.folders import digest, sha256
from recbole_meta.data.history import Rows, pair_hash
from recbole_meta.data.items import BothCold, ItemCold
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import DataError, LeakError, SettingError

COMMON = dict(
    feedback="implicit", threshold={}, label={}, duplicates="error", order="random", seed=3
)
ITEMS = COMMON | dict(shots=(0, 1, 2), reserve=2, folds=0)
BOTH = COMMON | dict(shots=(0, 2), reserve=2)


def table(n_users: int = 60, n_items: int = 40, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    user, item = np.nonzero(random.random((n_users, n_items)) < 0.4)
    order = random.permutation(len(user))
    return Rows(
        user[order], item[order], random.integers(0, 50, len(user)).astype(np.float64),
        random.integers(0, 2**63, n_users, dtype=np.uint64),
        random.integers(0, 2**63, n_items, dtype=np.uint64),
    )  # fmt: skip


def in_order(rows: Rows, seed: int, order: str) -> dict[int, list[int]]:
    """Item -> its rows, first to last, one by one."""
    key = pair_hash(rows.turned(), seed)
    late = rows.time if order == "time" else np.zeros(len(key))
    found: dict[int, list[int]] = {}
    for row in sorted(range(len(key)), key=lambda n: (late[n], key[n])):
        found.setdefault(int(rows.item[row]), []).append(row)
    return found


@pytest.mark.parametrize("order", ["random", "time"])
@pytest.mark.parametrize("split", [0, 1])
def test_first_raters_are_the_support_and_later_ones_the_query(order: str, split: int) -> None:
    rows = table()
    made = ItemCold(**ITEMS | dict(order=order, split=split)).apply(rows)
    history = in_order(rows, 3 + split, order)
    cold = {phase: set(items.tolist()) for phase, items in made.tasks.items()}
    assert len(cold["test"]) == 8 and len(cold["valid"]) == 4
    assert not cold["test"] & cold["valid"]
    both = cold["test"] | cold["valid"]
    for phase in ("valid", "test"):
        assert sorted(made.files[phase]) == sorted(
            row for i in cold[phase] for row in history[i][2:]
        )
    for k in (0, 1, 2):
        assert sorted(made.files[f"train_{k}"]) == sorted(
            row for i, of_item in history.items() for row in (of_item[:k] if i in both else of_item)
        )
    assert made.cold_items is made.tasks


def test_folds_judge_every_item_once() -> None:
    rows = table()
    found = [
        ItemCold(**ITEMS | dict(folds=4, split=split)).apply(rows).tasks["test"].tolist()
        for split in range(4)
    ]
    assert sorted(item for items in found for item in items) == list(range(40))


def test_splits_of_both_cold_draw_items_anew() -> None:
    first, second = (BothCold(**BOTH | dict(split=s)).apply(table(200)) for s in (0, 1))
    for phase in ("valid", "test"):
        assert set(first.cold_items[phase]) != set(second.cold_items[phase])
        assert set(first.tasks[phase]) != set(second.tasks[phase])


@pytest.mark.parametrize("split", [0, 1])
def test_both_cold_trains_on_warm_users_and_warm_items(split: int) -> None:
    rows = table(200)
    made = BothCold(**BOTH | dict(split=split)).apply(rows)
    users, items = made.tasks, made.cold_items
    cold_users, cold_items = (np.concatenate(list(part.values())) for part in (users, items))
    assert len(cold_items) == 12 and len(np.unique(cold_users)) == len(cold_users)
    for k in (0, 2):
        train = made.files[f"train_{k}"]
        assert not np.isin(rows.item[train], cold_items).any()
        counts = np.bincount(rows.user[train], minlength=200)
        assert (counts[cold_users] == k).all()
        warm = ~np.isin(rows.user, cold_users) & ~np.isin(rows.item, cold_items)
        assert set(np.flatnonzero(warm)) == set(train[~np.isin(rows.user[train], cold_users)])
    for phase in ("valid", "test"):
        asked = np.isin(rows.user, users[phase]) & np.isin(rows.item, items[phase])
        assert set(made.files[phase]) == set(np.flatnonzero(asked))
        assert set(rows.user[made.files[phase]]) == set(users[phase])  # each one is judged


@pytest.mark.parametrize("protocol", [ItemCold(**ITEMS | dict(split=0)), BothCold(**BOTH, split=0)])
def test_the_order_of_the_lines_changes_nothing(protocol) -> None:
    rows = table(200)
    order = np.random.default_rng(1).permutation(len(rows.user))
    left, right = protocol.apply(rows), protocol.apply(rows.of(order))
    for name, chosen in left.files.items():
        np.testing.assert_array_equal(chosen, order[right.files[name]])


@pytest.mark.parametrize("change", [dict(shots=(0, 3)), dict(shots=()), dict(folds=1)])
def test_settings_that_make_no_sense(change) -> None:
    with pytest.raises(SettingError):
        ItemCold(**ITEMS | dict(split=0) | change)


def test_items_without_enough_raters() -> None:
    with pytest.raises(DataError, match="No item has the 61 rows"):
        ItemCold(**ITEMS | dict(split=0, reserve=60)).apply(table())


# On files.


@pytest.fixture(scope="module")
def folders(ml100k: Path, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    names = ("item_cold", "item_cold_curve", "both_cold")
    return {p: prepare("ml-100k", read_protocol(p), p, ml100k.parent, root) for p in names}


def test_tasks_and_candidates_are_the_cold_items(folders) -> None:
    curve, both = (open_prepared(folders[name]) for name in ("item_cold_curve", "both_cold"))
    assert (curve.side, curve.other_side, both.side) == ("item", "user", "user")
    for phase in ("valid", "test"):
        assert curve.candidates(phase) == set(curve.tasks(phase))
        assert set(both.rows(phase)["item"]) <= both.candidates(phase)
        assert curve.judged(phase) == sorted(set(curve.rows(phase)["user"]))
        assert both.judged(phase) == both.tasks(phase)
    assert not set(curve.warm_rows("test")["item"]) & curve.cold_tasks("test")
    assert (curve.support("test", 3).groupby("item").size() == 3).all()
    assert set(curve.support("test", 3)["item"]) == set(curve.tasks("test"))


def spoiled(folder: Path, target: Path, name: str, line: str) -> Path:
    """A copy with one more line in a file, and digests as if it had been written so."""
    copy = Path(shutil.copytree(folder, target / folder.name))
    file = copy / f"{copy.name}.{name}.inter"
    file.write_text(file.read_text("utf-8") + line + "\n", "utf-8")
    about = json.loads((copy / "protocol.json").read_text("utf-8"))
    about["outputs"][f".{name}.inter"] = sha256(file.read_bytes())
    about["sha256"] = digest(about)
    (copy / "protocol.json").write_text(json.dumps(about), "utf-8")
    return copy


def test_a_cold_item_with_one_rater_too_many_is_a_leak(folders, tmp_path) -> None:
    prepared = Prepared(folders["item_cold"])
    item = prepared.tasks("test")[0]
    user = next(u for u in prepared.judged("test") if (u, item) not in set(
        zip(prepared.rows("test")["user"], prepared.rows("test")["item"])))  # fmt: skip
    with pytest.raises(LeakError, match=f"item '{item}' of 'test' has 1 rows in 'train_0', not 0"):
        Prepared(
            spoiled(folders["item_cold"], tmp_path, "train_0", f"{user}\t{item}\t5\t9")
        ).check_leaks()


def test_a_cold_item_in_training_is_a_leak_where_users_are_tasks(folders, tmp_path) -> None:
    prepared = Prepared(folders["both_cold"])
    item = min(prepared.candidates("test"))
    user = prepared.warm_rows("test")["user"].iloc[0]
    known = set(zip(prepared.rows("test")["user"], prepared.rows("test")["item"]))
    assert (user, item) not in known
    with pytest.raises(LeakError, match="1 cold items of 'test' are in 'train_0'"):
        Prepared(
            spoiled(folders["both_cold"], tmp_path, "train_0", f"{user}\t{item}\t5\t9")
        ).check_leaks()
