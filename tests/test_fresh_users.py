"""Gains on users who had no part in a choice: from a benchmark's files, against plain Python."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.errors import SettingError
from recbole_meta.sweep import run_benchmark

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "fresh_users.py"
CHANGED = {"order": "random", "shots": [0, 1, 3], "reserve": 4, "horizon": 5, "eligible": 12,
           "folds": 0}  # fmt: skip
PAGE = {
    "dataset": "tiny",
    "seed": 3,
    "trials": 1,
    "settings": [
        {"name": "random", "protocol": "user_cold_curve", "changed": CHANGED, "splits": [0, 1, 2]}
    ],
    "rows": [
        {"name": "Pop", "model": "Pop"},
        {"name": "Fold", "model": "ItemKNNFoldIn"},
        {"name": "Shrunk", "model": "ItemKNNFoldIn", "fixed": {"shrink": 1000.0}},
        {"name": "Ridge", "model": "PriorRidge"},
        {"name": "Episodes", "model": "EpisodicRidge"},
    ],
    "trained": {"searches": [], "shots": [], "rows": []},
}


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("fresh_users", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def where(program, tmp_path_factory, sample_path):
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "small.yaml").write_text(yaml.safe_dump(PAGE), "utf-8")
    data = str(sample_path), str(folder / "prepared")
    run_benchmark(str(folder / "small.yaml"), *data, folder / "runs")
    return [str(folder / "small.yaml"), "--data_path", data[0], "--prepared_path", data[1],
            "--runs", str(folder / "runs"), "--results", str(folder / "results")]  # fmt: skip


def judged(where, model, k):
    """user -> his values in the splits, from the files of the runs."""
    found: dict[str, list[float]] = {}
    runs = Path(where[6]) / "small" / "random"
    for path in sorted(runs.glob(f"*/runs/*/{model}-*k{k}/tasks.npz")):
        with np.load(path) as arrays:
            for user, value in zip(arrays["task"], arrays["ndcg@10"], strict=True):
                found.setdefault(str(user), []).append(float(value))
    return found


def named(where, models, k):
    """The best of these by the mean on valid over the splits, from the files of the runs."""
    runs = Path(where[6]) / "small" / "random"

    def valid(model):
        files = list(runs.glob(f"*/runs/*/{model}-*k{k}/result.json"))
        assert len(files) == 3
        found = [json.loads(file.read_text("utf-8"))["valid_metrics"]["ndcg@10"] for file in files]
        return np.mean(found)

    return max(models, key=valid)


def test_the_gain_is_of_the_users_whom_the_named_splits_have_not(program, where, capsys):
    program.main([*where, "--splits", "0"])
    rows = json.loads((Path(where[8]) / "small" / "fresh_users.json").read_text("utf-8"))
    assert [row["k"] for row in rows] == [1, 3], "without a support there is nothing to compare"
    protocol = read_protocol("user_cold_curve", **CHANGED, split=0)
    prepared = open_prepared(prepare("tiny", protocol, "user_cold_curve", where[2], where[4]))
    known = {*prepared.tasks("valid"), *prepared.tasks("test")}
    raw = []
    for row in rows:
        groups = ("Ridge", "Episodes"), ("Fold", "Shrunk")
        names = [named(where, models, row["k"]) for models in groups]
        assert [row["ours"], row["rule"]] == names
        ours, rule = (judged(where, model, row["k"]) for model in names)
        fresh = sorted(ours.keys() - known)
        assert 0 < len(fresh) < len(ours) and row["n_users"] == len(fresh)
        gain = [np.mean(ours[user]) - np.mean(rule[user]) for user in fresh]
        assert row["gain"] == pytest.approx(np.mean(gain), abs=5e-5)
        assert row["low"] <= row["gain"] <= row["high"]
        raw.append(stats.wilcoxon(np.round(gain, 12)).pvalue)
    assert raw[0] != raw[1]
    adjusted = {min(raw): min(1, 2 * min(raw)), max(raw): max(max(raw), min(1, 2 * min(raw)))}
    for row, p in zip(rows, raw, strict=True):
        assert row["p"] == pytest.approx(adjusted[p], rel=0.02)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and f"| {rows[0]['n_users']} | {rows[0]['gain']:+.4f} [" in said[2]


@pytest.mark.parametrize("splits", ["0,1,2", "4", "0,4"])
def test_splits_that_the_page_has_not_or_that_leave_none(program, where, splits):
    with pytest.raises(SettingError, match="must be some of them and not all"):
        program.main([*where, "--splits", splits])
