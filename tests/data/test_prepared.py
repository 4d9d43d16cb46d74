"""A prepared folder is read as written; what was changed or leaks stops the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_meta.data.prepare import digest, prepare, read_protocol, sha256
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.data.support import read_support
from recbole_meta.errors import DataError, LeakError, SettingError
from recbole_meta.settings import load_yaml

SETTINGS = {
    "user_cold_curve": {},
    "user_cold_global": {"split": 8},
    "user_cold_5": {},
    "user_cold_5_label": {},
    "user_cold_5_rating": {},
    "user_cold_first": {},
}


@pytest.fixture(scope="module")
def originals(sample_path: Path, tmp_path_factory) -> dict[str, Path]:
    """Every protocol of the sample data set, prepared; nobody writes into these."""
    root = tmp_path_factory.mktemp("prepared")
    return {
        name: prepare("tiny", read_protocol(name, **settings), name, sample_path, root)
        for name, settings in SETTINGS.items()
    }


@pytest.fixture
def copy(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a prepared folder that a test may change."""
    return lambda name: Path(shutil.copytree(originals[name], tmp_path / originals[name].name))


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{folder.name}.{name}.inter").read_text().splitlines()[1:]


def write(folder: Path, name: str, rows: list[str]) -> None:
    path = folder / f"{folder.name}.{name}.inter"
    header = path.read_text().splitlines()[0]
    path.write_text("\n".join([header, *rows]) + "\n")


def tasks(folder: Path, phase: str) -> list[str]:
    return json.loads((folder / "protocol.json").read_text())["tasks"][phase]


def repair(folder: Path) -> Path:
    """New digests, so that nothing but a gate can notice what was planted."""
    path = folder / "protocol.json"
    about = json.loads(path.read_text())
    for name in about["outputs"]:
        file = folder / (folder.name + name if name.startswith(".") else name)
        about["outputs"][name] = sha256(file.read_bytes())
    about["sha256"] = digest(about)
    path.write_text(json.dumps(about))
    return folder


# Reading


@pytest.mark.parametrize("name", SETTINGS)
def test_what_prepare_writes_passes_every_gate(name: str, copy) -> None:
    folder = copy(name)
    prepared = open_prepared(folder)
    assert open_prepared(str(folder)) is prepared
    Prepared(repair(folder)).check_leaks()


def test_rows_have_positions_and_targets(originals: dict[str, Path]) -> None:
    folder = originals["user_cold_5_rating"]
    prepared = Prepared(folder)
    rows = prepared.rows("test")
    split = [line.split("\t") for line in lines(folder, "test")]
    assert rows[["user", "item"]].values.tolist() == [row[:2] for row in split]
    assert rows["target"].tolist() == [float(row[2]) for row in split]
    assert rows["time"].tolist() == [float(row[3]) for row in split]
    seen: dict[str, int] = {}
    for user, position in zip(rows["user"], rows["position"]):
        assert position == seen.get(user, 0)
        seen[user] = position + 1
    labels = Prepared(originals["user_cold_5_label"]).rows("test")["target"]
    assert labels.tolist() == [float(float(row[2]) >= 4) for row in split]
    assert "target" not in Prepared(originals["user_cold_5"]).rows("test")


def test_who_is_warm_and_what_may_be_ranked(originals: dict[str, Path]) -> None:
    curve = Prepared(originals["user_cold_curve"])
    cold = {*curve.tasks("valid"), *curve.tasks("test")}
    assert curve.cold_users("test") == curve.cold_users("valid") == cold
    assert set(curve.warm_rows("test")["user"]) == set(curve.rows("train_0")["user"])
    assert curve.candidates("test") == set(curve.rows("train_0")["item"])
    assert (curve.train_name("test", 3), curve.train_name("valid", 0)) == ("train_3", "train_0")

    late = Prepared(originals["user_cold_global"])
    assert late.cold_users("test") == set(late.tasks("test"))
    assert late.train_name("test", 3) == "refit_3"
    warm = set(late.warm_rows("test")["user"])
    assert set(late.tasks("valid")) & warm and not set(late.tasks("test")) & warm
    assert late.candidates("valid") == set(late.rows("train_0")["item"])

    plain = Prepared(originals["user_cold_5"])
    assert plain.candidates("test") == set(plain.catalogue)
    assert plain.catalogue == sorted(f"i{n}" for n in range(1, 41))
    assert not set(plain.warm_rows("test")["user"]) & {*plain.tasks("valid"), *plain.tasks("test")}


def test_support_is_the_first_rows_of_the_tasks(originals: dict[str, Path]) -> None:
    for name, part in (("user_cold_curve", "reserved"), ("user_cold_5", "train")):
        prepared = Prepared(originals[name])
        first: dict[str, list[str]] = {user: [] for user in prepared.tasks("test")}
        for line in lines(prepared.path, part):
            user, item = line.split("\t")[:2]
            if user in first:
                first[user].append(item)
        for k in prepared.shots:
            support = prepared.support("test", k)
            found = support.groupby("user")["item"].agg(list).to_dict()
            assert found == ({user: items[:k] for user, items in first.items()} if k else {})


def test_zero_shot_folder_has_an_empty_reserve(originals: dict[str, Path]) -> None:
    prepared = open_prepared(originals["user_cold_first"])
    assert prepared.shots == (0,) and prepared.query_start == 0
    assert len(prepared.early_rows("test")) == len(prepared.support("test", 0)) == 0
    assert list(prepared.early_rows("test").columns) == ["user", "item", "time", "position"]


@pytest.mark.parametrize("name, k", [("user_cold_curve", 3), ("user_cold_5_rating", 5)])
def test_support_is_one_padded_table(name: str, k: int, originals: dict[str, Path]) -> None:
    prepared = Prepared(originals[name])
    users = {"[PAD]": 0} | {f"u{n}": n for n in range(1, 61)}
    items = {"[PAD]": 0} | {f"i{n}": n for n in range(1, 41)}
    examples = read_support(prepared, "test", k, users, items)
    assert examples.x.shape == examples.mask.shape == examples.label.shape == (61, k)
    part = "reserved" if name == "user_cold_curve" else "train"
    rows = [line.split("\t") for line in lines(prepared.path, part)]
    for user, number in users.items():
        cold = user in prepared.tasks("test")
        mine = [row for row in rows if row[0] == user][:k] if cold else []
        pad = [0] * (k - len(mine))
        assert len(pad) in (0, k)
        assert examples.x[number].tolist() == [items[row[1]] for row in mine] + pad
        assert examples.mask[number].tolist() == [1] * len(mine) + pad
        label = [float(row[2]) if name == "user_cold_5_rating" else 1 for row in mine]
        assert examples.label[number].tolist() == label + pad


def test_no_support_is_one_masked_column(originals: dict[str, Path]) -> None:
    prepared = Prepared(originals["user_cold_curve"])
    users, items = {f"u{n}": n for n in range(61)}, {f"i{n}": n for n in range(41)}
    examples = read_support(prepared, "test", 0, users, items)
    assert examples.x.shape == (61, 1)
    assert not any(part.any() for part in examples)


# A folder that was changed


def test_a_changed_byte_is_named(copy) -> None:
    folder = copy("user_cold_5")
    path = folder / f"{folder.name}.test.inter"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LeakError, match=rf"changed by hand: {path.name} differ"):
        open_prepared(folder)


@pytest.mark.parametrize("suffix", [".train.inter", ".item", "recbole.yaml"])
def test_a_removed_file_is_named(suffix: str, copy) -> None:
    folder = copy("user_cold_5")
    name = folder.name + suffix if suffix.startswith(".") else suffix
    (folder / name).unlink()
    with pytest.raises(LeakError, match=rf"changed by hand: {name} differ"):
        open_prepared(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["settings"].update(seed=7),
        lambda about: about["tasks"]["test"].pop(),
        lambda about: about["outputs"].pop(".test.inter"),
        lambda about: about.pop("sha256"),
    ],
)
def test_an_edited_description_is_named(change, copy) -> None:
    folder = copy("user_cold_5")
    about = json.loads((folder / "protocol.json").read_text())
    change(about)
    (folder / "protocol.json").write_text(json.dumps(about))
    with pytest.raises(LeakError, match=r"changed by hand: protocol\.json differ"):
        open_prepared(folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[1]"])
def test_a_description_that_is_none_is_refused(content: bytes, copy) -> None:
    folder = copy("user_cold_5")
    (folder / "protocol.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{folder.name} is not a prepared folder: "):
        open_prepared(folder)


def test_a_folder_without_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a prepared folder: .*No such file"):
        open_prepared(tmp_path)


def test_another_format_is_refused(copy) -> None:
    folder = copy("user_cold_5")
    about = json.loads((folder / "protocol.json").read_text())
    (folder / "protocol.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(DataError, match=r"has format 2, this version reads 1: delete the folder"):
        open_prepared(folder)


# Leak gates; digests are repaired, so that only the gate can notice


def stops(folder: Path, message: str) -> None:
    with pytest.raises(LeakError, match=message):
        open_prepared(repair(folder))


@pytest.mark.parametrize(
    "name, train, phase",
    [
        ("user_cold_5", "train", "test"),
        ("user_cold_5", "train", "valid"),
        ("user_cold_curve", "train_0", "test"),
        ("user_cold_curve", "train_10", "valid"),
        ("user_cold_global", "refit_3", "test"),
        ("user_cold_global", "train_3", "valid"),
    ],
)
def test_a_query_pair_in_train_stops(name: str, train: str, phase: str, copy) -> None:
    folder = copy(name)
    row = lines(folder, phase)[4]
    user, item, _, time = row.split("\t")
    write(folder, train, [*lines(folder, train), f"{user}\t{item}\t1\t{time}"])
    stops(folder, rf"1 query pairs of '{phase}' are in '{train}', e\.g\. {user}\t{item}\.")


@pytest.mark.parametrize("phase", ["valid", "test"])
def test_an_extra_row_of_a_task_in_train_stops(phase: str, copy) -> None:
    """Not a query pair: a reserved row that k shots do not show."""
    folder = copy("user_cold_curve")
    user = tasks(folder, phase)[1]
    row = [row for row in lines(folder, "reserved") if row.startswith(f"{user}\t")][5]
    write(folder, "train_3", [*lines(folder, "train_3"), row])
    stops(folder, rf"user '{user}' of '{phase}' has 4 rows in 'train_3', not 3: a test user must")


def test_an_unseen_item_of_a_task_in_train_stops(copy) -> None:
    folder = copy("user_cold_5")
    user = tasks(folder, "test")[0]
    train = lines(folder, "train")
    met = {
        row.split("\t")[1] for row in [*train, *lines(folder, "test")] if user in row.split("\t")
    }
    item = next(f"i{n}" for n in range(1, 41) if f"i{n}" not in met)
    write(folder, "train", [f"{user}\t{item}\t5\t0", *train])
    stops(folder, rf"user '{user}' of 'test' has 6 rows in 'train', not 5")


def test_a_missing_support_row_stops(copy) -> None:
    folder = copy("user_cold_5")
    user = tasks(folder, "test")[0]
    train = lines(folder, "train")
    train.remove(next(row for row in train if row.startswith(f"{user}\t")))
    write(folder, "train", train)
    stops(folder, rf"user '{user}' of 'test' has 4 rows in 'train', not 5")


@pytest.mark.parametrize("name, phase", [("train_0", "valid"), ("refit_5", "test")])
def test_a_training_row_after_the_cut_stops(name: str, phase: str, copy) -> None:
    folder = copy("user_cold_global")
    cut = json.loads((folder / "protocol.json").read_text())["cut"][phase]
    original = lines(folder, name)
    user, item, rating, time = original[0].split("\t")
    assert user not in tasks(folder, phase) and float(time) < cut
    write(folder, name, [f"{user}\t{item}\t{rating}\t{cut - 1}", *original[1:]])
    Prepared(repair(folder)).check_leaks()
    write(folder, name, [f"{user}\t{item}\t{rating}\t{cut}", *original[1:]])
    stops(folder, rf"1 training rows of '{name}' lie after the cut {cut}")


@pytest.mark.parametrize("part", ["test", "valid", "train"])
def test_a_flipped_label_stops(part: str, copy) -> None:
    folder = copy("user_cold_5_label")
    rows = lines(folder, part)
    rows[3] = rows[3][:-1] + {"0": "1", "1": "0"}[rows[3][-1]]
    write(folder, part, rows)
    stops(folder, rf"'label' is not rating >= 4\.0 in 1 rows of {folder.name}\.{part}\.inter")


def test_turned_polarity_stops(copy) -> None:
    folder = copy("user_cold_5_label")
    for part in ("train", "valid", "test"):
        flipped = [row[:-1] + {"0": "1", "1": "0"}[row[-1]] for row in lines(folder, part)]
        write(folder, part, flipped)
    stops(folder, r"'label' is not rating >= 4\.0 in \d{3} rows")


@pytest.mark.parametrize(
    "name, field",
    [
        ("user_cold_5_label", "rating"),
        ("user_cold_5_label", "timestamp"),
        ("user_cold_5_rating", "timestamp"),
        ("user_cold_5", "rating"),
    ],
)
def test_a_further_column_that_is_loaded_stops(name: str, field: str, copy) -> None:
    folder = copy(name)
    settings = load_yaml(folder / "recbole.yaml")
    settings["load_col"]["inter"].append(field)
    (folder / "recbole.yaml").write_text(yaml.safe_dump(settings))
    stops(folder, rf"'{field}' is loaded from \.inter and would become a feature")


def test_a_task_without_query_stops(copy) -> None:
    folder = copy("user_cold_5")
    user = tasks(folder, "test")[0]
    rows = [row for row in lines(folder, "test") if not row.startswith(f"{user}\t")]
    write(folder, "test", rows)
    stops(folder, r"the users of 'test' are not its tasks")


def test_a_phase_without_query_is_refused(copy) -> None:
    folder = copy("user_cold_5")
    write(folder, "valid", [])
    with pytest.raises(DataError, match=r"phase 'valid' has no query row"):
        open_prepared(repair(folder))


def test_unreadable_settings_of_a_folder_are_refused(copy) -> None:
    folder = copy("user_cold_5")
    (folder / "recbole.yaml").write_text("load_col: [")
    with pytest.raises(SettingError, match=r"Cannot read the settings file .*recbole\.yaml"):
        open_prepared(repair(folder))


def test_curve_has_one_query_for_all_shots(originals: dict[str, Path]) -> None:
    """Reserve and query of a task are disjoint, and train_k differs from train_0 by k rows each."""
    prepared = Prepared(originals["user_cold_curve"])
    n_cold = len(prepared.cold_users("test"))
    sizes = [len(prepared.rows(f"train_{k}")) for k in prepared.shots]
    assert (np.array(sizes) - sizes[0]).tolist() == [k * n_cold for k in prepared.shots]
    for phase in ("valid", "test"):
        early, late = prepared.early_rows(phase), prepared.rows(phase)
        known = set(zip(early["user"], early["item"]))
        assert len(early) == 10 * len(prepared.tasks(phase))
        assert not known & set(zip(late["user"], late["item"]))
