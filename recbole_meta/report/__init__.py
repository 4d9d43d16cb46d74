"""The published table of a benchmark, from the result files of its runs alone.

The champion of a group is named by valid; only champions are tested against each other, paired over
users (Wilcoxon): with that of the floors, with that of the fold-in rules and RecBole's models, and
ours with that of the published learners. The p-values of each of the three are adjusted by Holm
over all (protocol, order, k) of the table.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import (
    GROUPS,
    Entry,
    Values,
    benchmark_page,
    champion,
    paired,
    seeds_of,
)
from recbole_meta.evaluation.metrics import SMALLER_IS_BETTER
from recbole_meta.evaluation.significance import (
    Interval,
    bootstrap_interval,
    holm,
    paired_gain,
    wilcoxon_p,
)
from recbole_meta.report.choices import choices
from recbole_meta.report.page import Section, markdown
from recbole_meta.report.rivals import RIVALS, Rival
from recbole_meta.report.units import entries_of, failures, lead_of, primary_of

_RESAMPLES = 2_000  # of users, for an interval: thousands of cells


def benchmark_table(name: str, runs: Path, results: Path) -> tuple[Path, Path]:
    """``table.json`` and ``table.md`` of a benchmark from the runs below ``runs/<name>``."""
    name, file = benchmark_page(name)
    root = runs / name
    rows: list[dict[str, Any]] = []
    sections = []
    for judging in file["settings"]:
        by_k = entries_of(root, judging, file)
        if not by_k:
            raise DataError(
                f"{root / judging['name']}: no finished run. Run 'recbole-meta benchmark {name}'."
            )
        query = primary_of(by_k)
        section = [
            row
            for k, e in sorted(by_k.items())
            for row in _compare(e, k, judging["protocol"], query)
        ]
        section += _failed(root, judging, file, section, query)
        sections.append(Section(judging, query, section, _absent(judging, file, section)))
        rows += section
    _adjust(rows)
    if all(row["seeds"] == 1 for row in rows):
        for row in rows:
            del row["seeds"]
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    table, page = folder / "table.json", folder / "table.md"
    table.write_text(
        "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n",
        "utf-8",
    )
    page.write_text(markdown(name, sections, choices(root, file), file), "utf-8")
    return table, page


def _wanted(judging: dict[str, Any], file: dict[str, Any]) -> list[str]:
    """The rows that the entry should have."""
    wanted = [] if "groups" in judging else [row["name"] for row in file["rows"]]
    if judging.get("trained_from", judging["name"]):
        wanted += [row["name"] for row in file["trained"]["rows"]]
    return wanted


def _absent(
    judging: dict[str, Any], file: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> list[str]:
    """The rows that the entry should have and that no k has for all splits, failed or not."""
    found = {row["model"] for row in rows}
    return [name for name in _wanted(judging, file) if name not in found]


def _failed(
    root: Path,
    judging: dict[str, Any],
    file: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    primary: str,
) -> Iterator[dict[str, Any]]:
    """A row without figures for each k of the entry's that a failed unit left out."""
    lead = lead_of({"metrics": {row["metric"] for row in rows}})
    shots = sorted({row["k"] for row in rows})
    there = {(row["model"], row["k"]) for row in rows}
    wanted = _wanted(judging, file)
    about = {key: rows[0][key] for key in ("dataset", "protocol", "order")}
    for failure in failures(root):
        model = failure["row"]
        if model not in wanted or judging["name"] not in failure["entries"]:
            continue
        for k in shots if failure["k"] is None else [failure["k"]]:
            if (model, k) in there:
                continue
            there.add((model, k))
            yield dict.fromkeys(rows[0]) | about | {
                "split": "all", "k": k, "model": model, "group": failure["group"],
                "seeds": len(seeds_of(file, model)), "metric": lead, "slice": primary,
                "n_tasks": 0, "champion": False, "failed": failure["error"],
            }  # fmt: skip


def _compare(entries: Sequence[Entry], k: int, protocol: str, primary: str) -> list[dict[str, Any]]:
    """All rows of one (entry, k): every metric on every slice, and the champions' tests on the
    primary one.
    """
    about = entries[0].runs[0].result
    lead = lead_of(about)
    floor = champion(entries, ["floor"], primary, lead)
    rivals = [(rival, champion(entries, rival.groups, primary, lead)) for rival in RIVALS]
    champions = {e.name for g in GROUPS if (e := champion(entries, [g], primary, lead))}
    rows = []
    for entry in sorted(entries, key=lambda e: GROUPS.index(e.group)):
        for query, metric, split, part in _cells(entry, primary):
            values = part.values(query, metric)
            interval = bootstrap_interval(list(values.values()), resamples=_RESAMPLES)
            base = floor.values(query, metric) if floor and split == "all" else {}
            row = {
                "dataset": about["dataset"], "protocol": protocol, "order": about["order"],
                "split": split, "k": k, "model": entry.name, "group": entry.group,
                "reads": entry.reads, "seeds": entry.n_seeds, "metric": metric, "slice": query,
                "mean": _round(interval.mean), "low": _round(interval.low),
                "high": _round(interval.high), "n_tasks": len(values),
                "gain_over_floor": None, "gain_low": None, "gain_high": None,
                "p_floor": None, **{column: None for rival in RIVALS for column in rival.columns},
                "champion": entry.name in champions and split == "all",
                "valid": _round(part.valid(query, metric)),
            }  # fmt: skip
            if base and entry is not floor:
                gain = _gain(values, base, metric)
                row |= {"gain_over_floor": _round(gain.mean), "gain_low": _round(gain.low),
                        "gain_high": _round(gain.high)}  # fmt: skip
            if row["champion"] and (query, metric) == (primary, lead):
                if floor and entry is not floor:
                    row["p_floor"] = wilcoxon_p(*paired(values, floor.values(query, metric)))
                for rival, theirs in rivals:
                    if theirs and entry.group in rival.tested:
                        row |= _over(rival, theirs, values, query, metric)
            rows.append(row)
    return rows


def _over(rival: Rival, entry: Entry, values: Values, query: str, metric: str) -> dict[str, Any]:
    """Who the rival is, the gain over it, its interval, and p."""
    theirs = entry.values(query, metric)
    gain = _gain(values, theirs, metric)
    figures = (_round(gain.mean), _round(gain.low), _round(gain.high))
    p = wilcoxon_p(*paired(values, theirs))
    return dict(zip(rival.columns, (entry.name, *figures, p), strict=True))


def _gain(values: Values, base: Values, metric: str) -> Interval:
    """How much better than the base, paired over users: above zero for a smaller error, too."""
    better, worse = (base, values) if metric in SMALLER_IS_BETTER else (values, base)
    return paired_gain(*paired(better, worse), resamples=_RESAMPLES)


def _cells(entry: Entry, primary: str) -> Iterator[tuple[str, str, str, Entry]]:
    """(slice, metric, split, the row there): all metrics of the primary query, the lead of its
    slices.

    The lengths of histories are slices of the query that has all rows, where it is the primary one.
    """
    lead = lead_of(entry.runs[0].result)
    for query in dict.fromkeys(query for run in entry.runs for query in run.result["slices"]):
        if query == primary:
            metrics = list(entry.runs[0].result["metrics"])
        elif query in ("later", "all") or primary == "after":
            metrics = [lead]
        else:
            continue
        for metric in metrics:
            if entry.values(query, metric):
                yield query, metric, "all", entry
    splits = entry.of_splits()
    if len(splits) > 1:
        for number, split in splits.items():
            yield primary, lead, str(number), split


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Holm over all p-values of a column, in place."""
    for column in ("p_floor", *(rival.p for rival in RIVALS)):
        tested = {i: row[column] for i, row in enumerate(rows) if row[column] is not None}
        for i, p in holm(tested).items():
            rows[i][column] = float(f"{p:.3g}")


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
