"""Groups of users: from a benchmark's files, against plain Python."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_meta.cli import main
from recbole_meta.groups import HISTORY, _cut, _joined, _labels

PAGE = {
    "dataset": "tiny",
    "seed": 3,
    "trials": 1,
    "settings": [
        {
            "name": "time",
            "protocol": "user_cold_curve",
            "changed": {"shots": [0, 2], "reserve": 4, "horizon": 5, "eligible": 12, "folds": 2},
            "splits": [0, 1],
        }
    ],
    "rows": [{"name": "Pop", "model": "Pop"}, {"name": "Ridge", "model": "PriorRidge"}],
    "trained": {
        "searches": [{"setting": "time", "split": 0, "shots": 2, "trials": 1}],
        "shots": [2],
        "rows": [],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample_path):
    folder = tmp_path_factory.mktemp("groups")
    page = folder / "small.yaml"
    page.write_text(yaml.safe_dump(PAGE), "utf-8")
    where = ["--prepared_path", str(folder / "prepared"), "--runs", str(folder / "runs")]
    data = ["--data_path", str(sample_path), "--processes", "1"]
    assert main(["benchmark", str(page), *where, *data]) == 0
    results = ["--results", str(folder / "results")]
    assert main(["groups", str(page), "--k", "2", *where, *results]) == 0
    return folder


def read(folder):
    return json.loads((folder / "results" / "small" / "groups.json").read_text("utf-8"))


def judged(folder, model):
    """user -> ndcg@10, from the files of the runs."""
    found = {}
    for path in sorted((folder / "runs" / "small" / "time").glob(f"*/runs/*/{model}-*k2")):
        with np.load(path / "tasks.npz") as arrays:
            found |= dict(zip(arrays["task"].tolist(), arrays["ndcg@10"].tolist(), strict=True))
    return found


def test_the_mean_and_the_gain_of_a_group_follow_from_the_files(folder, sample_path):
    lines = (sample_path / "tiny" / "tiny.user").read_text("utf-8").splitlines()[1:]
    gender = {user: g for user, _, g in (line.split("\t") for line in lines)}
    pop, ridge = judged(folder, "Pop"), judged(folder, "Ridge")
    rows = {(r["model"], r["field"], r["users"]): r for r in read(folder)}
    assert len(pop) == len(ridge) >= 40
    groups = {users for _, field, users in rows if field == "gender"}
    assert groups == {"F", "M"}
    for value in groups:
        mine = [user for user in ridge if gender[user] == value]
        row = rows["Ridge", "gender", value]
        assert row["n"] == len(mine)
        assert row["mean"] == pytest.approx(np.mean([ridge[u] for u in mine]), abs=5e-5)
        over = np.mean([ridge[u] - pop[u] for u in mine])
        assert row["gain"] == pytest.approx(over, abs=1e-4)
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert "gain" not in rows["Pop", "gender", value]


def test_histories_count_all_rows_of_a_user(folder, sample_path):
    inter = (sample_path / "tiny" / "tiny.inter").read_text("utf-8").splitlines()[1:]
    length = pd.Series([line.split("\t")[0] for line in inter]).value_counts()
    rows = [r for r in read(folder) if r["field"] == HISTORY and r["model"] == "Pop"]
    assert sum(row["n"] for row in rows) == len(judged(folder, "Pop"))
    spans = [row["users"] for row in rows if row["users"][0] != "("]
    assert spans
    for span in spans:
        low, high = (int(end) for end in (span.split(" to ") * 2)[:2])
        row = next(r for r in rows if r["users"] == span)
        assert row["n"] == sum(low <= length[user] <= high for user in judged(folder, "Pop"))


def test_a_k_that_no_run_has_is_refused(folder, capsys):
    name, runs = str(folder / "small.yaml"), str(folder / "runs")
    assert main(["groups", name, "--k", "3", "--runs", runs]) == 2
    assert "no finished run at k = 3, but at [0, 2]" in capsys.readouterr().err


def test_many_numbers_are_cut_at_quartiles_and_many_words_left_out():
    users = [f"u{i}" for i in range(60)]
    ages = pd.Series([str(i) for i in range(60)], index=users)
    cut = _cut(ages, False)
    assert _labels(cut) == ["0 to 14", "15 to 29", "30 to 44", "45 to 59"]
    assert cut["u14"] == "0 to 14" and cut["u15"] == "15 to 29"
    assert _cut("word" + ages, False) is None
    few = pd.Series([str(i % 3) for i in range(60)], index=users)
    assert set(_cut(few, False).values()) == {"0", "1", "2"}  # codes are words


def test_small_groups_stand_together_and_last():
    group_of = {f"u{i}": "a" if i < 30 else "b" if i < 40 else "c" for i in range(45)}
    joined = _joined(group_of)
    assert _labels(joined) == ["a", "(groups below 20 users)"]
    assert sum(g == "a" for g in joined.values()) == 30
