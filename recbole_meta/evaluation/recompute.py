"""A run's numbers anew, from the prepared folder and ``tasks.npz``: numpy, no model, no torch.

Of the run only what its model said is believed: lists and scores, or predictions. Relevance and
labels are those of the prepared folder, and every number that the run stored must follow.
"""

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import DataError
from recbole_meta.evaluation.metrics import label_metrics, mean, ranking_metrics, rating_metrics
from recbole_meta.evaluation.slices import list_of, queries

Arrays = dict[str, npt.NDArray[Any]]
_CLOSE = 1e-9  # how far a stored number may be from the one that follows: rounding elsewhere


def recompute(folder: Path, prepared_path: Path) -> dict[str, dict[str, float]]:
    """Query -> metric -> mean over tasks, the primary query first; the prepared folder must be
    the run's.

    An error where the run's labels are not the prepared folder's, or its numbers not these.
    """
    try:
        result = json.loads((folder / "result.json").read_text("utf-8"))
        with np.load(folder / "tasks.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        name, digest = result["data"]["prepared"], result["data"]["sha256"]
    except (OSError, EOFError, ValueError, BadZipFile, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not the folder of a run: {error}") from error
    prepared = Prepared(prepared_path / name)
    if prepared.sha256 != digest:
        raise DataError(f"{prepared.path} is not the folder that {folder} was judged on.")
    try:
        return _compared(folder, result, arrays, prepared)
    except KeyError as error:
        raise DataError(f"{folder}: its files have no entry {error}.") from error


def _compared(
    folder: Path, result: dict[str, Any], arrays: Arrays, prepared: Prepared
) -> dict[str, dict[str, float]]:
    tasks = prepared.judged("test")
    if arrays["task"].tolist() != tasks:
        raise DataError(f"{folder}/tasks.npz: its tasks are not those of {prepared.name}.")
    if prepared.feedback != "implicit":
        _check_labels(folder / "tasks.npz", arrays, prepared.rows("test"))
    found: dict[str, dict[str, float]] = {}
    for query, rows in queries(prepared, "test").items():
        first = not found
        prefix = "" if first else f"{query}/"
        if prepared.feedback == "implicit":
            wide = f"{name}/" if (name := list_of(prepared, query)) else ""
            lists = {key: arrays[wide + key] for key in ("topk", "topk_score", "cut_tie_size")}
            values = _ranking(tasks, lists, rows, arrays[f"{prefix}cut_tie_positives"])
        else:
            values = _rows(arrays, rows, prepared.feedback)
        member = np.isin(tasks, rows["user"].unique())
        found[query] = {}
        for metric, value in values.items():
            spread = np.full(len(tasks), np.nan)
            spread[member] = value
            _check(folder / "tasks.npz", prefix + metric, arrays[prefix + metric], spread)
            found[query][metric] = mean(value)
            stored = [result["slices"][query][metric]] + [result["metrics"][metric]] * first
            for told in stored:
                _check(folder / "result.json", f"{query} {metric}", told, found[query][metric])
    if list(found) != list(result["slices"]) or next(iter(found)) != result["query"]:
        raise DataError(f"{folder}/result.json: its queries are not {', '.join(found)}.")
    return found


def _check(file: Path, what: str, stored: Any, found: Any) -> None:
    told = np.asarray(stored, dtype=np.float64)
    same = told.shape == np.shape(found) and np.isclose(told, found, 0, _CLOSE, equal_nan=True)
    if not np.all(same):
        shown = "" if told.shape else f": stored {told:.6f}, recomputed {found:.6f}"
        raise DataError(f"{file}: '{what}' does not follow from the run's rankings or predictions"
                        f" and the prepared folder{shown}.")  # fmt: skip


def _check_labels(file: Path, arrays: Arrays, rows: pd.DataFrame) -> None:
    """The stored query rows must be those of the prepared folder, with its labels."""
    stored = pd.MultiIndex.from_arrays([arrays["query_task"], arrays["query_item"]])
    wanted = pd.MultiIndex.from_frame(rows[["user", "item"]])
    missing = wanted.difference(stored)
    if len(missing) or len(stored) != len(wanted):
        example = f", e.g. {missing[0]}" if len(missing) else ""
        raise DataError(
            f"{file} has {len(stored)} query rows, the prepared folder {len(wanted)}; "
            f"{len(missing)} are missing{example}."
        )
    label = pd.Series(rows["target"].to_numpy(), wanted).reindex(stored).to_numpy()
    label = label.astype(np.float32).astype(np.float64)  # RecBole's columns are of 32 bits
    wrong = np.flatnonzero(label != arrays["label"])
    if len(wrong):
        raise DataError(
            f"{file}: {len(wrong)} labels are not those of the prepared folder, the first is "
            f"{arrays['label'][wrong[0]]} of {stored[wrong[0]]} instead of {label[wrong[0]]}."
        )


def _ranking(task: list[str], lists: Arrays, rows: pd.DataFrame, tied: npt.NDArray[Any]) -> Arrays:
    """From the stored lists; tasks without a query row in this slice are left out."""
    pairs = set(zip(rows["user"], rows["item"], strict=True))
    count = dict.fromkeys(task, 0)
    for user, _ in pairs:
        count[user] += 1
    n_positives = np.array([count[user] for user in task])
    hits = np.array(
        [
            [(user, item) in pairs for item in items]
            for user, items in zip(task, lists["topk"].tolist(), strict=True)
        ]
    )
    member = n_positives > 0
    return ranking_metrics(
        hits[member],
        lists["topk_score"][member],
        lists["cut_tie_size"][member],
        tied[member],
        n_positives[member],
    )


def _rows(arrays: Arrays, rows: pd.DataFrame, feedback: str) -> Arrays:
    """From the stored predictions; the labels were checked."""
    pairs = set(zip(rows["user"], rows["item"], strict=True))
    both = zip(arrays["query_task"].tolist(), arrays["query_item"].tolist(), strict=True)
    chosen = np.array([pair in pairs for pair in both])
    users, task = np.unique(arrays["query_task"][chosen], return_inverse=True)
    judge = label_metrics if feedback == "label" else rating_metrics
    return judge(task, arrays["label"][chosen], arrays["prediction"][chosen], len(users))
