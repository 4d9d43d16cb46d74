"""Prepared folders: same inputs same bytes, whole or not at all, and a message for bad input."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from recbole_meta.compat import contained, recbole_config, recbole_model
from recbole_meta.data import folders
from recbole_meta.data.folders import sha256
from recbole_meta.data.prepare import content_key, prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.source import find_dataset, read_fields
from recbole_meta.errors import DataError, SettingError

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def world(n_users: int = 20, n_items: int = 6) -> list[str]:
    """Every user has every item; ratings 1..5, one row a second."""
    return [
        f"u{u}\ti{i}\t{1 + (u + i) % 5}\t{1000 * u + i}"
        for u in range(n_users)
        for i in range(n_items)
    ]


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """``write(lines, header, name, item=..)``: a data set; ``ml-100k``'s page names a rating."""

    def make(lines, header: str = HEADER, name: str = "ml-100k", **sides: str) -> Path:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join([header, *lines]) + "\n"
        (folder / f"{name}.inter").write_bytes(text.encode())
        for side, content in sides.items():
            (folder / f"{name}.{side}").write_text(content, encoding="utf-8")
        return folder.parent

    return make


def made(data: Path, protocol: str = "user_cold_5", name: str = "ml-100k", **settings) -> Path:
    return prepare(name, read_protocol(protocol, **settings), protocol, data, data / "prepared")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def frame(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{folder.name}.{name}", sep="\t", dtype=str, na_filter=False)


def whole(root: Path) -> list[str]:
    """What lies in the folder of prepared folders, without the locks."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_same_inputs_and_settings_give_the_same_bytes(sample_path, tmp_path) -> None:
    protocol = read_protocol("user_cold_curve")
    one, two = (
        prepare("tiny", protocol, "user_cold_curve", sample_path, tmp_path / n) for n in "ab"
    )
    assert one != two and one.name == two.name
    assert contents(one) == contents(two)
    assert re.fullmatch(r"tiny-user_cold_curve-[0-9a-f]{8}", one.name)
    names = ["reserved", "valid", "test", *(f"train_{k}" for k in (0, 1, 3, 5, 10))]
    files = {f"{one.name}.{name}.inter" for name in names}
    sides = {f"{one.name}.user", f"{one.name}.item"}
    assert set(contents(one)) == files | sides | {"recbole.yaml", "protocol.json"}


def test_no_work_is_done_twice(sample_path, tmp_path, monkeypatch) -> None:
    protocol = read_protocol("user_cold_5")
    folder = prepare("tiny", protocol, "user_cold_5", sample_path, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(folders, "_write_whole", lambda *_: pytest.fail("made again"))
    assert prepare("tiny", protocol, "user_cold_5", sample_path, tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_bytes_or_names_are_another_folder(write) -> None:
    data = write(world())
    folders = {made(data), made(data, seed=1), made(data, shots=2), made(data, order="random")}
    folders.add(made(data, "user_cold_5_rating"))
    write(world()[::-1])  # the same rows, other bytes
    folders.add(made(data))
    write(world()[::-1], item="item_id:token\trelease_year:token\tclass:token_seq\ni0\t1\ta\n")
    folders.add(made(data))
    assert len(folders) == len({folder.name[-8:] for folder in folders}) == 7
    assert whole(data / "prepared") == sorted(folder.name for folder in folders)


def test_published_folders_keep_their_names(ml100k) -> None:
    """Who prepared ml-100k with an earlier version finds the same folder with this one."""
    sources = [ml100k / f"ml-100k.{suffix}" for suffix in ("inter", "user", "item")]
    inputs = {path.name: sha256(path.read_bytes()) for path in sources}
    published = {
        "user_cold_curve": "f99d750c",
        "user_cold_global": "7a72fe15",
        "user_cold_5": "b1a2bcb3",
    }
    for name, key in published.items():
        assert content_key("ml-100k", read_protocol(name), read_fields("ml-100k"), inputs) == key


@pytest.mark.parametrize("protocol", ["user_cold_curve", "user_cold_global", "user_cold_5_label"])
def test_the_order_of_the_lines_changes_no_file(sample_path, tmp_path, protocol: str) -> None:
    shutil.copytree(sample_path / "tiny", tmp_path / "tiny")
    for path in (tmp_path / "tiny").iterdir():
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([header, *rows[::-1]]) + "\n", encoding="utf-8")
    one, other = (
        prepare("tiny", read_protocol(protocol), protocol, data, tmp_path / "prepared")
        for data in (sample_path, tmp_path)
    )
    assert one != other
    made_of = [
        {name.removeprefix(folder.name): content for name, content in contents(folder).items()}
        for folder in (one, other)
    ]
    for name in made_of[0].keys() - {"recbole.yaml", "protocol.json"}:
        assert made_of[0][name] == made_of[1][name], name


RACER = """
import sys, time
from pathlib import Path
from recbole_meta.data import folders, prepare as module
data, root = map(Path, sys.argv[1:])
write_whole = folders._write_whole
def slowly(*args):
    print("wrote")
    time.sleep(0.3)
    write_whole(*args)
folders._write_whole = slowly
protocol = module.read_protocol("user_cold_5")
print("ready", flush=True)
sys.stdin.readline()
print(module.prepare("tiny", protocol, "user_cold_5", data, root).name)
"""


def python(code: str, *args: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )


def test_two_processes_at_once_make_one_folder(sample_path, tmp_path) -> None:
    racers = [python(RACER, sample_path, tmp_path / "both") for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    alone = prepare("tiny", read_protocol("user_cold_5"), "user_cold_5", sample_path, tmp_path)
    assert sorted(said) == [[alone.name], ["wrote", alone.name]]
    assert whole(tmp_path / "both") == [alone.name]
    assert contents(tmp_path / "both" / alone.name) == contents(alone)


KILLED = """
import os, signal, sys
from pathlib import Path
from recbole_meta.data import atomic, folders, prepare as module
data, root = map(Path, sys.argv[1:])
write_file = atomic.write_file
def killed(path, text):
    write_file(path, text[:100])
    if path.suffix == ".item":
        os.kill(os.getpid(), signal.SIGKILL)
atomic.write_file = folders.write_file = killed
module.prepare("tiny", module.read_protocol("user_cold_5"), "user_cold_5", data, root)
"""


def test_what_a_killed_writer_left_does_not_matter(sample_path, tmp_path) -> None:
    protocol = read_protocol("user_cold_5")
    clean = prepare("tiny", protocol, "user_cold_5", sample_path, tmp_path / "clean")
    root = tmp_path / "killed"
    assert python(KILLED, sample_path, root).wait(timeout=60) == -signal.SIGKILL
    assert whole(root) == [f".{clean.name}.tmp"]
    (root / clean.name).mkdir()  # no folder, as it has no protocol.json
    (root / clean.name / "junk").write_text("half", encoding="utf-8")
    folder = prepare("tiny", protocol, "user_cold_5", sample_path, root)
    assert contents(folder) == contents(clean)
    assert whole(root) == [clean.name]


@pytest.mark.parametrize("files_that_fit", [0, 2, 6])
def test_a_full_disk_leaves_nothing(
    sample_path, tmp_path, monkeypatch, full_disk, files_that_fit
) -> None:
    protocol = read_protocol("user_cold_5")
    calls = full_disk(files_that_fit)
    name = r"tiny-user_cold_5-[0-9a-f]{8}"
    with pytest.raises(DataError, match=rf"Cannot write the prepared folder .*/{name}: .*No space"):
        prepare("tiny", protocol, "user_cold_5", sample_path, tmp_path)
    assert len(calls) == files_that_fit + 1 and whole(tmp_path) == []
    monkeypatch.undo()
    open_prepared(prepare("tiny", protocol, "user_cold_5", sample_path, tmp_path))


def test_a_file_where_the_folder_should_be_is_named(write, tmp_path) -> None:
    data = write(world())
    (data / "prepared").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"Cannot write the prepared folder .*/prepared/ml-100k-"):
        made(data)


def test_sides_are_cut_to_the_catalogue(write) -> None:
    """A row with rating 0 leaves first; its item leaves the catalogue, and i5 stands nowhere."""
    rows = [
        *world(n_items=5),
        *(f"u{u}\ti5\t3\t{1000 * u + 5}" for u in range(20)),
        "u0\tgone\t0\t1",
    ]
    item = "year:float\titem_id:token\tgenre:token_seq\n"
    item += "".join(f"199{i}\ti{i}\ta b\n" for i in (3, 1, 0, 2, 4)) + "1999\tgone\ta\n"
    user = "user_id:token\tage:token\nu3\t33\nu99\t99\n"
    data = write(rows, name="made", item=item, user=user)
    folder = made(data, name="made", threshold={"rating": 1})
    items = (folder / f"{folder.name}.item").read_text(encoding="utf-8").split("\n")
    assert items == [
        "year:float\titem_id:token\tgenre:token_seq",
        *(f"199{i}\ti{i}\ta b" for i in range(5)),
        "\ti5\t",
        "",
    ]
    users = frame(folder, "user")
    assert users["user_id:token"].tolist() == sorted(f"u{u}" for u in range(20))
    assert users.set_index("user_id:token")["age:token"].to_dict() == {
        f"u{u}": "33" if u == 3 else "" for u in range(20)
    }
    assert open_prepared(folder).catalogue == [f"i{i}" for i in range(6)]


def test_sides_without_a_source_list_the_tokens(write) -> None:
    folder = made(write(world()))
    assert (folder / f"{folder.name}.item").read_text(encoding="utf-8") == "\n".join(
        ["item_id:token", *(f"i{i}" for i in range(6)), ""]
    )


def test_threshold_drops_rows_before_anything_is_counted(sample_path, tmp_path) -> None:
    source = pd.read_csv(sample_path / "tiny" / "tiny.inter", sep="\t")
    liked = source[source["rating:float"] >= 4]
    protocol = read_protocol("user_cold_5", threshold={"rating": 4})
    folder = prepare("tiny", protocol, "user_cold_5", sample_path, tmp_path)
    parts = [frame(folder, f"{name}.inter") for name in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(liked) < len(source)
    assert pd.concat(parts)["rating:float"].astype(float).min() == 4
    cold, train = set(parts[2]["user_id:token"]), parts[0]
    for user, rows in liked[liked["user_id:token"].isin(cold)].groupby("user_id:token"):
        first = rows.nsmallest(5, "timestamp:float", keep="all")["item_id:token"]
        mine = train.loc[train["user_id:token"] == user, "item_id:token"]
        assert len(mine) == 5 and set(mine) <= set(first)
    about = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    assert about["counts"]["rows"] == len(liked)
    assert about["counts"]["eligible_users"] == int(
        (liked["user_id:token"].value_counts() >= 6).sum()
    )


def test_the_label_column_is_the_rating_cut(write) -> None:
    rows = world()
    changes = dict(threshold={"rating": 2}, label={"rating": 4}, shots=2)
    folder = made(write(rows), "user_cold_5_label", **changes)
    found = []
    for name in ("train", "valid", "test"):
        part = (folder / f"{folder.name}.{name}.inter").read_text(encoding="utf-8").split("\n")
        assert part[0] == f"{HEADER}\tlabel:float" and part[-1] == ""
        found += part[1:-1]
    kept = [(row, int(row.split("\t")[2])) for row in rows if int(row.split("\t")[2]) >= 2]
    assert sorted(found) == sorted(f"{row}\t{int(rating >= 4)}" for row, rating in kept)


def test_a_byte_order_mark_and_windows_line_ends_are_read(write) -> None:
    data = write(world())
    clean = made(data)
    path = data / "ml-100k" / "ml-100k.inter"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    again = made(data)
    assert again != clean
    for name in ("train.inter", "valid.inter", "test.inter", "user", "item"):
        assert (again / f"{again.name}.{name}").read_bytes() == (
            clean / f"{clean.name}.{name}"
        ).read_bytes()


@pytest.mark.parametrize("protocol", ["user_cold_5", "user_cold_curve", "user_cold_5_label"])
def test_plain_recbole_reads_the_folder(sample_path, tmp_path, protocol: str) -> None:
    folder = prepare("tiny", read_protocol(protocol), protocol, sample_path, tmp_path)
    about = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    label = protocol.endswith("label")
    with contained():
        from recbole.data import create_dataset, data_preparation

        model = recbole_model("FM" if label else "BPR")
        config = recbole_config(
            model, folder.name, [folder / "recbole.yaml"], {"data_path": str(tmp_path)}
        )
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
    assert (dataset.user_num, dataset.item_num) == (61, 41)  # with the padding
    train = {"user_cold_curve": "train_10"}.get(protocol, "train")
    for loader, name in zip(loaders, (train, "valid", "test"), strict=True):
        read, expected = loader._dataset, frame(folder, f"{name}.inter")
        assert read.inter_num == len(expected) == about["counts"]["rows_of"][name] > 0
        for field in ("user_id", "item_id"):
            tokens = read.id2token(field, read.inter_feat[field].numpy())
            assert sorted(tokens) == sorted(expected[f"{field}:token"])
        if name != train:
            users = set(read.id2token("user_id", read.inter_feat["user_id"].numpy()))
            assert users == set(about["tasks"][name])
        assert ("label" in read.inter_feat) == label
        assert "rating" not in read.inter_feat and "timestamp" not in read.inter_feat
        if label:
            assert read.inter_feat["label"].sum() == expected["label:float"].astype(int).sum()


def test_three_blocks_of_ml100k_judge_283_users(ml100k, tmp_path) -> None:
    tasks = []
    for block in (8, 9, 10):
        protocol = read_protocol("user_cold_global", split=block)
        folder = prepare("ml-100k", protocol, "user_cold_global", ml100k.parent, tmp_path)
        prepared = open_prepared(folder)
        tasks += prepared.tasks("test")
        assert prepared.description["counts"]["rows"] == 100_000
    assert len(tasks) == len(set(tasks)) == 283


@pytest.mark.data
def test_ml1m_without_folds(data_path, tmp_path) -> None:
    protocol = read_protocol("user_cold_curve_all", order="random", folds=0)
    folder = prepare("ml-1m", protocol, "user_cold_curve_all", data_path, tmp_path)
    about = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    counts = {name: about["counts"][name] for name in ("rows", "items", "eligible_users")}
    assert counts == {"rows": 1_000_209, "items": 3_706, "eligible_users": 6_040}
    assert (len(about["tasks"]["test"]), len(about["tasks"]["valid"])) == (1_208, 604)


@pytest.mark.data
def test_lastfm_has_no_times(data_path, tmp_path) -> None:
    protocol = read_protocol("user_cold_curve")
    message = r"order 'time' needs the field 'time', and lastfm\.inter has none\."
    with pytest.raises(DataError, match=message):
        prepare("lastfm", protocol, "user_cold_curve", data_path, tmp_path)
    assert whole(tmp_path) == []


# --- bad input ---------------------------------------------------------------------------------


def test_a_missing_data_set_gets_the_nearest(write) -> None:
    data = write(world(), name="books")
    with pytest.raises(DataError, match=r"No file book\.inter in .*data/book\. Did you mean 'boo"):
        find_dataset("book", data)
    with pytest.raises(DataError, match=r"Did you mean 'ml-100k'\? 'data_path' says where"):
        find_dataset("ml-100", data)
    with pytest.raises(DataError, match=r"Allowed: books, ml-100k\."):
        find_dataset("zzz", data)


def test_the_own_data_set_comes_before_recboles(write, ml100k) -> None:
    data = write(world())
    assert find_dataset("ml-100k", data) == data / "ml-100k"
    assert find_dataset("ml-100k", data / "elsewhere") == ml100k


def test_a_page_beside_the_data_names_its_columns(tmp_path, make_world) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    page = source / "mine.yaml"
    page.write_text("user: who\nitem: what\nrating: stars\ntime: when\n", encoding="utf-8")
    found = read_fields("mine", source)
    assert (found.user, found.item, found.rating, found.time) == ("who", "what", "stars", "when")
    assert found.user_features == found.item_features == ()
    rows = [f"u{u}\ti{i}\t{1 + (u + i) % 5}\t{i}" for u in range(30) for i in range(8)]
    header = "who:token\twhat:token\tstars:float\twhen:float"
    (source / "mine.inter").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    made = prepare("mine", read_protocol("user_cold_5_rating"), "r", tmp_path, tmp_path / "p")
    assert open_prepared(made).fields == found
    page.write_text("user: who\nitm: what\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"mine\.yaml: unknown setting 'itm'"):
        read_fields("mine", source)


def test_ratings_without_a_field_say_where_to_name_it(tmp_path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    rows = [f"u{u}\ti{i}\t3\t{i}" for u in range(30) for i in range(8)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (source / "mine.inter").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"write 'rating: <field>' into .*mine\.yaml"):
        prepare("mine", read_protocol("user_cold_5_rating"), "r", tmp_path, tmp_path / "p")


def test_a_data_set_without_a_page_has_the_default_one() -> None:
    assert read_fields("no-such-page") == read_fields("default")
    assert read_fields("ml-100k").rating == "rating" and read_fields("default").rating is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("user_cold_globl", {}, r"Unknown protocol 'user_cold_globl'\. Did you mean 'user_cold_g"),
        ("user_cold_5", {"kind": "user_cold"}, r"unknown kind 'user_cold'\. Did you mean 'user_c"),
        ("user_cold_5", {"shot": 5}, r"'user_cold_5': unknown setting 'shot'\. Did you mean 'sho"),
        ("user_cold_5", {"order": "tine"}, r"'order' is 'tine'\. Did you mean 'time'\?"),
        ("user_cold_5", {"seed": -1}, r"'seed' and 'split' start at 0, found -1, 0\."),
        ("user_cold_5", {"folds": 2, "split": 2}, r"'split' must be below folds 2, found 2\."),
        ("user_cold_5", {"label": {"rating": 4}}, r"none otherwise; found \{'rating': 4\.0\}"),
        ("user_cold_curve", {"shots": [0, 11]}, r"'shots' 11 is larger than reserve 10\."),
        ("user_cold_curve", {"eligible": 19}, r"'eligible' is 19, .*reserve \+ horizon = 20"),
        ("user_cold_curve", {"split": 5}, r"'split' must be below folds 5, found 5\."),
        ("user_cold_global", {"split": 11}, r"judged block, 3 to 10 \(blocks\), found 11\."),
    ],
)
def test_protocols_that_cannot_be_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_protocol(name, **settings)


def changed(line: int, old: str, new: str) -> list[str]:
    """The world with a change in one line of the file (the header is line 1)."""
    rows = world()
    assert old in rows[line - 2]
    rows[line - 2] = rows[line - 2].replace(old, new, 1)
    return rows


RATING = dict(protocol="user_cold_5_rating")
LABEL = dict(protocol="user_cold_5_label")
NO_TIME = HEADER.replace("timestamp", "timestmp")
BAD = [
    (changed(4, "\t2", "\tNaN"), {}, r"line 4: 'timestamp' is 'NaN', not a finite number \(.* 1 l"),
    (changed(9, "\t1001", "\tnoon"), {}, r"line 9: 'timestamp' is 'noon', not a finite number"),
    (changed(9, "\t1001", "\tinf"), {}, r"line 9: 'timestamp' is 'inf', not a finite number"),
    (changed(9, "\t1001", "\t"), {}, r"line 9: 'timestamp' is '', not a finite number"),
    (changed(2, "\t1\t", "\tgood\t"), RATING, r"line 2: 'rating' is 'good', not a finite number"),
    (changed(2, "\t1\t", "\tnan\t"), LABEL, r"line 2: 'rating' is 'nan', not a finite number"),
    (changed(3, "\t2\t", "\t\t"), dict(threshold={"rating": 1}), r"line 3: 'rating' is '', not a"),
    (
        changed(6, "i4", "i3"),
        {},
        r"line 6: user 'u0' and item 'i3' stand there twice \(1 dupl.*--duplicates=first or --dup",
    ),
    (world(), dict(threshold={"ratng": 1}), r"inter has no column 'ratng'\. Did you mean 'rating'"),
    (world(), LABEL | dict(label={"rate": 1}), r"has no column 'rate'\. Did you mean 'rating'"),
    (
        world(),
        LABEL | dict(label={"rating": 9}),
        r"label rating >= 9\.0 has one class only in ml-1",
    ),
    (world(), LABEL | dict(label={"rating": 1}), r"label rating >= 1\.0 has one class only"),
    (
        world(),
        LABEL | dict(label={"rating": 4}, threshold={"rating": 4}),
        r"label rating >= 4\.0 has one class only",
    ),
    (world(), dict(threshold={"rating": 6}), r"no row passes threshold \{'rating': 6\.0\}"),
    (world(), dict(shots=50), r"No user has the 51 rows .*: the longest history has 6\."),
    (world(4), {}, r"4 eligible users are too few for valid and test users: no query\."),
    (changed(5, "u0", ""), {}, r"line 5: 'user_id' is empty\."),
    (changed(5, "i3", ""), {}, r"line 5: 'item_id' is empty\."),
    (
        changed(5, "i3", "NA"),
        {},
        r"line 5: 'item_id' is 'NA', which RecBole cannot read as a token",
    ),
    (changed(5, "i3", "[PAD]"), {}, r"line 5: 'item_id' is '\[PAD\]', which RecBole cannot read"),
    (changed(5, "i3", '"i3'), {}, r"line 5: a field opens with a quotation mark that is not clos"),
    (changed(5, "i3", '"i3"'), {}, r"""line 5: 'item_id' is '"i3"', which RecBole cannot read"""),
    (changed(5, "i3", "i\r3"), {}, r"line 5 has a carriage return inside"),
    (
        changed(5, "i3", "i\0003"),
        {},
        r"ml-100k\.inter, line 5 has a NUL byte inside: 'u0\\ti\\x003",
    ),
    (
        changed(5, "i3\t", "i3"),
        {},
        r"line 5 has 3 tab-separated fields, the first line names 4: 'u",
    ),
    (changed(5, "i3", "i3\ti3"), {}, r"line 5 has 5 tab-separated fields, the first line names 4"),
    ([world()[0], "", *world()[1:]], {}, r"line 3 has 1 tab-separated fields"),
    ([], {}, r"ml-100k\.inter has no rows\."),
]


@pytest.mark.parametrize(("lines", "settings", "message"), BAD)
def test_bad_rows_are_named(write, lines: list[str], settings: dict, message: str) -> None:
    data = write(lines)
    with pytest.raises(DataError, match=message):
        made(data, **settings)
    assert whole(data / "prepared") == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("user_id", "usr_id"), r"no column 'user_id'\. Did you mean 'usr_id'\?"),
        (HEADER.replace("item_id", "item"), r"no column 'item_id'\. Did you mean 'item'\?"),
        (NO_TIME, r"order 'time' needs .* mean 'timestmp'\? Without times: --order random\."),
        ("user_id\titem_id\trating\ttimestamp", r"fields as 'name:type', found 'user_id'\."),
        ("196\t242\t3\t881250949", r"fields as 'name:type', found '196'\."),
        (
            HEADER.replace("rating:float", "rating:int"),
            r"'rating' has type 'int'\. Allowed: float,",
        ),
        (HEADER.replace(":token", ":tokn"), r"'user_id' has type 'tokn'\. Did you mean 'token'\?"),
        (HEADER.replace("rating", "item_id"), r"the first line names 'item_id' twice\."),
        (
            HEADER.replace("user_id:token", "user_id:token_seq"),
            r"ml-100k\.inter: field 'user_id' has type 'token_seq', must be 'token': 'user_id:t",
        ),
        (HEADER.replace("item_id:token", "item_id:float"), r"'item_id' has type 'float', must be"),
        (HEADER.replace("timestamp:float", "timestamp:token"), r"'timestamp' has type 'token', mu"),
    ],
)
def test_bad_headers_are_named(write, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(write(world(), header))


@pytest.mark.parametrize("protocol", ["user_cold_5_rating", "user_cold_5_label"])
def test_a_rating_must_be_a_float(write, protocol: str) -> None:
    """RecBole would number the tokens, and a model would learn the numbers."""
    data = write(world(), HEADER.replace("rating:float", "rating:token"))
    message = r"ml-100k\.inter: field 'rating' has type 'token', must be 'float': 'rating:float' in"
    with pytest.raises(DataError, match=message):
        made(data, protocol)
    made(data)  # a ranking does not read it
    with pytest.raises(DataError, match=message):
        made(data, threshold={"rating": 2})


def test_a_column_named_label_is_refused(write) -> None:
    lines = [f"{line}\t1" for line in world()]
    data = write(lines, f"{HEADER}\tlabel:float")
    with pytest.raises(DataError, match=r"has a column 'label' already: give it another name\."):
        made(data, "user_cold_5_label")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_named(write, content: bytes) -> None:
    data = write(world())
    (data / "ml-100k" / "ml-100k.inter").write_bytes(content)
    with pytest.raises(DataError, match=r"ml-100k\.inter: the first line must name fields"):
        made(data)


def test_a_file_that_is_no_text_is_named(write) -> None:
    data = write(world())
    (data / "ml-100k" / "ml-100k.inter").write_bytes(b"\x80\x81\n")
    with pytest.raises(DataError, match=r"ml-100k\.inter is not UTF-8: "):
        made(data)


def test_a_file_that_cannot_be_read_is_named(write, monkeypatch) -> None:
    data = write(world(), item="item_id:token\n")
    read_bytes = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.suffix == ".item":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DataError, match=r"Cannot read the data set .*/ml-100k: .*ml-100k\.item"):
        made(data)


def test_a_rating_is_needed_for_ratings(write) -> None:
    with pytest.raises(DataError, match=r"feedback 'rating' needs a rating field, and the data s"):
        made(write(world(), name="made"), "user_cold_5_rating", name="made")


def test_side_files_must_have_their_columns(write) -> None:
    no_id = write(world(), item="item:token\trelease_year:token\tclass:token_seq\ni0\t1\ta\n")
    with pytest.raises(
        DataError, match=r"ml-100k\.item has no column 'item_id'\. Did you mean 'it"
    ):
        made(no_id)
    no_class = write(world(), item="item_id:token\trelease_year:token\tclas:token_seq\ni0\t1\ta\n")
    with pytest.raises(
        DataError, match=r"ml-100k\.item has no column 'class'\. Did you mean 'clas"
    ):
        made(no_class)
    assert whole(no_class / "prepared") == []
    item = "item_id:float\trelease_year:token\tclass:token_seq\n0\t1\ta\n"
    with pytest.raises(DataError, match=r"ml-100k\.item: field 'item_id' has type 'float', must"):
        made(write(world(), item=item))


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (
            "float",
            "old",
            r"ml-100k\.item, line 3: 'release_year' is 'old', which is no 'float' of f",
        ),
        ("float", "inf", "'inf'"),
        ("float", "1 2", "'1 2'"),
        (
            "float_seq",
            "1 2 b",
            r"line 3: 'release_year' is '1 2 b', which is no 'float_seq' of fin",
        ),
        ("float_seq", "1 nan", "'1 nan'"),
        ("float", "", None),
        ("float", "NaN", None),
        ("float", "1e3", None),
        ("float_seq", "1  2.5", None),
        ("float_seq", "", None),
        ("token", "old", None),
        ("token_seq", "old old", None),
    ],
)
def test_a_feature_of_numbers_holds_numbers(write, kind: str, value: str, said) -> None:
    """Or nothing, as RecBole reads it; columns that are no feature may hold anything."""
    item = f"item_id:token\trelease_year:{kind}\tclass:token_seq\tbudget:float\n"
    data = write(world(), item=item + f"i0\t1\ta\t5\ni1\t{value}\tb\tlarge\n")
    if said is None:
        made(data)
        return
    with pytest.raises(DataError, match=said):
        made(data)
    assert whole(data / "prepared") == []


def test_an_item_stands_once_or_twice_alike(write) -> None:
    item = "item_id:token\trelease_year:token\tclass:token_seq\ni0\t1\ta\ni1\t2\tb\n"
    folder = made(write(world(), item=item + "i0\t1\ta\n"))
    assert frame(folder, "item")["release_year:token"].tolist() == ["1", "2", "", "", "", ""]
    message = r"ml-100k\.item: 'item_id' is 'i0' in line 2 and in line 5, and they differ\."
    with pytest.raises(DataError, match=message):
        made(write(world(), item=item + "i2\t1\ta\ni0\t1\tb\n"))


# u0 rated i0 three times: first in the file but latest, then at once with two ratings.
TWICE = ["u0\ti0\t4\t50", *world(), "u0\ti0\t3\t0"]


@pytest.mark.parametrize(
    ("duplicates", "order", "kept"),
    [
        ("first", "time", "u0\ti0\t1\t0"),  # a tie in time: the smaller line
        ("last", "time", "u0\ti0\t4\t50"),
        ("first", "random", "u0\ti0\t1\t0"),
        ("last", "random", "u0\ti0\t4\t50"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_duplicates_stay_by_time(write, duplicates, order, kept, backwards) -> None:
    data = write(TWICE[::-1] if backwards else TWICE)
    folder = made(data, duplicates=duplicates, order=order)
    parts = [
        (folder / f"{folder.name}.{name}.inter").read_text(encoding="utf-8").split("\n")[1:-1]
        for name in ("train", "valid", "test")
    ]
    found = [line for part in parts for line in part]
    assert len(found) == 120
    assert [line for line in found if line.startswith("u0\ti0\t")] == [kept]


@pytest.mark.parametrize(("duplicates", "kept"), [("first", "4"), ("last", "3")])
def test_duplicates_without_times_stay_by_the_file(write, duplicates: str, kept: str) -> None:
    lines = [line.rsplit("\t", 1)[0] for line in TWICE]
    data = write(lines, HEADER.rsplit("\t", 1)[0])
    folder = made(data, duplicates=duplicates, order="random")
    rows = pd.concat([frame(folder, f"{name}.inter") for name in ("train", "valid", "test")])
    mine = rows[(rows["user_id:token"] == "u0") & (rows["item_id:token"] == "i0")]
    assert len(rows) == 120 and mine["rating:float"].tolist() == [kept]


def test_a_duplicate_below_the_threshold_is_none(write) -> None:
    folder = made(write([*world(), "u0\ti4\t1\t9"]), threshold={"rating": 2}, shots=2)
    rows = pd.concat([frame(folder, f"{name}.inter") for name in ("train", "valid", "test")])
    assert len(rows) == sum(int(row.split("\t")[2]) >= 2 for row in world())
