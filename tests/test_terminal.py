"""The table of the terminal, from made runs: what is marked, compared and said."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from recbole_meta.errors import DataError
from recbole_meta.terminal import terminal_table

N = 40
SECOND = {"ndcg@10": "recall@10", "mae": "rmse", "auc": "logloss"}


@pytest.fixture
def made(tmp_path):
    """``made(model, group, mean, valid)``: the folder of a run whose values scatter around a mean.

    All runs share the scatter, so a gain is the difference of two means for every task.
    """

    def make(model, group, mean, valid, metric="ndcg@10", k=5, tasks=N, **more):
        folder = tmp_path / f"{model}-{k}-{metric}"
        folder.mkdir()
        values = mean + np.random.default_rng(3).normal(0, 0.01, tasks)
        values += mean - values.mean()
        query = more.pop("query", "after")
        result = {
            "model": model, "group": group, "reads": "ids", "dataset": "made", "protocol": "p",
            "order": "time", "split": 2, "seed": 1, "shots": k, "query": query,
            "metrics": {metric: mean, SECOND[metric]: 0.25},
            "valid_slices": {query: {metric: valid}}, "seconds": {"fit": 1.25, "evaluate": 0.5},
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result | more))
        task = np.array([f"u{number:02}" for number in range(tasks)])
        np.savez(folder / "tasks.npz", **{"task": task, metric: values, SECOND[metric]: values})
        return folder

    return make


def rows(table: str) -> dict[str, str]:
    """Model -> its line; the models of a table without further blocks."""
    lines = table.splitlines()
    return {line[1:].split()[1]: line for line in lines[2:-1]}


def interval(line: str, number: int) -> list[float]:
    found = re.findall(r"([+-]?\d\.\d{4}) \[([+-]?\d\.\d{4}), ([+-]?\d\.\d{4})\]", line)
    return [float(value) for value in found[number]]


def test_the_best_floor_is_named_by_valid_not_by_test(made):
    folders = [
        made("Pop", "floor", mean=0.30, valid=0.20),
        made("QueryPop", "floor", mean=0.25, valid=0.22),  # better on valid, worse on test
        made("Ours", "ours", mean=0.35, valid=0.10),
    ]
    table = terminal_table(folders)
    found = rows(table)
    assert "gain over QueryPop [95 %]" in table.splitlines()[1]
    assert "(best floor on valid)" in found["QueryPop"]
    assert table.count("(best floor on valid)") == 1
    assert interval(found["Ours"], 1)[0] == pytest.approx(0.10, abs=1e-4)
    assert interval(found["Pop"], 1)[0] == pytest.approx(0.05, abs=1e-4)


def test_a_model_of_another_group_is_no_floor(made):
    folders = [
        made("Pop", "floor", mean=0.2, valid=0.2),
        made("EASEFoldIn", "fold-in", mean=0.3, valid=0.9),
    ]
    assert "gain over Pop [95 %]" in terminal_table(folders)


def test_the_best_mean_on_test_is_marked(made):
    folders = [
        made("Pop", "floor", mean=0.2, valid=0.9),
        made("BPR", "recbole", mean=0.4, valid=0.1),
        made("Ours", "ours", mean=0.3, valid=0.5),
    ]
    table = terminal_table(folders)
    assert [model for model, line in rows(table).items() if line.startswith("*")] == ["BPR"]
    assert "larger is better" in table


@pytest.mark.parametrize(("metric", "smaller"), [("ndcg@10", False), ("mae", True), ("auc", False)])
def test_which_end_is_best(made, metric, smaller):
    folders = [
        made("Low", "floor", mean=0.4, valid=0.4, metric=metric),
        made("High", "floor", mean=0.7, valid=0.7, metric=metric),
        made("Ours", "ours", mean=0.55, valid=0.5, metric=metric),
    ]
    table = terminal_table(folders)
    found = rows(table)
    best, other = ("Low", "High") if smaller else ("High", "Low")
    assert [model for model, line in found.items() if line.startswith("*")] == [best]
    assert f"gain over {best} [95 %]" in table.splitlines()[1]
    assert f"({'smaller' if smaller else 'larger'} is better)" in table.splitlines()[-1]
    assert list(found) == [other, best, "Ours"]  # within a group the best stands last
    assert table.splitlines()[1].split()[2] == metric
    assert SECOND[metric] in table.splitlines()[1].split()
    for model, over in (("Ours", -0.15), (other, -0.3)):  # worse, whatever the metric
        assert interval(found[model], 1)[0] == pytest.approx(over, abs=1e-4)


def test_a_smaller_error_is_a_gain(made):
    folders = [
        made("Constant", "floor", mean=0.7, valid=0.7, metric="mae"),
        made("Ours", "ours", mean=0.6, valid=0.6, metric="mae"),
    ]
    task = np.random.default_rng(0).normal(0, 0.05, N)
    with np.load(folders[1] / "tasks.npz") as file:
        arrays = dict(file)
    np.savez(folders[1] / "tasks.npz", **(arrays | {"mae": arrays["mae"] + task}))
    mean, low, high = interval(rows(terminal_table(folders))["Ours"], 1)
    assert mean == pytest.approx(0.1 - task.mean(), abs=1e-4)
    assert 0 < low < mean < high


def test_intervals_are_of_the_tasks_and_paired(made):
    folders = [
        made("Pop", "floor", mean=0.20, valid=0.2),
        made("Ours", "ours", mean=0.21, valid=0.2),
    ]
    ours = rows(terminal_table(folders))["Ours"]
    mean, low, high = interval(ours, 0)
    assert mean == 0.21
    assert 0.002 < high - low < 0.01  # 4 standard errors of .01 / sqrt(40)
    assert interval(ours, 1) == pytest.approx([0.01, 0.01, 0.01], abs=1e-4)  # no noise is left
    assert "+0.0100 [+0.0100, +0.0100]" in ours


def test_head_seconds_and_groups(made):
    folders = [
        made("Ours", "ours", mean=0.5, valid=0.5),
        made("BPR", "recbole", mean=0.4, valid=0.4),
        made("Fold", "fold-in", mean=0.3, valid=0.3),
        made("Pop", "floor", mean=0.2, valid=0.2),
    ]
    table = terminal_table(folders, {"noise": 0.5, "learner": "sgd"})
    assert table.splitlines()[0] == (
        "made, p, order time, split 2, k = 5: 40 cold users, query 'after'"
    )
    found = rows(table)
    assert list(found) == ["Pop", "Fold", "BPR", "Ours"]
    assert all(line.split()[-2:] == ["1.8", "ids"] for line in found.values())  # 1.25 + 0.5
    assert table.splitlines()[-1].endswith("the defaults but noise = 0.5, learner = sgd.")
    assert terminal_table(folders).endswith("settings are the defaults.")
    assert not any(line != line.rstrip() for line in table.splitlines())


def test_columns_stand_below_their_titles(made):
    folders = [
        made("Pop", "floor", mean=0.2, valid=0.2),
        made("AVeryLongNameOfAModel", "ours", mean=0.5, valid=0.5),
    ]
    titles, pop, ours = terminal_table(folders).splitlines()[1:4]
    at = titles.index("ndcg@10")
    assert pop[at : at + 6] == "0.2000"
    assert ours[at : at + 6] == "0.5000"


def test_without_a_floor_nothing_is_compared(made):
    table = terminal_table([made("Ours", "ours", mean=0.5, valid=0.5)])
    assert "gain over" not in table
    assert table.splitlines()[2].startswith("*")


def test_one_block_per_k_with_its_own_floor(made):
    folders = [
        made("Pop", "floor", mean=0.2, valid=0.3, k=10),
        made("QueryPop", "floor", mean=0.3, valid=0.2, k=10),
        made("Pop", "floor", mean=0.2, valid=0.2, k=0),
        made("QueryPop", "floor", mean=0.1, valid=0.3, k=0),
    ]
    few, many = terminal_table(folders).split("\n\n")
    assert "k = 0:" in few
    assert "gain over QueryPop" in few
    assert "k = 10:" in many
    assert "gain over Pop" in many
    assert [model for model, line in rows(few).items() if line.startswith("*")] == ["Pop"]
    assert [model for model, line in rows(many).items() if line.startswith("*")] == ["QueryPop"]


@pytest.mark.parametrize("metric", ["ndcg@10", "auc"])
def test_a_task_without_a_value_is_not_counted(made, metric):
    folder = made("Pop", "floor", mean=0.2, valid=0.2, metric=metric)
    with np.load(folder / "tasks.npz") as file:
        arrays = dict(file)
    arrays[metric][:3] = np.nan
    if metric == "ndcg@10":  # users without a row in the query have no metric
        arrays[SECOND[metric]][:3] = np.nan
    np.savez(folder / "tasks.npz", **arrays)
    table = terminal_table([folder])
    both = f"{N} cold users (auc: {N - 3} with both labels), query 'after'"
    assert f"k = 5: {both if metric == 'auc' else f'{N - 3} cold users, query'}" in table
    assert "nan" not in table


def test_a_folder_that_is_no_run():
    with pytest.raises(DataError, match="nowhere is not the folder of a run"):
        terminal_table([Path("nowhere")])
