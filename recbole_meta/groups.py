"""A benchmark's champions by groups of users: who is served worst?

The champion of each group of models is named by valid, as in the benchmark's table. Users are
grouped by the fields of the prepared ``.user`` file and by the length of their history, all later
rows counted. A field of many numbers is cut at its quartiles over the judged users, and one of many
words is left out.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_meta.data.atomic import MISSING, AtomicFile
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import (
    GROUPS,
    Entry,
    Values,
    benchmark_page,
    champion,
    gain,
)
from recbole_meta.evaluation.metrics import sign
from recbole_meta.evaluation.significance import bootstrap_interval
from recbole_meta.report.units import entries_of, lead_of, primary_of

HISTORY = "history"  # a user's rows, the early ones and the query
_MANY = 25  # different values of a field that are shown one by one
_LEAST = 20  # users of a group; those of smaller groups are shown together
_SMALL = "(groups below 20 users)"

Grouping = dict[str, dict[str, str]]  # field -> user -> group


def groups_table(name: str, runs: Path, results: Path, prepared_path: Path, k: int) -> list[Path]:
    """``groups.json`` and ``groups.md`` of a benchmark from the runs below ``runs/<name>``."""
    name, file = benchmark_page(name)
    root = runs / name
    rows: list[dict[str, Any]] = []
    for judging in file["settings"]:
        by_k = entries_of(root, judging, file)
        if k not in by_k:
            raise DataError(
                f"{root / judging['name']} has no finished run at k = {k}, but at {sorted(by_k)}: "
                "'--k' names one."
            )
        rows += _rows(judging["name"], by_k[k], primary_of(by_k), k, prepared_path)
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    table, page = folder / "groups.json", folder / "groups.md"
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    table.write_text(f"[\n{lines}\n]\n", "utf-8")
    page.write_text(_markdown(name, k, rows), "utf-8")
    return [table, page]


def _rows(
    entry: str, entries: list[Entry], query: str, k: int, prepared_path: Path
) -> list[dict[str, Any]]:
    """Every champion on every group of users: its mean, and its gain over the best floor there."""
    metric = lead_of(entries[0].runs[0].result)
    floor = champion(entries, ["floor"], query, metric)
    if floor is None:
        raise DataError(f"Entry '{entry}' has no floor to compare groups of users with.")
    grouping = users_of(floor, prepared_path)
    found = []
    for group in GROUPS:
        best = champion(entries, [group], query, metric)
        if best is None:
            continue
        values, base = best.values(query, metric), floor.values(query, metric)
        for field, group_of in grouping.items():
            for label in _labels(group_of):
                mine = {user: v for user, v in values.items() if group_of.get(user) == label}
                found.append(
                    {"entry": entry, "k": k, "metric": metric, "group": group, "model": best.name,
                     "field": field, "users": label} | _cell(mine, base, metric, best is floor)
                )  # fmt: skip
    return found


def _cell(mine: Values, base: Values, metric: str, is_floor: bool) -> dict[str, Any]:
    mean = bootstrap_interval(list(mine.values()))
    cell = {"n": len(mine), "mean": round(mean.mean, 4), "low": round(mean.low, 4),
            "high": round(mean.high, 4)}  # fmt: skip
    if not is_floor:
        over = gain(metric, mine, base)
        cell |= {"gain": round(over.mean, 4), "gain_low": round(over.low, 4),
                 "gain_high": round(over.high, 4)}  # fmt: skip
    return cell


def users_of(entry: Entry, prepared_path: Path) -> Grouping:
    """The groups of the users that a row judged, over all its splits."""
    facts: dict[str, dict[str, str]] = {}
    for run in entry.runs:
        about = run.result["data"]
        prepared = open_prepared(prepared_path / about["prepared"])
        if prepared.sha256 != about["sha256"]:
            raise DataError(f"{prepared.path} is not the folder that '{entry.name}' was judged on.")
        for user, known in _facts(prepared).items():
            facts.setdefault(user, known)
    frame = pd.DataFrame.from_dict(facts, orient="index")
    grouping = {}
    for field in frame.columns:
        cut = _cut(frame[field], field == HISTORY)
        if cut is not None:
            grouping[field] = _joined(cut)
    return grouping


def _facts(prepared: Prepared) -> dict[str, dict[str, str]]:
    """User -> field -> value, of the users who are judged on test."""
    judged = prepared.judged("test")
    rows = pd.concat([prepared.early_rows("test"), prepared.rows("test")])
    length = rows["user"].value_counts()
    facts = {user: {HISTORY: str(length[user])} for user in judged}
    path = prepared.path / f"{prepared.name}.user"
    if not path.is_file():
        return facts
    file = AtomicFile(path)
    fields = [field for field in prepared.fields.user_features if field in file.columns]
    columns = file.read([prepared.fields.user, *fields])
    for number, user in enumerate(columns[prepared.fields.user]):
        if user in facts:
            known = {field: columns[field][number] for field in fields}
            facts[user] = known | facts[user]
    return facts


def _cut(values: "pd.Series[str]", as_number: bool) -> dict[str, str] | None:
    """User -> group; None where the field has too many words to be groups."""
    there = values[~values.isin(MISSING)].dropna()
    if not as_number and there.nunique() <= _MANY:
        return dict(there.astype(str))
    number = pd.to_numeric(there, errors="coerce")
    if number.isna().any():
        return None
    edges = np.unique(np.quantile(number, [0.25, 0.5, 0.75]))
    place = np.searchsorted(edges, number.to_numpy(), side="right")
    return dict(zip(there.index, (_span(number, place == p) for p in place), strict=True))


def _span(number: "pd.Series[float]", inside: Any) -> str:
    low, high = number[inside].min(), number[inside].max()
    return f"{low:g} to {high:g}" if low < high else f"{low:g}"


def _joined(group_of: dict[str, str]) -> dict[str, str]:
    """Small groups become one."""
    count = pd.Series(group_of).value_counts()
    return {user: g if count[g] >= _LEAST else _SMALL for user, g in group_of.items()}


def _labels(group_of: dict[str, str]) -> list[str]:
    """Numbers ascending, then words, small groups last."""

    def place(label: str) -> tuple[int, float, str]:
        first = pd.to_numeric(label.split(" to ")[0], errors="coerce")
        return (label == _SMALL) + 2 * bool(np.isnan(first)), float(np.nan_to_num(first)), label

    return sorted(set(group_of.values()), key=place)


def _markdown(name: str, k: int, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"# {name}: groups of users, k = {k}",
        "",
        f"Made by `recbole-meta groups {name} --k {k}` from the runs of the benchmark; all",
        "figures are in `groups.json`. The champions are those of valid; in brackets the gain over",
        "the best floor in the same group, paired over users, with its 95 % interval; **bold**:",
        "the group that the model serves worst.",
    ]
    for entry in dict.fromkeys(row["entry"] for row in rows):
        here = [row for row in rows if row["entry"] == entry]
        models = list(dict.fromkeys(row["model"] for row in here))
        lines += ["", f"## {entry}: {here[0]['metric']}", ""]
        lines += ["| users | n | " + " | ".join(models) + " |", "|---" * (len(models) + 2) + "|"]
        for field in dict.fromkeys(row["field"] for row in here):
            part = [row for row in here if row["field"] == field]
            for users in dict.fromkeys(row["users"] for row in part):
                cells = [row for row in part if row["users"] == users]
                shown = [_shown(cell, part) for cell in cells]
                lines.append(f"| {field} {users} | {cells[0]['n']} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _shown(cell: dict[str, Any], part: list[dict[str, Any]]) -> str:
    mine = [row["mean"] for row in part if row["model"] == cell["model"]]
    worst = min(mine) if sign(cell["metric"]) > 0 else max(mine)
    mean = f"{cell['mean']:.3f}"
    mean = f"**{mean}**" if cell["mean"] == worst and len(mine) > 1 else mean
    if "gain" not in cell:
        return mean
    return f"{mean} ({cell['gain']:+.3f} [{cell['gain_low']:+.3f}, {cell['gain_high']:+.3f}])"
