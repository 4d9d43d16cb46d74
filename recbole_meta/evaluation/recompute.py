"""A run's numbers anew, from the prepared folder and ``tasks.npz``: numpy, no model, no torch."""

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import DataError
from recbole_meta.evaluation.metrics import label_metrics, ranking_metrics, rating_metrics
from recbole_meta.evaluation.slices import queries


def recompute(folder: Path, prepared_path: Path) -> dict[str, dict[str, float]]:
    """Query -> metric -> mean over tasks, the primary query first; the prepared folder must be
    the run's.
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
    found = {}
    for query, rows in queries(prepared, "test").items():
        pairs = set(zip(rows["user"], rows["item"], strict=True))
        if prepared.feedback == "implicit":
            tie = "cut_tie_positives" if query == result["query"] else f"{query}/cut_tie_positives"
            values = _ranking(arrays, pairs, arrays[tie])
        else:
            values = _rows(arrays, pairs, prepared.feedback)
        found[query] = {metric: float(np.nanmean(value)) for metric, value in values.items()}
    return found


def _ranking(
    arrays: dict[str, np.ndarray], pairs: set[tuple[str, str]], tied: np.ndarray
) -> dict[str, np.ndarray]:
    """From the stored lists; tasks without a query row in this slice are left out."""
    task = arrays["task"].tolist()
    count = dict.fromkeys(task, 0)
    for user, _ in pairs:
        count[user] += 1
    n_positives = np.array([count[user] for user in task])
    hits = np.array(
        [
            [(user, item) in pairs for item in items]
            for user, items in zip(task, arrays["topk"].tolist(), strict=True)
        ]
    )
    member = n_positives > 0
    return ranking_metrics(
        hits[member],
        arrays["topk_score"][member],
        arrays["cut_tie_size"][member],
        tied[member],
        n_positives[member],
    )


def _rows(
    arrays: dict[str, np.ndarray], pairs: set[tuple[str, str]], feedback: str
) -> dict[str, np.ndarray]:
    """From the stored predictions."""
    both = zip(arrays["query_task"].tolist(), arrays["query_item"].tolist(), strict=True)
    chosen = np.array([pair in pairs for pair in both])
    users, task = np.unique(arrays["query_task"][chosen], return_inverse=True)
    judge = label_metrics if feedback == "label" else rating_metrics
    return judge(task, arrays["label"][chosen], arrays["prediction"][chosen], len(users))
