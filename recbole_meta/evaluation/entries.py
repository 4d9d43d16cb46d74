"""Rows of a table before they are compared, read from result files alone.

The unit is the user: a user's values are averaged over the splits in which he is judged, and over
the model's seeds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.metrics import sign
from recbole_meta.evaluation.significance import Interval, paired_gain
from recbole_meta.settings import named_page

Values = dict[str, float]  # task -> value
FAILED = ".failed"  # ending of the file beside a unit's that says why it failed
SEARCH = "search"  # the folder of trials, beside those of the entries
GROUPS = ("floor", "fold-in", "recbole", "published", "ours")


def benchmark_page(name: str) -> tuple[str, dict[str, Any]]:
    """The name and the content of a benchmark file: of ``properties/benchmark``, or a path."""
    return named_page("benchmark", name)


def seeds_of(page: dict[str, Any], row: str) -> list[int | None]:
    """The seeds that a row of a benchmark file is judged with."""
    one = [page.get("seed")]
    for part, usual in ((page["trained"], page["trained"].get("seeds", one)), (page, one)):
        for entry in part["rows"]:
            if entry["name"] == row:
                return list(entry.get("seeds", usual))
    return one


def slug(name: str) -> str:
    """A row's name as that of a file."""
    return name.replace(" + b ", "+").replace(" on ", "~").replace(" ", "")


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that are no file's, and two that would be one file."""
    known: dict[str, str] = {}
    for name in names:
        file = slug(name)
        if not file or file.startswith(".") or "/" in file or "\\" in file:
            raise SettingError(f"{where}: a row is named '{name}', which is no file's name.")
        if other := known.get(file.lower()):
            same = "stands there twice" if other == name else f"and '{other}' would be one file"
            raise SettingError(f"{where}: '{name}' {same}.")
        known[file.lower()] = name


class RunFiles:
    """``result.json`` and ``tasks.npz`` of one run."""

    def __init__(self, folder: Path) -> None:
        try:
            self.result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
            with np.load(folder / "tasks.npz", allow_pickle=False) as arrays:
                self.arrays = {name: arrays[name] for name in arrays.files}
        except (OSError, EOFError, ValueError, BadZipFile) as error:
            raise DataError(f"{folder} is not the folder of a run: {error}") from error

    def values(self, query: str, metric: str) -> Values:
        """The value of each task in this slice."""
        name = metric if query == self.result["query"] else f"{query}/{metric}"
        if name not in self.arrays:
            return {}
        pairs = zip(self.arrays["task"].tolist(), self.arrays[name].tolist(), strict=True)
        return {task: value for task, value in pairs if not np.isnan(value)}

    def valid(self, query: str, metric: str) -> float:
        """The mean on valid; nan where it was not judged there."""
        mean = self.result["valid_slices"].get(query, {}).get(metric)
        return np.nan if mean is None else float(mean)


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of a table before it is compared: one model at one k, over its splits and seeds."""

    name: str
    group: str
    reads: str
    runs: tuple[RunFiles, ...]

    @cache  # noqa: B019 - a table asks for the same values again and again
    def values(self, query: str, metric: str) -> Values:
        """Each user's mean over the seeds and the splits in which he is judged."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for task, value in run.values(query, metric).items():
                found.setdefault(task, []).append(value)
        return {task: float(np.mean(values)) for task, values in found.items()}

    @property
    def n_seeds(self) -> int:
        """How many seeds of the model its values are means over."""
        return len({run.result.get("seed") for run in self.runs})

    def of_splits(self) -> "dict[int, Entry]":
        """The row on each split alone, over its seeds."""
        runs: dict[int, list[RunFiles]] = {}
        for run in self.runs:
            runs.setdefault(run.result["split"], []).append(run)
        return {split: replace(self, runs=tuple(each)) for split, each in runs.items()}

    def valid(self, query: str, metric: str) -> float:
        """The mean on valid over the splits, what champions are named by."""
        return float(np.mean([run.valid(query, metric) for run in self.runs]))


def champion(
    entries: Sequence[Entry], groups: Iterable[str], query: str, metric: str
) -> Entry | None:
    """The best by valid of these groups; None where there is none."""
    chosen = [e for e in entries if e.group in set(groups) and not np.isnan(e.valid(query, metric))]
    return max(chosen, key=lambda e: sign(metric) * e.valid(query, metric), default=None)


def paired(values: Values, baseline: Values) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both on the tasks that both have, in one order."""
    tasks = sorted(values.keys() & baseline.keys())
    return np.array([values[t] for t in tasks]), np.array([baseline[t] for t in tasks])


def gain(metric: str, values: Values, baseline: Values, resamples: int = 10_000) -> Interval:
    """How much better the values are, paired over the tasks that both have; positive is better,
    for errors, too.
    """
    ours, theirs = paired(values, baseline)
    better = (ours, theirs) if sign(metric) > 0 else (theirs, ours)
    return paired_gain(*better, resamples=resamples)
