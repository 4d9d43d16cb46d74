"""When each behaviour of a row came about, and rows as they were known at a time.

The page of a data set names a tab-separated file beside its rows, and which of its columns is the
time (the unit of the rows' own) of which column of 0 and 1 of ``.inter``:

    times: {file: behaviour_times.tsv, columns: {view: view_time, buy: buy_time}}

The file's first line names its columns, those of user and item among them. It has every pair of
``.inter`` once and no other, a time where the behaviour is 1, none where it is 0, and no time
before the row's own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_meta.data.atomic import AtomicFile, Floats
from recbole_meta.data.source import DataFields, read_page
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.settings import read_settings


@dataclass(frozen=True)
class LabelTimes:
    """Where a page says that the times stand."""

    file: str  # beside .inter
    columns: dict[str, str]  # column of .inter -> column of the file


def read_label_times(dataset: str, source: Path | None = None) -> LabelTimes | None:
    """What ``times`` of a data set's page says; None where there is no such key."""
    values, where = read_page(dataset, source)
    if "times" not in values:
        return None
    if not isinstance(values["times"], dict):
        raise SettingError(f"{where}: 'times' must be 'file' and 'columns', found "
                           f"{values['times']!r}.")  # fmt: skip
    times = read_settings(LabelTimes, values["times"], f"{where}, times")
    if not times.columns:
        raise SettingError(f"{where}, times: 'columns' names no column.")
    return times


def described_times(times: LabelTimes | None) -> dict[str, Any]:
    """As a page says it: nothing where it says nothing."""
    return {} if times is None else {"times": asdict(times)}


def behaviour_times(times: LabelTimes, file: AtomicFile, fields: DataFields) -> dict[str, Floats]:
    """Per column of .inter the time of each line's behaviour, inf where it has none, [N]."""
    path = file.path.with_name(times.file)
    table = _table(path, (fields.user, fields.item, *times.columns.values()))
    columns = file.read([fields.user, fields.item])
    place = _places(columns[fields.user], columns[fields.item], table, file, path, fields)
    start = None if fields.time is None else file.numbers(fields.time)
    found = {}
    for column, name in times.columns.items():
        text = table[name]
        time = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
        bad = np.flatnonzero((text != "").to_numpy() & ~np.isfinite(time))
        if len(bad):
            raise DataError(
                f"{path.name}, line {bad[0] + 2}: '{name}' is {text.iloc[bad[0]]!r}, not a finite "
                "number."
            )
        found[column] = _checked(column, time[place], start, file, path)
    return found


def known_at(
    file: AtomicFile, times: Mapping[str, Floats], end: float, start: float = -np.inf
) -> tuple[AtomicFile, dict[str, int]]:
    """The file with 0 for what did not happen in start <= time < end, and how many 1 that undid."""
    undone = {
        column: np.isfinite(time) & ((time < start) | (time >= end))
        for column, time in times.items()
    }
    return file.with_zeros(undone), {column: int(mask.sum()) for column, mask in undone.items()}


def _table(path: Path, wanted: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(
            path, sep="\t", dtype=str, na_filter=False, quoting=3, encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read the times of the labels, {path}: {error}") from error
    for column in wanted:
        if column not in table.columns:
            raise DataError(
                f"{path.name} has no column '{column}'. {nearest(column, list(table.columns))}"
            )
    return table


def _places(
    user: "pd.Series[str]", item: "pd.Series[str]", table: pd.DataFrame, file: AtomicFile,
    path: Path, fields: DataFields,
) -> "np.ndarray[Any, np.dtype[np.int64]]":  # fmt: skip
    """The line of the table of each line of .inter; tokens are equal letter by letter."""
    there = pd.MultiIndex.from_arrays([table[fields.user], table[fields.item]])
    twice = np.flatnonzero(there.duplicated())
    if len(twice):
        raise DataError(f"{path.name}, line {twice[0] + 2}: the pair stands there twice.")
    pairs = pd.MultiIndex.from_arrays([user, item])
    place = there.get_indexer(pairs)
    missing = np.flatnonzero(place < 0)
    if len(missing):
        raise DataError(
            f"{file.path.name}, line {missing[0] + 2}: user '{user.iloc[missing[0]]}' and item "
            f"'{item.iloc[missing[0]]}' have no line in {path.name} ({len(missing)} such pairs)."
        )
    more = np.flatnonzero(~there.isin(pairs))
    if len(more):
        raise DataError(
            f"{path.name}, line {more[0] + 2}: the pair is not in {file.path.name} ({len(more)} "
            "such lines)."
        )
    return np.asarray(place, dtype=np.int64)


def _checked(
    column: str, time: Floats, start: Floats | None, file: AtomicFile, path: Path
) -> Floats:
    """The times of a column, inf where it is 0; refused where they cannot be."""
    if column == "" or column not in file.columns:
        raise SettingError(f"'times' names '{column}', which {file.path.name} has not. "
                           f"{nearest(column, file.columns)}")  # fmt: skip
    label = file.numbers(column)
    empty = np.isnan(time)
    for wrong, said in (
        ((label != 0) & (label != 1), "has a time, and must be 0 or 1"),
        ((label == 1) & empty, f"is 1, and {path.name} has no time for it"),
        ((label == 0) & ~empty, f"is 0, and {path.name} has a time for it"),
        (time < start if start is not None else np.zeros(len(time), dtype=bool),
         f"has a time in {path.name} that is before the row's own"),
    ):  # fmt: skip
        lines = np.flatnonzero(wrong)
        if len(lines):
            raise DataError(
                f"{file.path.name}, line {lines[0] + 2}: '{column}' {said} ({len(lines)} such "
                "lines)."
            )
    return np.where(empty, np.inf, time)
