"""Prepared folders as they are read, and leaks that only a gate can notice."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recbole_meta.data.folders import digest, sha256
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import DataError, LeakError, SettingError

PROTOCOLS = (
    "user_cold_5",
    "user_cold_5_label",
    "user_cold_5_rating",
    "user_cold_curve",
    "user_cold_first",
    "user_cold_global",
)
Lines = list[list[str]]


@pytest.fixture(scope="module")
def folders(sample_path, tmp_path_factory) -> dict[str, Path]:
    """tiny by each protocol."""
    root = tmp_path_factory.mktemp("folders")
    return {p: prepare("tiny", read_protocol(p), p, sample_path, root) for p in PROTOCOLS}


@pytest.fixture
def copied(folders, tmp_path) -> Callable[[str], Path]:
    """``copied(protocol)``: a folder of one's own to spoil."""
    return lambda protocol: Path(
        shutil.copytree(folders[protocol], tmp_path / folders[protocol].name)
    )


def describe(folder: Path) -> dict:
    return json.loads((folder / "protocol.json").read_text(encoding="utf-8"))


def repair(folder: Path, **changes) -> None:
    """Every digest as if the folder had been written like this."""
    about = describe(folder) | changes
    for name in about["outputs"]:
        file = folder / (folder.name + name if name.startswith(".") else name)
        about["outputs"][name] = sha256(file.read_bytes())
    about["sha256"] = digest(about)
    (folder / "protocol.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def lines(folder: Path, name: str) -> Lines:
    text = (folder / f"{folder.name}.{name}.inter").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.split("\n")[1:-1]]


def plant(folder: Path, name: str, change: Callable[[Lines], object]) -> None:
    """Change the rows of a file in place, and repair the digests."""
    path = folder / f"{folder.name}.{name}.inter"
    header = path.read_text(encoding="utf-8").split("\n")[0]
    rows = lines(folder, name)
    change(rows)
    text = "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"
    path.write_text(text, encoding="utf-8")
    repair(folder)


def index_of(rows: Lines, user: str) -> int:
    return next(n for n, row in enumerate(rows) if row[0] == user)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_repaired_folder_without_a_leak_passes(copied, protocol: str) -> None:
    """So that the tests below fail for their leak, not for the repair."""
    folder = copied(protocol)
    before = (folder / "protocol.json").read_bytes()
    plant(folder, "test", lambda rows: None)
    assert (folder / "protocol.json").read_bytes() == before
    Prepared(folder).check_leaks()


@pytest.mark.parametrize(
    ("protocol", "phase", "name"),
    [
        ("user_cold_5", "test", "train"),
        ("user_cold_5", "valid", "train"),
        ("user_cold_curve", "test", "train_3"),
        ("user_cold_global", "valid", "train_10"),
        ("user_cold_global", "test", "refit_1"),
    ],
)
def test_a_query_pair_in_train(copied, protocol: str, phase: str, name: str) -> None:
    """It takes the place of a support row: the numbers of rows stay as they must be."""
    folder = copied(protocol)
    query = lines(folder, phase)[-1]

    def swap(rows: Lines) -> None:
        rows[index_of(rows, query[0])] = query

    plant(folder, name, swap)
    with pytest.raises(LeakError, match=rf"1 query pairs of '{phase}' are in '{name}', e\.g\."):
        Prepared(folder).check_leaks()


def test_a_query_pair_in_the_reserve(copied) -> None:
    """The support is read from there, whatever the training files say."""
    folder = copied("user_cold_curve")
    query = lines(folder, "test")[-1]

    def swap(rows: Lines) -> None:
        rows[index_of(rows, query[0])] = query

    plant(folder, "reserved", swap)
    with pytest.raises(LeakError, match=r"1 query pairs of 'test' are in the reserve"):
        Prepared(folder).check_leaks()


@pytest.mark.parametrize(
    ("protocol", "phase", "name", "found", "k"),
    [
        ("user_cold_5", "test", "train", 6, 5),
        ("user_cold_curve", "valid", "train_0", 1, 0),
        ("user_cold_global", "test", "refit_3", 4, 3),
    ],
)
def test_an_extra_row_of_a_cold_user_in_train(copied, protocol, phase, name, found, k) -> None:
    """With an item that the user never had: no pair of the query."""
    folder = copied(protocol)
    query = lines(folder, phase)[0]
    plant(folder, name, lambda rows: rows.append([query[0], "i999", *query[2:]]))
    message = rf"user '{query[0]}' of '{phase}' has {found} rows in '{name}', not {k}: "
    with pytest.raises(LeakError, match=message):
        Prepared(folder).check_leaks()


def test_a_missing_support_row(copied) -> None:
    folder = copied("user_cold_5")
    user = lines(folder, "test")[0][0]
    plant(folder, "train", lambda rows: rows.pop(index_of(rows, user)))
    with pytest.raises(LeakError, match=rf"user '{user}' of 'test' has 4 rows in 'train', not 5"):
        Prepared(folder).check_leaks()


@pytest.mark.parametrize(("phase", "name"), [("valid", "train_0"), ("test", "refit_5")])
def test_a_training_row_at_the_cut(copied, phase: str, name: str) -> None:
    folder = copied("user_cold_global")
    about = describe(folder)
    cut = about["cut"][phase]

    def at(time: float) -> Callable[[Lines], None]:
        def move(rows: Lines) -> None:
            next(row for row in rows if row[0] not in about["tasks"][phase])[3] = str(int(time))

        return move

    plant(folder, name, at(cut - 1))
    Prepared(folder).check_leaks()
    plant(folder, name, at(cut))
    with pytest.raises(LeakError, match=rf"1 training rows of '{name}' lie after the cut {cut}"):
        Prepared(folder).check_leaks()


def test_the_support_of_the_judged_block_may_lie_after_the_cut(folders) -> None:
    folder = folders["user_cold_global"]
    about = describe(folder)
    support = [row for row in lines(folder, "refit_5") if row[0] in about["tasks"]["test"]]
    assert min(float(row[3]) for row in support) >= about["cut"]["test"]
    Prepared(folder).check_leaks()


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_a_flipped_label(copied, name: str) -> None:
    folder = copied("user_cold_5_label")

    def flip(rows: Lines) -> None:
        rows[3][4] = str(1 - int(rows[3][4]))

    plant(folder, name, flip)
    message = rf"'label' is not rating >= 4\.0 in 1 rows of .*\.{name}\.inter"
    with pytest.raises(LeakError, match=message):
        Prepared(folder).check_leaks()


def test_turned_polarity(copied) -> None:
    folder = copied("user_cold_5_label")

    def flip(rows: Lines) -> None:
        for row in rows:
            row[4] = str(1 - int(row[4]))

    for name in ("train", "valid", "test"):
        plant(folder, name, flip)
    with pytest.raises(LeakError, match=r"'label' is not rating >= 4\.0 in \d{3} rows of "):
        Prepared(folder).check_leaks()


@pytest.mark.parametrize(
    ("protocol", "field"),
    [
        ("user_cold_5_label", "rating"),
        ("user_cold_5_label", "timestamp"),
        ("user_cold_5_rating", "timestamp"),
        ("user_cold_5", "rating"),
    ],
)
def test_a_column_that_would_become_a_feature(copied, protocol: str, field: str) -> None:
    folder = copied(protocol)
    path = folder / "recbole.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count("  - item_id\n") == 2  # of .inter, then of .item
    path.write_text(text.replace("  - item_id\n", f"  - item_id\n  - {field}\n", 1), "utf-8")
    repair(folder)
    with pytest.raises(LeakError, match=rf"'{field}' is loaded from \.inter and would become a f"):
        Prepared(folder).check_leaks()


def test_unreadable_settings_of_a_folder(copied) -> None:
    folder = copied("user_cold_5")
    (folder / "recbole.yaml").write_text("load_col: [", encoding="utf-8")
    repair(folder)
    with pytest.raises(SettingError, match=r"Cannot read the settings file .*recbole\.yaml"):
        Prepared(folder).check_leaks()


def test_query_rows_of_a_user_who_is_no_task(copied) -> None:
    folder = copied("user_cold_5")
    about = describe(folder)
    tasks = about["tasks"] | {"test": about["tasks"]["test"][1:]}
    repair(folder, tasks=tasks)
    with pytest.raises(LeakError, match=r"the users of 'test' are not its tasks\."):
        Prepared(folder).check_leaks()


def test_a_task_without_a_query(copied) -> None:
    folder = copied("user_cold_5")
    user = describe(folder)["tasks"]["test"][0]
    path = folder / f"{folder.name}.test.inter"
    kept = [
        row for row in path.read_text(encoding="utf-8").split("\n") if row.split("\t")[0] != user
    ]
    path.write_text("\n".join(kept), encoding="utf-8")
    repair(folder)
    with pytest.raises(LeakError, match=r"the users of 'test' are not its tasks\."):
        Prepared(folder).check_leaks()


def test_a_phase_without_a_query(copied) -> None:
    folder = copied("user_cold_5")
    plant(folder, "valid", lambda rows: rows.clear())
    with pytest.raises(DataError, match=r"phase 'valid' has no query row\."):
        Prepared(folder).check_leaks()


def one_byte(folder: Path) -> None:
    path = folder / f"{folder.name}.test.inter"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        about = describe(folder)
        change(about)
        (folder / "protocol.json").write_text(json.dumps(about), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "changed"),
    [
        (one_byte, r"[^ ]*\.test\.inter"),
        (edit(lambda about: about["settings"].update(split=1)), r"protocol\.json"),
        (edit(lambda about: about["tasks"]["test"].pop()), r"protocol\.json"),
        (edit(lambda about: about["outputs"].pop(".test.inter")), r"protocol\.json"),
        (edit(lambda about: about.pop("sha256")), r"protocol\.json"),
        (lambda folder: (folder / f"{folder.name}.item").unlink(), r"[^ ]*\.item"),
        (lambda folder: (folder / "recbole.yaml").unlink(), r"recbole\.yaml"),
    ],
)
def test_a_folder_changed_by_hand_is_refused(copied, spoil, changed: str) -> None:
    folder = copied("user_cold_5")
    Prepared(folder)
    spoil(folder)
    with pytest.raises(LeakError, match=rf"was changed by hand: {changed} differ from what was w"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is not a prepared folder: .*No such file"),
        (b"{", r"is not a prepared folder: "),
        (b"\x80", r"is not a prepared folder: .*decode"),
        (b"[]", r"is not a prepared folder: no mapping in protocol\.json"),
        (b'{"format": 0}', r"has format 0, this version reads 1: delete the folder and prepare"),
        (b"{}", r"has format None, this version reads 1"),
    ],
)
def test_what_is_no_prepared_folder_is_refused(tmp_path, content, message: str) -> None:
    if content is not None:
        (tmp_path / "protocol.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_prepared(tmp_path)


def test_a_folder_is_opened_once(folders, monkeypatch) -> None:
    folder = folders["user_cold_5"]
    prepared = open_prepared(folder)
    monkeypatch.setattr(Prepared, "__init__", lambda *_: pytest.fail("read again"))
    assert open_prepared(str(folder)) is prepared
    assert open_prepared(os.path.relpath(folder)) is prepared
    monkeypatch.undo()
    assert open_prepared(folders["user_cold_curve"]) is not prepared


def test_the_first_look_is_at_leaks(copied) -> None:
    folder = copied("user_cold_5")
    query = lines(folder, "test")[0]
    plant(folder, "train", lambda rows: rows.append(query))
    with pytest.raises(LeakError, match=r"query pairs of 'test'"):
        open_prepared(folder)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_are_those_of_the_files(folders, protocol: str) -> None:
    folder = folders[protocol]
    prepared = Prepared(folder)
    rows, expected = prepared.rows("test"), lines(folder, "test")
    assert rows["user"].tolist() == [row[0] for row in expected]
    assert rows["item"].tolist() == [row[1] for row in expected]
    assert rows["time"].tolist() == [float(row[3]) for row in expected]
    seen: dict[str, int] = {}
    for user, position in zip(rows["user"], rows["position"]):
        assert position == seen.get(user, 0)
        seen[user] = position + 1
    if protocol == "user_cold_5_label":
        assert rows["target"].tolist() == [float(float(row[2]) >= 4) for row in expected]
    elif protocol == "user_cold_5_rating":
        assert rows["target"].tolist() == [float(row[2]) for row in expected]
    else:
        assert "target" not in rows


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("phase", ["valid", "test"])
def test_support_is_what_the_training_file_knows_of_a_task(folders, protocol, phase) -> None:
    prepared = Prepared(folders[protocol])
    tasks = set(prepared.tasks(phase))
    for k in prepared.shots:
        support = prepared.support(phase, k)
        rows = prepared.rows(prepared.train_name(phase, k))
        columns = ["user", "item"]
        mine = rows.loc[rows["user"].isin(tasks), columns]
        assert support[columns].to_numpy().tolist() == mine.to_numpy().tolist()
        assert len(support) == k * len(tasks)


def test_a_zero_shot_folder_has_an_empty_reserve(folders) -> None:
    prepared = open_prepared(folders["user_cold_first"])
    assert prepared.shots == (0,) and prepared.query_start == 0
    assert len(prepared.early_rows("test")) == len(prepared.support("test", 0)) == 0
    assert list(prepared.early_rows("test").columns) == ["user", "item", "time", "position"]


def test_a_curve_has_one_query_for_all_shots(folders) -> None:
    prepared = Prepared(folders["user_cold_curve"])
    n_cold = len(prepared.cold_tasks("test"))
    sizes = np.array([len(prepared.rows(f"train_{k}")) for k in prepared.shots])
    assert (sizes - sizes[0]).tolist() == [k * n_cold for k in prepared.shots]
    assert [prepared.train_name(phase, 3) for phase in ("valid", "test")] == ["train_3"] * 2
    for phase in ("valid", "test"):
        early, late = prepared.early_rows(phase), prepared.rows(phase)
        assert len(early) == 10 * len(prepared.tasks(phase))
        assert not set(zip(early["user"], early["item"])) & set(zip(late["user"], late["item"]))


def test_who_is_cold_where(folders) -> None:
    """Where both phases share a file all its tasks are cold; global refits with valid's users."""
    for name in PROTOCOLS:
        prepared = Prepared(folders[name])
        valid, test = (set(prepared.tasks(phase)) for phase in ("valid", "test"))
        both = valid | test
        cold = (valid, test) if name == "user_cold_global" else (both, both)
        assert (prepared.cold_tasks("valid"), prepared.cold_tasks("test")) == cold
        for phase, users in zip(("valid", "test"), cold):
            warm = prepared.warm_rows(phase)
            train = prepared.rows(prepared.train_name(phase, prepared.shots[-1]))
            assert len(warm) == (~train["user"].isin(users)).sum() > 0
    assert set(prepared.warm_rows("test")["user"]) & valid


def test_candidates_are_the_catalogue_or_what_warm_users_had(make_world) -> None:
    """i9 is had by one user alone, who is cold in some split and warm in another."""
    rows = [(f"u{u:02}", f"i{i}", 5, 10 * u + i) for u in range(20) for i in range(6)]
    rows.append(("u00", "i9", 5, 6))
    curve = dict(shots=[0, 1], reserve=1, horizon=2, eligible=4)
    whole = {f"i{i}" for i in (0, 1, 2, 3, 4, 5, 9)}
    seen = set()
    for split in range(5):
        prepared = make_world(rows, "user_cold_curve", split=split, **curve)
        cold = "u00" in prepared.cold_tasks("test")
        assert prepared.candidates("test") == (whole - {"i9"} if cold else whole)
        assert set(prepared.catalogue) == whole
        seen.add(cold)
    assert seen == {True, False}
    prepared = make_world(rows, "user_cold_5", folds=5, split=split, shots=1)
    assert prepared.candidates("test") == whole and prepared.query_start == 1
