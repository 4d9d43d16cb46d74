"""A benchmark: what its file may say, and a sweep that is killed, shared, changed or failing."""

import io
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import yaml
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recbole_meta import judging, search, sweep
from recbole_meta.benchmark import Row
from recbole_meta.choice import choose_model, model_page
from recbole_meta.cli import main
from recbole_meta.errors import DataError, Diverged, RecboleMetaError, SettingError
from recbole_meta.fitting import fit_learner
from recbole_meta.judging import RowJudge
from recbole_meta.kept import keep, put_back
from recbole_meta.outcome import named_errors
from recbole_meta.progress import LOG, Log
from recbole_meta.quick_start import run
from recbole_meta.reading import read_benchmark
from recbole_meta.report import benchmark_table
from recbole_meta.study import Study
from recbole_meta.sweep import Sweep, run_benchmark
from recbole_meta.unit import Site, TimeUp, Unit

ROOT = Path(__file__).resolve().parents[1]
CURVE = {"shots": [0, 2], "reserve": 4, "horizon": 5, "eligible": 12}
PAGE = {
    "dataset": "tiny",
    "seed": 3,
    "trials": 3,
    "settings": [
        {"name": "time", "protocol": "user_cold_curve", "changed": CURVE, "splits": [0, 1]}
    ],
    "rows": [
        {"name": "Pop", "model": "Pop"},
        {
            "name": "PriorRidge on QueryPop",
            "model": "PriorRidge",
            "fixed": {"base": "query_pop"},
            "grid": {"embedding_size": [2, 16], "noise": [3.0, 0.3, 0.03]},
        },
    ],
    "trained": {
        "searches": [{"setting": "time", "split": 0, "shots": 2, "trials": 2}],
        "shots": [2],
        "rows": [
            {"name": "EASE", "model": "EASE", "grid": {"reg_weight": [1.0, 30.0, 100.0]}},
            {"name": "BPR", "model": "BPR", "fixed": {"epochs": 1, "embedding_size": 8}},
        ],
    },
}
N_UNITS = 2 + 2 * 2 + 2 * 2  # trials of EASE, our rows on two splits, RecBole's


def changed(**entries) -> dict:
    """A deep copy of the page with some entries replaced."""
    return json.loads(json.dumps(PAGE)) | entries


def write(folder: Path, page: dict, name: str = "small") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(page), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def prepared_path(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def go(sample_path, prepared_path):
    def go(file: str, runs: Path) -> None:
        run_benchmark(file, str(sample_path), prepared_path, runs)

    return go


@pytest.fixture(scope="module")
def done(tmp_path_factory, sample_path, prepared_path) -> Path:
    """The folder of a sweep that nothing disturbed; never written to by a test."""
    folder = tmp_path_factory.mktemp("done")
    run_benchmark(write(folder, PAGE), str(sample_path), prepared_path, folder / "runs")
    return folder / "runs" / "small"


def units_of(folder: Path) -> dict[str, dict]:
    """Name of a unit's file -> its content, without the seconds."""
    files = [path for path in folder.rglob("*.json") if path.name != "result.json"]
    found = {str(f.relative_to(folder)): json.loads(f.read_text("utf-8")) for f in files}
    return {name: {k: v for k, v in unit.items() if k != "seconds"} for name, unit in found.items()}


def results_of(folder: Path) -> dict[str, tuple]:
    """Name of a run's folder -> its result without the seconds, and its bytes of tasks.npz."""
    found = {}
    for path in folder.rglob("result.json"):
        result = json.loads(path.read_text("utf-8"))
        result.pop("seconds")
        name = str(path.parent.relative_to(folder))
        found[name] = result, (path.parent / "tasks.npz").read_bytes()
    return found


# What a file may say.


def test_a_benchmark_is_named_by_its_file(tmp_path):
    found = read_benchmark(write(tmp_path, PAGE, "mine"))
    assert (found.name, found.settings[0].dataset, found.seed) == ("mine", "tiny", 3)
    assert [row.name for row in found.rows] == ["Pop", "PriorRidge on QueryPop"]
    assert found.settings[0].splits == (0, 1) and found.settings[0].trained_from == "time"
    assert read_benchmark("foundation").name == "foundation"


def test_a_learner_without_epochs_is_a_closed_form(tmp_path, sample_path):
    """It is judged as one that has none: all trials per k, once."""
    page = one("row", model="MetaRidge", fixed={"epochs": 0}, grid={"embedding_size": [2, 4]})
    page["rows"], page["trained"]["rows"] = page["rows"][:1], []
    place = write(tmp_path, page)
    run_benchmark(place, str(sample_path), str(tmp_path / "prepared"), tmp_path / "runs")
    found = json.loads((tmp_path / "runs" / "small" / "time" / "0" / "Pop.json").read_text())
    assert [trial["embedding_size"] for trial in found["trials"]] == [2, 4]
    assert set(found["chosen"]) == {"0", "2"}


def one(kind: str, **entries) -> dict:
    """The page with one entry of its first setting, row, search or RecBole's row changed."""
    page = changed()
    trained = page["trained"]
    entry = {"setting": page["settings"], "row": page["rows"], "search": trained["searches"],
             "trained": trained["rows"]}[kind][0]  # fmt: skip
    entry.update(entries)
    return page


def tpe(**grid) -> dict:
    """The page with a search that learns, of EASE's weight in this grid."""
    page = one("search", sampler="tpe", trials=6)
    page["trained"]["rows"][0]["grid"] = grid or {
        "reg_weight": {"low": 1, "high": 1e3, "log": True}
    }
    return page


BAD = [
    (one("search", sampler="tpo"), "'sampler' is 'tpo'. Did you mean 'tpe'"),
    (tpe(reg_weight={"low": 1.0}), "'reg_weight' of 'EASE': missing setting 'high'"),
    (tpe(reg_weight={"low": 1, "high": 1.0}), "must have low < high, found"),
    (tpe(reg_weight={"low": 0, "high": 1, "log": True}), "must have 0 < low < high"),
    (tpe(reg_weight={"low": -1.0, "high": 1.0}), "'reg_weight' must be at least 0, found -1.0"),
    (tpe(reg_weight=[*range(9), "big"]), "'reg_weight' must be of type float"),
    (tpe(reg_wight={"low": 1, "high": 2}), "Did you mean 'reg_weight'"),
    (
        one("trained", grid={"reg_weight": {"low": 1, "high": 2}}),
        "'reg_weight' of 'EASE' is a range",
    ),
    (one("row", grid={"noise": {"low": 1, "high": 2}}), "'noise' of 'Pop' is a range"),
    (one("row", model="Popp"), "Did you mean 'Pop'"),
    (one("row", grids={}), "unknown setting 'grids'. Did you mean 'grid'"),
    (one("row", name="EASE"), "'EASE' stands there twice"),
    (one("row", model="PriorRidge", grid={"noize": [1.0]}), "Did you mean 'noise'"),
    (one("row", model="PriorRidge", grid={"noise": [1.0, "big"]}), "'noise' must be of type float"),
    (
        one("row", model="Blend", fixed={"epochs": 0}, grid={"members": [{"Popp": {}}]}),
        "no member can be 'Popp'. Did you mean 'Pop'",
    ),
    (one("row", model="KernelRidge", grid={"posterior": [[0.0]]}), "all weights of posterior"),
    (one("trained", model="InContext", grid={"heads": [2, 3]}), "must be a multiple of 'heads'"),
    (one("row", model="UserItemBias"), "cannot be judged on feedback 'implicit'"),
    (one("row", model="MAML"), "'Pop' trains, so it belongs under 'trained'"),
    (one("row", model="MetaRidge", grid={"epochs": [0, 1]}), "'Pop' trains, so it belongs under"),
    (one("trained", fixed={"epochs": 3}), "closed form"),
    (
        one("trained", model="MetaRidge", fixed={"epochs": 0}, grid={}, seeds=[1, 2]),
        "MetaRidge is a closed form",
    ),
    (one("trained", grid={"reg_weight": ["big"]}), "'reg_weight' must be of type float"),
    (one("search", setting="tmie"), "no entry 'tmie'. Did you mean 'time'"),
    (one("search", shots=7), "'time' is not judged at 7 shots, only at 0, 2"),
    (one("setting", trained_from="tmie"), "no entry 'tmie'"),
    (one("setting", dataset=3), "'dataset' must be of type str, found 3"),
    (
        changed(
            settings=[*PAGE["settings"], PAGE["settings"][0] | {"name": "b", "dataset": "other"}]
        ),
        "has no search for other, order 'time'",
    ),
    (
        changed(
            settings=[
                *PAGE["settings"],
                PAGE["settings"][0] | {"name": "b", "dataset": "other", "trained_from": "time"},
            ]
        ),
        "'b' is of other, and 'trained_from' names 'time', which is of tiny",
    ),
    (one("setting", protocol="user_cold_curv"), "Did you mean 'user_cold_curve'"),
    (one("setting", splits=[0, 9]), "'split' must be below folds"),
    (one("setting", changed={"shot": [1]}), "Did you mean 'shots'"),
    ({k: v for k, v in PAGE.items() if k != "trials"}, "missing setting 'trials'"),
    (changed(trails=3), "unknown setting 'trails'. Did you mean 'trials'"),
    (changed(trials="two"), "'trials' must be of type int, found 'two'"),
    (changed(trials=0), "'trials' must be at least 1, found 0"),
    (changed(seed=-4), "'seed' must be at least 0, found -4"),
    (changed(seed=2**32), f"'seed' must be below {2**32}, found {2**32}"),
    (changed(dataset=["tiny"]), "'dataset' must be of type str, found ['tiny']"),
    (changed(settings=3), "'settings' must be a list, found 3"),
    (changed(settings=[3]), "'settings' must be 'name: value' pairs, found 3"),
    (changed(settings=[]), "'settings' is empty"),
    (changed(rows={"name": "Pop"}), "'rows' must be a list, found {'name': 'Pop'}"),
    (changed(trained=None), "'trained' must be 'name: value' pairs, found None"),
    (changed(trained={"shots": [2], "rows": []}), "trained: missing setting 'searches'"),
    (changed(trained=PAGE["trained"] | {"shots": 2}), "'shots' must be a list, found 2"),
    (one("row", seeds=[3, 4]), "'seeds' of 'Pop' must be one, found [3, 4]: Pop is a closed form"),
    (one("trained", seeds=[3, 4]), "'seeds' of 'EASE' must be one, found [3, 4]: EASE is a clos"),
    (one("trained", seeds=[3, 3]), "'seeds' of 'EASE' must be different and at least one"),
    (changed(trained=PAGE["trained"] | {"seeds": []}), "at least one, found []"),
    (one("trained", seeds=[2**32]), f"must be below {2**32}, found {2**32}"),
    (one("search", trials=0), "searches: 'trials' must be at least 1, found 0"),
    (one("search", split=9), "'split' must be below folds"),
    (
        changed(trained=PAGE["trained"] | {"searches": PAGE["trained"]["searches"] * 2}),
        "'time' has 2 searches, not one",
    ),
    (
        changed(
            settings=[
                *PAGE["settings"],
                PAGE["settings"][0] | {"name": "b", "trained_from": "time"},
            ],
            trained=PAGE["trained"]
            | {
                "searches": [
                    {"setting": "b", "split": 0, "shots": 2, "trials": 2},
                    *PAGE["trained"]["searches"],
                ]
            },
        ),
        "no entry uses the search of 'b'",
    ),
    (
        one("row", name="K", model="KernelRidge", fixed={"draws": 2}, seeds=[3, 4]),
        "'K' has 2 seeds, and closed forms draw under order random alone, not for 'time'",
    ),
    (
        one("row", model="KernelRidge", fixed={"draws": 1}, seeds=[3, 4]),
        "must be one, found [3, 4]: KernelRidge is a closed form that draws nothing",
    ),
    (
        one("row", model="Blend", fixed={"epochs": 0, "members": {"Pop": {}}}, seeds=[3, 4]),
        "must be one, found [3, 4]: Blend is a closed form that draws nothing",
    ),
    (
        changed(
            trained=PAGE["trained"]
            | {"rows": [*PAGE["trained"]["rows"], {"name": "EASE-k2", "model": "MeLU"}]}
        ),
        "'EASE-k2' stands there twice",
    ),
    (one("setting", name=5), "settings: 'name' must be of type str, found 5"),
    (one("setting", splits=[]), "'time' has no splits"),
    (one("setting", splits=["0"]), "'splits' must be of type int, found '0'"),
    (one("setting", groups=["flor"]), "unknown group 'flor'. Did you mean 'floor'"),
    (one("row", grid=[1]), "'grid' must be 'name: value' pairs, found [1]"),
    (one("row", grid={"noise": []}), "'noise' of 'Pop' must be a list of values to try, found []"),
    (one("row", grid={"noise": 0.1}), "must be a list of values to try, found 0.1"),
    (one("row", grid={"a,b": [[1, 2], [3]]}), "'a,b' of 'Pop' must be a list of lists of 2 values"),
    (one("trained", grid={"reg_weight": []}), "trained rows: 'reg_weight' of 'EASE' must be a"),
    (changed(trained=PAGE["trained"] | {"shots": [5]}), "not judged at 5 shots"),
]


@pytest.mark.parametrize(("page", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_file_is_checked_before_any_work(tmp_path, page, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        read_benchmark(write(tmp_path, page))


def test_a_page_of_two_data_sets_is_their_pages_side_by_side(tmp_path, sample_path, done):
    data = tmp_path / "data"
    for name in ("tiny", "less"):  # less: without the rows of every fifth user
        (data / name).mkdir(parents=True)
        for kind in ("inter", "item", "user"):
            lines = (sample_path / "tiny" / f"tiny.{kind}").read_text("utf-8").splitlines(True)
            if (name, kind) == ("less", "inter"):
                lines = [line for line in lines if not line.split("\t")[0].endswith(("0", "5"))]
            (data / name / f"{name}.{kind}").write_text("".join(lines), "utf-8")
        page = ROOT / "properties" / "dataset" / "tiny.yaml"
        (data / name / f"{name}.yaml").write_bytes(page.read_bytes())
    entry, search = PAGE["settings"][0], PAGE["trained"]["searches"][0]
    other, its = entry | {"name": "less", "dataset": "less"}, search | {"setting": "less"}
    alone = changed(dataset="less", settings=[other],
                    trained=PAGE["trained"] | {"searches": [its]})  # fmt: skip
    both = changed(settings=[entry, other], trained=PAGE["trained"] | {"searches": [search, its]})
    for name, page in (("alone", alone), ("both", both)):
        file = write(tmp_path, page, name)
        run_benchmark(file, str(data), str(tmp_path / "prepared"), tmp_path / "runs")
    found, less = (results_of(tmp_path / "runs" / name) for name in ("both", "alone"))
    tiny = results_of(done)
    assert set(found) == {*less, *tiny} and set(less).isdisjoint(tiny)
    for name, (result, arrays) in found.items():
        theirs = less if name in less else tiny
        assert result["dataset"] == ("less" if name in less else "tiny")
        assert result["metrics"] == theirs[name][0]["metrics"] and arrays == theirs[name][1]
    table, _ = benchmark_table(file, tmp_path / "runs", tmp_path)
    rows = json.loads(table.read_text("utf-8"))
    assert {row["dataset"] for row in rows} == {"tiny", "less"}


def test_an_entry_with_a_search_of_its_own_is_judged_with_it(tmp_path, go):
    first, search = PAGE["settings"][0], PAGE["trained"]["searches"][0]
    entries = [first, first | {"name": "own", "splits": [1]}, first | {"name": "none"}]
    searches = [search, search | {"setting": "own", "split": 1}]
    trained = PAGE["trained"] | {"searches": searches, "rows": PAGE["trained"]["rows"][:1]}
    file = write(tmp_path, changed(settings=entries, rows=PAGE["rows"][:1], trained=trained))
    benchmark = read_benchmark(file)
    names = [benchmark.search_of(entry).setting for entry in benchmark.settings]
    assert names == ["time", "own", "time"]
    runs = tmp_path / "runs"
    go(file, runs)
    trials = list((runs / "small" / "search").rglob("EASE/*.json"))
    tried = sorted({json.loads(f.read_text("utf-8"))["settings"]["reg_weight"] for f in trials})
    wanted = dict(zip(("time", "own"), tried, strict=True))
    for path in trials:  # as if the two searches had found opposite settings the better
        trial = json.loads(path.read_text("utf-8"))
        best = trial["settings"]["reg_weight"] == wanted[path.parts[-3]]
        path.write_text(json.dumps(trial | {"valid": {"ndcg@10": float(best)}}), "utf-8")
    go(file, runs)
    units = units_of(runs / "small")
    for name, source in (
        ("time/0", "time"),
        ("time/1", "time"),
        ("own/1", "own"),
        ("none/0", "time"),
    ):
        assert units[f"{name}/EASE-k2.json"]["chosen"] == {"2": {"reg_weight": wanted[source]}}
    page = benchmark_table(file, runs, tmp_path)[0].with_suffix(".md").read_text("utf-8")
    first, own, none = re.split("## (?:own|none):", page)
    assert "on valid of split 0 of `time`" in first
    assert "on valid of split 1 of `own`" in own
    assert "`time` sees users and rows that the splits here hold back" in none


def test_unknown_files_data_and_folders(tmp_path, sample_path, prepared_path):
    with pytest.raises(SettingError, match="Did you mean 'foundation'"):
        run_benchmark("foundatoin")
    with pytest.raises(SettingError, match=r"Cannot read the settings file .*no\.yaml"):
        run_benchmark(str(tmp_path / "no.yaml"))
    with pytest.raises(DataError, match="Did you mean 'tiny'"):
        run_benchmark(write(tmp_path, changed(dataset="tinny")), str(sample_path))
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="Cannot write"):
        run_benchmark(write(tmp_path, PAGE), str(sample_path), prepared_path, tmp_path / "file")
    with pytest.raises(SettingError, match="'processes' must be at least 1, found 0"):
        run_benchmark(write(tmp_path, PAGE), str(sample_path), prepared_path, tmp_path, 0)


# Trials.


def test_trials_are_drawn_without_replacement_and_every_time_the_same():
    grid = {"a,b": [[1, 10], [2, 20], [3, 30]], "c": list(range(8))}
    row = Row("name", "model", {"d": "fixed"}, grid, (3,))
    assert len(row.trials(100)) == 24, "a small grid is tried whole"
    drawn = row.trials(10)
    assert drawn == Row("other", "model", {"d": "fixed"}, dict(grid), (4,)).trials(10)
    keys = {(t["a"], t["b"], t["c"]) for t in drawn}
    assert len(keys) == 10 and all(b == 10 * a and c in range(8) for a, b, c in keys)
    assert all(list(t) == ["d", "a", "b", "c"] and t["d"] == "fixed" for t in drawn)
    assert keys != {(t["a"], t["b"], t["c"]) for t in row.trials(24)[:10]}, "drawn, not the first"
    assert Row("name", "model", {"d": 1}, {}, (3,)).trials(30) == [{"d": 1}]


# The sweep.


def test_every_unit_has_its_file(done):
    units = units_of(done)
    assert len(units) == N_UNITS
    assert units["time/0/PriorRidge~QueryPop.json"]["row"] == "PriorRidge on QueryPop"
    assert set(units["time/1/Pop.json"]["runs"]) == {"0", "2"}
    assert set(units["time/1/EASE-k2.json"]["runs"]) == {"2"}
    runs = [folder for unit in units.values() for folder in unit.get("runs", {}).values()]
    assert len(runs) == len(set(runs)) == len(results_of(done)) == 2 * (2 + 2 + 1 + 1)
    assert not list(done.rglob("*.tmp")) and not list(done.rglob("*.failed"))


def test_the_best_trial_on_valid_is_tested_for_each_k(done):
    """Recomputed from the scores of all trials; what was tested is what was chosen."""
    chosen = []
    for split in (0, 1):
        unit = units_of(done)[f"time/{split}/PriorRidge~QueryPop.json"]
        page = PAGE["rows"][1]
        assert (
            unit["trials"] == Row(**page, seeds=(3,)).trials(PAGE["trials"])
            and len(unit["trials"]) == 3
        )
        for k, folder in unit["runs"].items():
            scores = [trial[k] for trial in unit["scores"]]
            best = unit["trials"][int(np.argmax(scores))]
            result, _ = results_of(done)[folder]
            assert unit["chosen"][k] == best
            assert best.items() <= result["config"].items()
            assert result["valid_metrics"]["ndcg@10"] == max(scores)
            assert len(set(scores)) > 1 or k == "0"
            chosen.append(str(best))
    assert len(set(chosen)) > 1, "the choice was not put to the test"


def test_what_has_no_choice_is_not_searched(done):
    assert not (done / "search" / "time" / "BPR").exists()
    assert units_of(done)["time/0/BPR-k2.json"]["chosen"] == {
        "2": PAGE["trained"]["rows"][1]["fixed"]
    }


def test_recboles_best_trial_on_valid_is_tested(done):
    units = units_of(done)
    trials = [unit for name, unit in units.items() if name.startswith("search/time/EASE/")]
    assert len(trials) == 2
    best = max(trials, key=lambda trial: trial["valid"]["ndcg@10"])
    for split in (0, 1):
        unit = units[f"time/{split}/EASE-k2.json"]
        assert unit["chosen"] == {"2": best["settings"]}
        result, _ = results_of(done)[unit["runs"]["2"]]
        assert best["settings"].items() <= result["config"].items()


@pytest.mark.parametrize(
    ("unit", "model", "k"),
    [("PriorRidge~QueryPop", "PriorRidge", "2"), ("EASE-k2", "EASE", "2"), ("BPR-k2", "BPR", "2")],
)
def test_a_row_is_what_the_runner_gives_for_its_settings(
    done, tmp_path, sample_path, prepared_path, unit, model, k
):
    """A stage that rows share changes no bit."""
    content = units_of(done)[f"time/1/{unit}.json"]
    alone = run(
        model, "tiny", "user_cold_curve", settings=CURVE | {"split": 1} | content["chosen"][k],
        seed=3, data_path=sample_path, prepared_path=prepared_path, results=tmp_path, threads=1,
    )  # fmt: skip
    (entry,) = [entry for entry in alone["runs"] if entry["shots"] == int(k)]
    result, tasks = results_of(done)[content["runs"][k]]
    assert entry["test"] == result["metrics"]
    assert (Path(entry["folder"]) / "tasks.npz").read_bytes() == tasks


def test_what_is_done_is_not_done_again(done, go, monkeypatch):
    for module in (judging, search):
        for name in ("fit_learner", "judge_recbole", "load_stage"):
            monkeypatch.setattr(module, name, None)
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    go(str(done.parents[1] / "small.yaml"), done.parent)
    after = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.suffix != ".lock"} == {
        p: t for p, t in before.items() if p.suffix != ".lock"
    }


def test_rows_do_not_see_each_others_settings(tmp_path, go, monkeypatch):
    """In both orders of rows: the Config of every fit, and every file."""
    rows = [
        {"name": "A", "model": "PriorRidge", "fixed": {"eval_batch_size": 82, "noise": 0.01}},
        {"name": "B", "model": "EASEFoldIn", "fixed": {"base": "pop", "base_weight": 3.0}},
        {"name": "C", "model": "PriorRidge", "grid": {"noise": [0.1, 1.0]}},
        {"name": "D", "model": "EpisodicRidge"},
    ]
    seen: dict[str, set] = {}
    plain = judging.fit_learner

    def fit(choice, stage, *, config):
        read = {key: config[key] for key in ("eval_batch_size", "noise", "base", "base_weight")}
        batch = stage.data["valid"].config["eval_batch_size"]
        key = f"{choice.name} {config['noise']}"
        seen.setdefault(key, set()).add((*read.values(), batch, config["model"]))
        return plain(choice, stage, config=config)

    monkeypatch.setattr(judging, "fit_learner", fit)
    found, spied = [], []
    for name, ordered in (("up", rows), ("down", rows[::-1])):
        page = changed(rows=ordered, trained=PAGE["trained"] | {"rows": []})
        folder = tmp_path / name
        folder.mkdir()
        go(write(folder, page), folder)
        found.append((units_of(folder), results_of(folder)))
        spied.append(dict(seen))
        seen.clear()
    assert found[0] == found[1] and len(found[0][0]) == 2 * len(rows)
    assert spied[0] == spied[1]
    ours = 256 * 41
    assert spied[0] == {
        "PriorRidge 0.01": {(82, 0.01, "pop", 1.0, 82, "PriorRidge")},
        "PriorRidge 0.1": {(ours, 0.1, "pop", 1.0, ours, "PriorRidge")},
        "PriorRidge 1.0": {(ours, 1.0, "pop", 1.0, ours, "PriorRidge")},
        "EASEFoldIn None": {(ours, None, "pop", 3.0, ours, "EASEFoldIn")},
        "EpisodicRidge None": {(ours, None, None, None, ours, "EpisodicRidge")},
    }


def test_valid_and_test_of_one_training_file_share_a_fit(tmp_path, go, monkeypatch):
    """Of the last trial alone; where test trains on more than valid did, there are two."""
    plain, fits = judging.fit_learner, []

    def fit(choice, stage, *, config):
        fits.append((stage.prepared.description["protocol"], config["noise"]))
        return plain(choice, stage, config=config)

    monkeypatch.setattr(judging, "fit_learner", fit)
    rows = [{"name": "A", "model": "PriorRidge", "grid": {"noise": [30.0, 0.1]}}]
    entries = [
        PAGE["settings"][0] | {"splits": [0]},
        {"name": "global", "protocol": "user_cold_global", "changed": CURVE, "splits": [9]},
    ]
    page = changed(rows=rows, settings=entries, trained=PAGE["trained"] | {"rows": []})
    go(write(tmp_path, page), tmp_path)
    units = units_of(tmp_path / "small")
    for name, split, shared in (("curve", 0, True), ("global", 9, False)):
        chosen = units[f"{'time' if shared else name}/{split}/A.json"]["chosen"].values()
        again = {trial["noise"] for trial in chosen} - ({0.1} if shared else set())
        found = [noise for protocol, noise in fits if protocol == f"user_cold_{name}"]
        assert 0.1 in [trial["noise"] for trial in chosen]
        assert sorted(found) == sorted([30.0, 0.1, *again])


def test_one_fit_is_held_at_a_time(tmp_path, go, monkeypatch):
    """They may be large: none of before is alive when the next begins, on valid or for test."""
    plain, fits = judging.fit_learner, []

    def fit(choice, stage, *, config):
        assert not [one for one in fits if one() is not None]
        fitted = plain(choice, stage, config=config)
        fits.append(weakref.ref(fitted.model))
        return fitted

    monkeypatch.setattr(judging, "fit_learner", fit)
    rows = [{"name": "A", "model": "PriorRidge", "grid": {"noise": [0.1, 30.0, 1e4]}}]
    entries = [PAGE["settings"][0] | {"splits": [0]}]
    page = changed(rows=rows, settings=entries, trained=PAGE["trained"] | {"rows": []})
    go(write(tmp_path, page), tmp_path)
    (unit,) = (unit for name, unit in units_of(tmp_path / "small").items() if "A.json" in name)
    again = {trial["noise"] for trial in unit["chosen"].values()} - {1e4}
    assert again and len(fits) == 3 + len(again)
    assert list(unit["runs"]) == list(unit["chosen"])


def test_a_changed_grid_is_searched_again_and_nothing_else(tmp_path, go, caplog):
    page = changed(trained=PAGE["trained"] | {"rows": []})
    go(write(tmp_path, page), tmp_path / "runs")
    page["rows"][1]["grid"]["noise"] = [0.5]
    caplog.clear()
    with caplog.at_level("INFO", logger="recbole_meta.sweep"):
        go(write(tmp_path, page), tmp_path / "runs")
    again = re.findall(r"(\S+\.json): [\d.]+ s", caplog.text)
    assert again == ["time/0/PriorRidge~QueryPop.json", "time/1/PriorRidge~QueryPop.json"]


def test_another_seed_is_run_and_what_is_there_is_not(done, tmp_path, go, caplog):
    """Its runs are what the runner gives for that seed; the table has each user's mean."""
    shutil.copytree(done.parent, tmp_path / "runs")
    page = changed()
    page["trained"]["rows"][1]["seeds"] = [3, 5]
    file, folder = write(tmp_path, page), tmp_path / "runs" / "small"
    with caplog.at_level("INFO", logger="recbole_meta.sweep"):
        go(file, tmp_path / "runs")
    again = re.findall(r"(\S+\.json): [\d.]+ s", caplog.text)
    assert again == ["time/0/BPR-k2-seed5.json", "time/1/BPR-k2-seed5.json"]
    units, results = units_of(folder), results_of(folder)
    assert {name: units[name] for name in units_of(done)} == units_of(done)
    first, second = (results[units[f"time/0/{n}.json"]["runs"]["2"]] for n in (
        "BPR-k2", "BPR-k2-seed5"))  # fmt: skip
    assert (first[0]["seed"], second[0]["seed"]) == (3, 5)
    assert first[0]["metrics"] != second[0]["metrics"] and first[1] != second[1]
    rows = json.loads(benchmark_table(file, tmp_path / "runs", tmp_path)[0].read_text("utf-8"))
    wanted = {"model": "BPR", "split": "0", "slice": "rows_5_9", "metric": "ndcg@10"}
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    both = [result["metrics"]["ndcg@10"] for result, _ in (first, second)]
    assert row["mean"] == pytest.approx(np.mean(both), abs=5e-5) and row["seeds"] == 2


def test_seeds_of_a_closed_form_that_draws(tmp_path, go):
    """KernelRidge draws supports under order random: each seed has its own trials and runs."""
    entry = PAGE["settings"][0]
    entry = entry | {"changed": entry["changed"] | {"order": "random"}, "splits": [0]}
    row = {"name": "KernelRidge", "model": "KernelRidge", "fixed": {"draws": 2, "fills": 0},
           "grid": {"embedding_size": [4, 8]}}  # fmt: skip
    rows = [PAGE["rows"][0], row | {"seeds": [3, 5]}]
    page = changed(settings=[entry], rows=rows, trained=PAGE["trained"] | {"rows": []})
    file, folder = write(tmp_path, page), tmp_path / "runs" / "small"
    go(file, tmp_path / "runs")
    units, results = units_of(folder), results_of(folder)
    pair = [units[f"time/0/{name}.json"] for name in ("KernelRidge", "KernelRidge-seed5")]
    assert pair[0]["trials"] == pair[1]["trials"] and pair[0]["scores"] != pair[1]["scores"]
    first, second = (results[unit["runs"]["2"]] for unit in pair)
    assert (first[0]["seed"], second[0]["seed"]) == (3, 5) and first[1] != second[1]
    rows = json.loads(benchmark_table(file, tmp_path / "runs", tmp_path)[0].read_text("utf-8"))
    wanted = {
        "model": "KernelRidge",
        "split": "all",
        "k": 2,
        "slice": "rows_5_9",
        "metric": "ndcg@10",
    }
    (found,) = [each for each in rows if wanted.items() <= each.items()]
    both = [result["metrics"]["ndcg@10"] for result, _ in (first, second)]
    assert found["mean"] == pytest.approx(np.mean(both), abs=5e-5) and found["seeds"] == 2


@pytest.mark.parametrize("damage", ["half a unit", "no tasks", "another seed", "changed settings"])
def test_what_is_damaged_is_made_again(done, tmp_path, go, damage):
    shutil.copytree(done.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / "small"
    unit = folder / "time" / "0" / "Pop.json"
    run_of = folder / units_of(folder)["time/0/Pop.json"]["runs"]["2"]
    result = json.loads((run_of / "result.json").read_text("utf-8"))
    if damage == "half a unit":
        unit.write_text(unit.read_text()[:40])
    elif damage == "no tasks":
        (run_of / "tasks.npz").unlink()
    elif damage == "another seed":
        (run_of / "result.json").write_text(json.dumps(result | {"seed": 4}))
    else:
        config = result["config"] | {"chunk_size": 7}
        (run_of / "result.json").write_text(json.dumps(result | {"config": config}))
    other = (folder / "time" / "1" / "Pop.json").stat().st_mtime_ns
    go(str(done.parents[1] / "small.yaml"), tmp_path / "runs")
    assert units_of(folder) == units_of(done) and results_of(folder) == results_of(done)
    assert (folder / "time" / "1" / "Pop.json").stat().st_mtime_ns == other


# A search that learns.


def trials_of(folder: Path) -> list[dict]:
    """By their numbers, without the seconds."""
    found = [json.loads(f.read_text("utf-8")) for f in folder.glob("search/time/EASE/*.json")]
    found.sort(key=lambda trial: trial["number"])
    return [{k: v for k, v in trial.items() if k != "seconds"} for trial in found]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, sample_path, prepared_path) -> Path:
    """The folder of a sweep whose search learns; never written to by a test."""
    folder = tmp_path_factory.mktemp("learnt")
    run_benchmark(write(folder, tpe()), str(sample_path), prepared_path, folder / "runs")
    return folder / "runs" / "small"


def test_a_search_that_learns_tries_a_range_and_tests_the_best(learnt):
    trials = trials_of(learnt)
    weights = [trial["settings"]["reg_weight"] for trial in trials]
    assert [trial["number"] for trial in trials] == list(range(6)) and len(set(weights)) == 6
    assert all(1 <= weight <= 1000 for weight in weights)
    best = max(trials, key=lambda trial: trial["valid"]["ndcg@10"])
    assert units_of(learnt)["time/1/EASE-k2.json"]["chosen"] == {"2": best["settings"]}


def test_a_killed_trial_is_run_again_with_the_same_settings(
    learnt, tmp_path, sample_path, prepared_path, go, monkeypatch
):
    """Wherever the kill was: before the file, after it, in the journal's line; or all is lost."""
    file, folder = str(learnt.parents[1] / "small.yaml"), tmp_path / "small"
    plain, left = search.judge_recbole, [0]

    def dying(*arguments, **more):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return plain(*arguments, **more)

    monkeypatch.setattr(search, "judge_recbole", dying)
    for damage, done in (("none", 2), ("half a line", 3), ("no journal", 4)):
        left[0] = done - len(trials_of(folder))
        journals = [*folder.glob("search/time/EASE/*.journal")]
        if damage == "half a line":
            with open(journals[0], "a") as stream:
                stream.write('{"op_code": 4, "wor')
        elif damage == "no journal":
            journals[0].unlink()
        with pytest.raises(KeyboardInterrupt):
            go(file, tmp_path)
        assert trials_of(folder) == trials_of(learnt)[:done], damage
    next(folder.glob("search/time/EASE/*-1.json")).write_text('{"number": 1, "se')
    monkeypatch.setattr(search, "judge_recbole", plain)
    go(file, tmp_path)
    assert trials_of(folder) == trials_of(learnt)
    assert units_of(folder) == units_of(learnt) and results_of(folder) == results_of(learnt)


def test_the_trials_of_a_study_are_those_asked_for(tmp_path):
    """Two processes hold trials at once: each is another point, told once, and stays as it is."""
    grid = {"a,b": [[1, 10], [2, 20], [3, 30]], "c": {"low": 1, "high": 64, "log": True}}
    study = Study(tmp_path / "s.journal", grid, bigger=False, seed=3)
    points = [study.ask(number, {}) for number in range(4)]
    assert all(point["a,b"] in grid["a,b"] and 1 <= point["c"] <= 64 for point in points)
    assert all(type(point["c"]) is int for point in points)
    done = {number: (point, float(point["c"])) for number, point in enumerate(points)}
    other = Study(tmp_path / "s.journal", grid, bigger=False, seed=3)
    assert [other.ask(number, done) for number in range(4)] == points
    for number in range(4, 30):
        point = other.ask(number, done)
        done[number] = (point, point["c"] + point["a,b"][0])
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    trials = optuna.load_study(study_name="trials", storage=storage).get_trials()
    assert [trial.user_attrs["number"] for trial in trials] == list(range(30))
    assert [trial.value for trial in trials[:29]] == [done[n][1] for n in range(29)]
    assert [trial.params["c"] for trial in trials] == [done[n][0]["c"] for n in range(30)]
    values = [value for _, value in done.values()]
    assert np.mean(values[20:]) < np.mean(values[:5]), "it has learnt where small values are"


def test_optuna_is_named_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingError, match=r"needs Optuna: pip install .*\[search\]"):
        read_benchmark(write(tmp_path, tpe()))
    assert read_benchmark(write(tmp_path, PAGE)).searches[0].sampler == "drawn"


# A unit that fails.


def failing() -> dict:
    """EASE without a penalty is singular; fold-in EASE with next to none scores NaN."""
    page = changed()
    page["trained"]["rows"][0]["grid"] = {"reg_weight": [0.0, 30.0]}
    page["rows"].insert(0, {"name": "Fold", "model": "EASEFoldIn", "fixed": {"reg_weight": 5e-324}})
    return page


def test_a_failure_is_recorded_and_stops_only_what_needs_it(tmp_path, go, caplog, monkeypatch):
    def sleep(seconds):
        raise AssertionError("it waits for a unit that cannot be done")

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    file, folder = write(tmp_path, failing()), tmp_path / "runs" / "small"
    with pytest.raises(RecboleMetaError) as caught:
        go(file, tmp_path / "runs")
    message = str(caught.value)
    assert "3 units failed" in message and "2 others are missing" in message
    for name in ("time/0/Fold.json", "time/1/Fold.json", "search/time/EASE/"):
        assert name in message
    assert message.count("Singular matrix") == 1 and message.count("NaN or infinity") == 2
    units = units_of(folder)
    assert "time/0/EASE-k2.json" not in units, "chosen among half of the trials"
    whole = {"time/0/Pop.json", "time/1/PriorRidge~QueryPop.json", "time/1/BPR-k2.json"}
    assert whole <= units.keys() and len(units) == N_UNITS - 1 - 2
    failures = sorted(folder.rglob("*.failed"))
    assert len(failures) == 3
    assert all("Traceback" in f.read_text() for f in failures)

    # The next start tries them again, and only them; once mended they leave no trace.
    caplog.clear()
    with pytest.raises(RecboleMetaError, match="3 units failed"):
        go(file, tmp_path / "runs")
    assert (
        len(re.findall(r"(\S+) failed\n", caplog.text))
        == 3
        == len(sorted(folder.rglob("*.failed")))
    )
    mended = failing()
    mended["rows"][0]["fixed"] = {"reg_weight": 1.0}
    mended["trained"]["rows"][0]["grid"] = {"reg_weight": [0.5, 30.0]}
    go(write(tmp_path, mended), tmp_path / "runs")
    assert [path.parent.name for path in folder.rglob("*.failed")] == ["EASE"], "of the old trial"


def test_a_unit_that_is_not_done_when_it_was_done_has_failed(tmp_path, go, monkeypatch):
    """And is not done again and again."""
    page = changed(rows=PAGE["rows"][:1], trained=PAGE["trained"] | {"rows": []})
    monkeypatch.setattr(RowJudge, "agrees", lambda *arguments: False)
    with pytest.raises(RecboleMetaError, match=r"2 units failed: time/0/Pop.json \(.*not agree"):
        go(write(tmp_path, page), tmp_path / "runs")


def test_settings_that_diverge_are_a_lost_trial(tmp_path, go, monkeypatch):
    """The other trial is tested; where both diverge the row fails with the error of the first."""

    def fit(choice, stage, *rest, **more):
        if stage.config["learning_rate"] in broken:
            raise Diverged(f"the loss is inf at {stage.config['learning_rate']}")
        return fit_learner(choice, stage, *rest, **more)

    monkeypatch.setattr("recbole_meta.search.fit_learner", fit)
    monkeypatch.setattr("recbole_meta.fitting.fit_learner", fit)
    row = {
        "name": "CNP",
        "model": "CNP",
        "fixed": {"epochs": 1},
        "grid": {"learning_rate": [0.1, 0.01]},
    }
    page = changed(rows=PAGE["rows"][:1], trained=PAGE["trained"] | {"rows": [row]})
    file, broken = write(tmp_path, page), [0.1]
    go(file, tmp_path / "runs")
    units = units_of(tmp_path / "runs" / "small")
    lost = [unit for name, unit in units.items() if "diverged" in unit]
    assert [unit["settings"]["learning_rate"] for unit in lost] == [0.1]
    assert lost[0]["valid"] == {"ndcg@10": None}
    assert units["time/1/CNP.json"]["chosen"]["2"]["learning_rate"] == 0.01
    text = (
        benchmark_table(file, tmp_path / "runs", tmp_path)[0].with_suffix(".md").read_text("utf-8")
    )
    assert "- CNP: 2 trials (1 diverged); edges" in text
    broken.append(0.01)
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(RecboleMetaError, match=r"the loss is inf at 0\.1"):
        go(file, tmp_path / "runs")


def test_a_loss_of_recboles_that_is_no_number_is_a_divergence():
    """By the words of RecBole's own trainer."""
    from recbole.trainer import Trainer

    choice = choose_model("BPR")
    said = "BPR stopped with ValueError: Training loss is nan"
    with pytest.raises(Diverged, match=said), named_errors(choice, model_page(choice)):
        Trainer._check_nan(None, torch.tensor(float("nan")))
    with pytest.raises(RecboleMetaError) as other, named_errors(choice, model_page(choice)):
        raise ValueError("something else")
    assert not isinstance(other.value, Diverged)


def test_the_command_ends_with_an_error_where_units_failed(
    tmp_path, sample_path, prepared_path, capsys
):
    page = changed(rows=failing()["rows"][:1], trained=PAGE["trained"] | {"rows": []})
    paths = ["--data_path", str(sample_path), "--prepared_path", prepared_path]
    assert main(["benchmark", write(tmp_path, page), "--runs", str(tmp_path), *paths]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Benchmark 'small' is not finished: 2 units failed: time/0/Fold")


def test_what_another_process_did_or_saw_fail_is_left_to_it(
    tmp_path, sample_path, prepared_path, monkeypatch
):
    page = changed(rows=failing()["rows"][:2], trained=PAGE["trained"] | {"rows": []})
    benchmark, start = read_benchmark(write(tmp_path, page)), time.time()
    two = [
        Sweep(Site(benchmark, str(sample_path), prepared_path, tmp_path / "runs"), start)
        for _ in range(2)
    ]
    before = two[1]._open()
    assert len(before) == 4
    two[0].run()
    monkeypatch.setattr(judging, "fit_learner", None)
    assert not any(two[1]._try(unit) for unit in before), "seen as missing, done meanwhile"
    two[1].run()
    with pytest.raises(RecboleMetaError, match="2 units failed"):
        two[1].check()
    assert "NaN or infinity" in (tmp_path / "runs/small/time/0/Fold.json.failed").read_text()


def test_a_unit_is_written_before_its_lock_is_let_go(
    tmp_path, sample_path, prepared_path, monkeypatch
):
    """Else another process finds it neither locked nor done, and does it again."""
    page = changed(rows=PAGE["rows"][:1], trained=PAGE["trained"] | {"rows": []})
    held, plain = [], sweep.write_atomically

    def write_atomically(path, content):
        with pytest.raises(Timeout), FileLock(f"{path}.lock", timeout=0):
            pass
        held.append(path.name)
        plain(path, content)

    monkeypatch.setattr(sweep, "write_atomically", write_atomically)
    run_benchmark(write(tmp_path, page), str(sample_path), prepared_path, tmp_path / "runs")
    assert held == ["Pop.json", "Pop.json"]


# A sweep that is killed, by several processes.


def spawn(file: str, runs: Path, sample_path: Path, prepared_path: str, log: Path, *more: str):
    code = "import sys\nfrom recbole_meta.cli import main\n"
    code += "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
    script = runs.parent / "start.py"
    script.write_text(code)
    paths = ["--data_path", str(sample_path), "--prepared_path", prepared_path]
    arguments = ["benchmark", file, "--runs", str(runs), *paths, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "a") as stream:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments], stderr=stream, env=environment,
            start_new_session=True,
        )  # fmt: skip


def events(folder: Path) -> list[tuple[str, str]]:
    return [(event["event"], event["unit"]) for event in Log(folder / LOG).events()]


def long(page: dict) -> dict:
    """With a learner that trains, with two seeds."""
    quick = {"epochs": 4, "stopping_step": 4, "embedding_size": 4, "train_batch_size": 8}
    page["trained"]["rows"].append(
        {"name": "MAML", "model": "MAML", "fixed": quick, "seeds": [3, 4],
         "grid": {"inner_lr": [0.1, 0.2]}}
    )  # fmt: skip
    return page


@pytest.mark.parametrize(
    ("page", "processes"),
    [(long(changed()), 2), pytest.param(long(tpe()), 1, marks=pytest.mark.slow)],
    ids=["drawn by two", "learnt by one"],
)
def test_killed_three_times_and_started_again(
    page, processes, tmp_path, sample_path, prepared_path
):
    """The files of a sweep that one undisturbed process made, and its table; nothing twice."""
    file, folder, log = write(tmp_path, page), tmp_path / "runs" / "small", tmp_path / "log"
    run_benchmark(file, str(sample_path), prepared_path, tmp_path / "whole")
    start = (
        file,
        tmp_path / "runs",
        sample_path,
        prepared_path,
        log,
        "--processes",
        str(processes),
    )
    for kind, number in (("start", 1), ("done", 3), ("done", 9)):
        process, deadline = spawn(*start), time.monotonic() + 120
        while sum(event == kind for event, _ in events(folder)) < number:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(units_of(folder)) < len(units_of(tmp_path / "whole")), "killed too late"
    assert spawn(*start).wait(180) == 0, log.read_text()
    assert units_of(folder) == units_of(tmp_path / "whole" / "small")
    assert results_of(folder) == results_of(tmp_path / "whole" / "small")
    tables = [
        benchmark_table(file, tmp_path / runs, tmp_path / f"of_{runs}")
        for runs in ("whole", "runs")
    ]
    for whole, again in zip(*tables, strict=True):
        assert whole.read_bytes() == again.read_bytes()
    said = events(folder)
    for unit in units_of(folder):
        mine = [event for event, of in said if of == unit and event != "waits"]
        assert mine.count("done") <= 1 and mine[-1] in ("done", "start"), (unit, mine)
        assert "start" not in mine[mine.index("done") :] if "done" in mine else True, (unit, mine)
    begun = sum(event == "start" for event, _ in said) - sum(event == "waits" for event, _ in said)
    assert len(units_of(folder)) <= begun <= len(units_of(folder)) + 3 * processes
    assert re.search(r"\d+ units are missing, about \d+ s with \d process", log.read_text())
    log.write_text("")
    assert spawn(*start).wait(180) == 0
    assert "0 units are missing" in log.read_text() and events(folder) == said


# Bounds.


def test_what_does_not_end_in_time_is_a_failed_row(tmp_path, sample_path, prepared_path):
    page = changed(rows=PAGE["rows"][:1])
    endless = {"name": "BPR", "model": "BPR", "fixed": {"epochs": 10**6, "stopping_step": 10**6}}
    page["trained"]["rows"] = [endless]
    page["settings"][0]["splits"] = [0]
    file, folder = write(tmp_path, page), tmp_path / "runs" / "small"
    paths = (str(sample_path), prepared_path, tmp_path / "runs")
    for _ in range(2):
        with pytest.raises(RecboleMetaError, match=r"1 units failed: time/0/BPR.*in 0\.05 min"):
            run_benchmark(file, *paths, minutes=0.05)
    said = events(folder)
    assert said.count(("capped", "time/0/BPR-k2.json")) == 1, "it is not tried again"
    assert said.count(("done", "time/0/Pop.json")) == 1
    table, text = benchmark_table(file, tmp_path / "runs", tmp_path)
    assert "| recbole | BPR |  | failed |" in text.read_text("utf-8")
    row = json.loads(table.read_text("utf-8"))[-1]
    assert row["failed"].endswith("TimeUp: It did not end in 0.05 minutes.") and row["k"] == 2
    endless["fixed"]["epochs"] = 1
    run_benchmark(write(tmp_path, page), *paths, minutes=0.05)
    assert not (folder / "time" / "0" / "BPR-k2.json.failed").exists()


def test_a_trial_that_fails_fails_the_entries_that_read_its_row(
    tmp_path, sample_path, prepared_path
):
    """Those whose runs its search chose, also where their own order has no search."""
    page = changed()
    more = {"protocol": "user_cold_curve", "splits": [0]}
    other = CURVE | {"order": "random", "folds": 0}
    page["settings"] += [
        {"name": "read", "changed": other, "trained_from": "time", **more},
        {"name": "none", "changed": CURVE, "trained_from": None, **more},
    ]
    benchmark = read_benchmark(write(tmp_path, page))
    units = list(Sweep(Site(benchmark, str(sample_path), prepared_path, tmp_path)).units())
    found = {unit.kind: unit.entries for unit in units if unit.row.name in ("EASE", "BPR")}
    both = ("time", "read")
    assert found == {("EASE", True): both, ("EASE", False): both, ("BPR", False): both}
    assert {u.entries for u in units if u.row.name == "Pop"} == {("time",), ("read",), ("none",)}


def test_a_cap_that_was_raised_is_tried_again(tmp_path):
    unit = Unit(tmp_path / "a" / "b" / "c.json", Row("Pop", "Pop", {}, {}, (3,)), ("a",), None,
                dict, lambda: {"settings": {"x": 1}}, bool)  # fmt: skip
    unit.file.parent.mkdir(parents=True)
    unit.fail(TimeUp("late"), minutes=10)
    later = time.time() + 60
    assert unit.has_failed(since=0, minutes=20), "since the start"
    assert unit.has_failed(later, minutes=10) and unit.has_failed(later, minutes=5)
    assert not unit.has_failed(later, minutes=11) and not unit.has_failed(later, None)
    other = replace(unit, made_by=lambda: {"settings": {"x": 2}})
    assert not other.has_failed(later, minutes=10)
    unit.fail(ValueError("bad"))
    assert not unit.has_failed(later, minutes=10) and unit.said() == "ValueError: bad"


def test_bounds_that_are_none(tmp_path):
    file = write(tmp_path, PAGE)
    for name, value in (("minutes", 0), ("minutes", float("nan")), ("memory", -1.0)):
        with pytest.raises(SettingError, match=f"'{name}' must be above 0, found {value}"):
            run_benchmark(file, **{name: value})


def test_with_little_memory_one_unit_runs_at_a_time(tmp_path, sample_path, prepared_path):
    page = changed(trained=PAGE["trained"] | {"rows": []})
    file, log = write(tmp_path, page), tmp_path / "log"
    bounds = ("--processes", "2", "--memory", "0.001")
    process = spawn(file, tmp_path / "runs", sample_path, prepared_path, log, *bounds)
    assert process.wait(180) == 0, log.read_text()
    said = [event for event, _ in events(tmp_path / "runs" / "small")]
    assert said == ["start", "done"] * 4
    assert len({e["pid"] for e in Log(tmp_path / "runs" / "small" / LOG).events()}) <= 2


def test_clean_leaves_nothing_of_a_sweep_and_all_that_is_not_of_it(done, tmp_path, capsys):
    shutil.copytree(done.parent, tmp_path / "runs")
    (tmp_path / "runs/small/time/0/Fold.json.failed").touch()  # a unit that failed has no more
    mine = [tmp_path / "runs/small/package.json", tmp_path / "runs/small/package.json.lock"]
    for path in mine:
        path.write_text('{"name": "mine", "seconds": 3}')
    paths = ["--runs", str(tmp_path / "runs"), "--prepared_path", str(tmp_path / "prepared")]
    assert main(["clean", *paths]) == 0
    assert units_of(tmp_path / "runs" / "small").keys() > units_of(done).keys()
    assert main(["clean", "--yes", *paths]) == 0
    assert capsys.readouterr().out.count("\ndeleted ") == N_UNITS + len(results_of(done))
    assert sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file()) == mine
    assert [path.name for path in (tmp_path / "runs").rglob("*") if path.is_dir()] == ["small"]


# Kept.


def test_kept_units_are_done_and_give_the_same_table(done, tmp_path, sample_path, prepared_path):
    page, runs = str(done.parents[1] / "small.yaml"), tmp_path / "runs"
    assert main(["keep", page, "--runs", str(done.parent), "--results", str(tmp_path)]) == 0
    file = tmp_path / "small" / "units.tar.xz"
    assert keep(done, tmp_path / "again.tar.xz") == N_UNITS - 2, "trials are no units of a table"
    assert file.read_bytes() == (tmp_path / "again.tar.xz").read_bytes()
    (runs / "small" / "time" / "0").mkdir(parents=True)
    older = runs / "small" / "time" / "0" / "Pop.json"
    older.write_text("{}")
    arguments = ["benchmark", page, "--runs", str(runs), "--prepared_path", prepared_path]
    arguments += ["--data_path", str(sample_path), "--kept", str(file), "--verbose"]
    assert main(arguments) == 0
    assert json.loads(older.read_text())["row"] == "Pop", "what was there is not replaced, but made"
    assert units_of(runs / "small") == units_of(done)
    for name, (result, content) in results_of(done).items():
        assert results_of(runs / "small")[name][0] == result
        with (
            np.load(io.BytesIO(content)) as whole,
            np.load(runs / "small" / name / "tasks.npz") as few,
        ):
            metrics = {m for m in whole.files if "@" in m} | {"task"}
            made_again = "time/0" in name and "/Pop-" in name
            assert made_again or set(few.files) == metrics
            for metric in metrics:
                np.testing.assert_array_equal(whole[metric], few[metric])
    tables = [
        benchmark_table(page, r, tmp_path / t)[0] for r, t in ((done.parent, "a"), (runs, "b"))
    ]
    assert tables[0].read_text() == tables[1].read_text()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out.json", tarfile.REGTYPE),
        ("/out.json", tarfile.REGTYPE),
        ("time/0/Pop.pt", tarfile.REGTYPE),
        ("..\\out.json", tarfile.REGTYPE),
        ("C:out.json", tarfile.REGTYPE),
        ("time/0/link.json", tarfile.SYMTYPE),
        ("time", tarfile.DIRTYPE),
    ],
)
def test_a_file_that_holds_something_else_is_not_unpacked(tmp_path, name, kind):
    file = tmp_path / "bad.tar.xz"
    with tarfile.open(file, "w:xz") as bad:
        for entry in (tarfile.TarInfo("time/0/Pop.json"), tarfile.TarInfo(name)):
            entry.type = kind if entry.name == name else tarfile.REGTYPE
            entry.linkname = "../../out.json" if kind == tarfile.SYMTYPE else ""
            bad.addfile(entry)
    with pytest.raises(DataError, match="holds no kept units"):
        put_back(file, tmp_path / "runs")
    assert list(tmp_path.rglob("*")) == [file]


def test_kept_units_that_cannot_be_read_or_written(tmp_path):
    with tarfile.open(tmp_path / "cut.tar.xz", "w:xz") as kept:
        kept.addfile(tarfile.TarInfo("time/0/Pop.json"))
    whole = (tmp_path / "cut.tar.xz").read_bytes()
    (tmp_path / "cut.tar.xz").write_bytes(whole[:-20])
    (tmp_path / "odd.tar.xz").write_bytes(whole[:40] + b"odd" + whole[43:])
    (tmp_path / "no.tar.xz").write_bytes(b"PK")
    (tmp_path / "text.tar.xz").write_bytes(lzma.compress(b"time/0/Pop.json"))
    for name in ("cut", "odd", "no", "text", "missing"):
        file = tmp_path / f"{name}.tar.xz"
        with pytest.raises(DataError, match="Cannot read the kept units"):
            put_back(file, tmp_path / "runs")
    with pytest.raises(DataError, match="no finished unit"):
        keep(tmp_path / "runs", tmp_path / "units.tar.xz")


# Its table.


def test_the_table_of_a_sweep(done, tmp_path):
    table, page = benchmark_table(str(done.parents[1] / "small.yaml"), done.parent, tmp_path)
    assert (table, page) == (tmp_path / "small" / "table.json", tmp_path / "small" / "table.md")
    rows = json.loads(table.read_text("utf-8"))
    required = {
        "dataset", "protocol", "order", "split", "k", "model", "group", "reads", "metric", "slice",
        "mean", "low", "high", "n_tasks", "gain_over_floor", "p_floor", "p_cf",
    }  # fmt: skip
    assert all(required <= set(row) for row in rows)
    units = units_of(done)
    values = {}
    for unit in units.values():
        for k, folder in unit.get("runs", {}).items():
            with np.load(done / folder / "tasks.npz") as arrays:
                pairs = zip(arrays["task"].tolist(), arrays["ndcg@10"].tolist(), strict=True)
                values.setdefault((unit["row"], int(k)), {}).update(pairs)  # folds are disjoint
    found = {
        (row["model"], row["k"]): row for row in rows
        if row["split"] == "all" and (row["slice"], row["metric"]) == ("rows_5_9", "ndcg@10")
    }  # fmt: skip
    assert found.keys() == values.keys() and len(found) == 6
    for key, of_users in values.items():
        assert found[key]["n_tasks"] == len(of_users) == 22
        assert found[key]["mean"] == pytest.approx(np.mean(list(of_users.values())), abs=5e-5)
        assert found[key]["low"] < found[key]["mean"] < found[key]["high"]
    floor, ridge = values["Pop", 2], values["PriorRidge on QueryPop", 2]
    gain = np.mean([ridge[user] - floor[user] for user in floor])
    assert found["PriorRidge on QueryPop", 2]["gain_over_floor"] == pytest.approx(gain, abs=5e-5)
    assert found["Pop", 2]["gain_over_floor"] is None
    text = page.read_text("utf-8")
    for (model, _), row in found.items():
        line = next(line for line in text.splitlines() if f"| {model} |" in line)
        assert f"{row['mean']:.3f}" in line
    assert "- PriorRidge on QueryPop: 3 trials" in text and "- EASE: 2 trials" in text
