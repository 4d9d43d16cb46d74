"""Tables from result files: what stands in a run's folder is all that is read.

The unit is the user: a user's values are averaged over the splits in which he is judged, then users are
resampled. The champion of a group is named by valid; only champions are tested against each other, paired over
users (Wilcoxon), and the p-values are adjusted by Holm over all (order, protocol, k) of the table.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_meta.errors import DataError
from recbole_meta.evaluation.metrics import SMALLER_IS_BETTER
from recbole_meta.evaluation.significance import (
    Interval,
    bootstrap_interval,
    holm,
    paired_gain,
    wilcoxon_p,
)
from recbole_meta.settings import load_properties

Values = dict[str, float]  # task -> value
GROUPS = ("floor", "fold-in", "recbole", "published", "ours")
_CF = ("fold-in", "recbole")


class RunFiles:
    """``result.json`` and ``tasks.npz`` of one run."""

    def __init__(self, folder: Path) -> None:
        try:
            self.result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
            with np.load(folder / "tasks.npz", allow_pickle=False) as arrays:
                self.arrays = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError) as error:
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
        return float(self.result["valid_slices"].get(query, {}).get(metric, np.nan))


@dataclass(frozen=True)
class Entry:
    """A row of a table before it is compared: one model at one k, over its splits."""

    name: str
    group: str
    reads: str
    runs: tuple[RunFiles, ...]

    def values(self, query: str, metric: str) -> Values:
        """Each user's mean over the splits in which he is judged."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for task, value in run.values(query, metric).items():
                found.setdefault(task, []).append(value)
        return {task: float(np.mean(values)) for task, values in found.items()}

    def valid(self, query: str, metric: str) -> float:
        """The mean on valid over the splits, what champions are named by."""
        return float(np.mean([run.valid(query, metric) for run in self.runs]))


def champion(entries: Sequence[Entry], groups: Iterable[str], query: str, metric: str) -> Entry | None:
    """The best by valid of these groups; None where there is none."""
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    chosen = [e for e in entries if e.group in set(groups) and not np.isnan(e.valid(query, metric))]
    return max(chosen, key=lambda e: sign * e.valid(query, metric), default=None)


def paired(values: Values, baseline: Values) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both on the tasks that both have, in one order."""
    tasks = sorted(values.keys() & baseline.keys())
    return np.array([values[t] for t in tasks]), np.array([baseline[t] for t in tasks])


# The table of a few runs, for the terminal.


def terminal_table(folders: Sequence[Path]) -> str:
    """Group, metric with interval, gain over the best floor, seconds, what it reads; the best row is marked."""
    entries = []
    for folder in folders:
        files = RunFiles(folder)
        about = files.result
        entries.append(Entry(about["model"], about["group"], about["reads"], (files,)))
    lines: list[str] = []
    for k in sorted({e.runs[0].result["shots"] for e in entries}):
        lines += ["", *_terminal_rows([e for e in entries if e.runs[0].result["shots"] == k], k)]
    return "\n".join(lines[1:])


_SECOND = {"ndcg@10": "recall@10", "mae": "rmse", "auc": "logloss"}


def _terminal_rows(entries: Sequence[Entry], k: int) -> list[str]:
    about = entries[0].runs[0].result
    query, metric = about["query"], next(m for m in _SECOND if m in about["metrics"])
    smaller = metric in SMALLER_IS_BETTER
    floor = champion(entries, ["floor"], query, metric)
    means = {e.name: float(np.mean(list(e.values(query, metric).values()))) for e in entries}
    best = (min if smaller else max)(means, key=lambda name: means[name])
    second = _SECOND[metric]
    gain_head = f"gain over {floor.name}" if floor else "gain"
    rows = [["", "group", "model", f"{metric} [95 %]", second, f"{gain_head} [95 %]", "seconds", "reads"]]
    ordered = sorted(entries, key=lambda e: (GROUPS.index(e.group), means[e.name] * (-1 if smaller else 1)))
    for entry in ordered:
        run = entry.runs[0]
        values = entry.values(query, metric)
        gain = "(best floor on valid)" if entry is floor else ""
        if floor and entry is not floor:
            gain = _signed(paired_gain(*paired(values, floor.values(query, metric))))
        rows.append([
            "*" if entry.name == best else "", entry.group, entry.name,
            _interval(bootstrap_interval(list(values.values()))),
            f"{run.result['metrics'][second]:.4f}", gain,
            f"{sum(run.result['seconds'].values()):.1f}", entry.reads,
        ])  # fmt: skip
    n = len(entries[0].values(query, metric))
    head = (
        f"{about['dataset']}, {about['protocol']}, order {about['order']}, split {about['split']}, "
        f"k = {k}: {n} cold users, query '{query}'"
    )
    better = "smaller" if smaller else "larger"
    return [head, *_aligned(rows), f"* best mean on test ({better} is better); settings are the defaults."]


def _interval(i: Interval) -> str:
    return f"{i.mean:.4f} [{i.low:.4f}, {i.high:.4f}]"


def _signed(i: Interval) -> str:
    return f"{i.mean:+.4f} [{i.low:+.4f}, {i.high:+.4f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


# The published table of a benchmark.

_METRICS = ("ndcg@10", "recall@10", "mrr@10", "hit@10")


def benchmark_table(name: str, runs: Path, results: Path) -> tuple[Path, Path]:
    """``table.json`` and ``table.md`` of a benchmark from the runs below ``runs/<name>``."""
    file = load_properties("benchmark", name)
    root = runs / name
    rows: list[dict[str, Any]] = []
    sections = []
    for judging in file["settings"]:
        by_k = _entries(root, judging)
        if not by_k:
            raise DataError(f"{root / judging['name']}: no finished run. Run 'recbole-meta benchmark {name}'.")
        query = _primary(by_k)
        section = [row for k, e in sorted(by_k.items()) for row in _compare(e, k, judging["protocol"], query)]
        sections.append((judging["name"], query, section))
        rows += section
    _adjust(rows)
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    table, page = folder / "table.json", folder / "table.md"
    table.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", "utf-8")
    page.write_text(_markdown(name, sections, _choices(root, file)), "utf-8")
    return table, page


def _units(root: Path, judging: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The finished units of an entry, RecBole's rows from where they ran."""
    own = judging.get("recbole_from", judging["name"]) == judging["name"]
    sources = [(judging["name"], lambda trained: own or not trained)]
    if not own and judging["recbole_from"]:
        sources.append((judging["recbole_from"], lambda trained: trained))
    for source, wanted in sources:
        for split in judging["splits"]:
            for file in sorted((root / source / str(split)).glob("*.json")):
                unit = json.loads(file.read_text("utf-8"))
                if wanted("scores" not in unit):
                    yield unit


def _entries(root: Path, judging: dict[str, Any]) -> dict[int, list[Entry]]:
    """k -> the rows that have all splits."""
    found: dict[tuple[int, str], list[RunFiles]] = {}
    for unit in _units(root, judging):
        for k, folder in unit["runs"].items():
            found.setdefault((int(k), unit["row"]), []).append(RunFiles(root / folder))
    by_k: dict[int, list[Entry]] = {}
    for (k, row), runs in found.items():
        if len(runs) == len(judging["splits"]):
            about = runs[0].result
            by_k.setdefault(k, []).append(Entry(row, about["group"], about["reads"], tuple(runs)))
    return by_k


def _primary(by_k: dict[int, list[Entry]]) -> str:
    """The primary query of an entry: that of its own runs (RecBole's may come from another entry)."""
    own = (e for entries in by_k.values() for e in entries if e.group == "floor")
    return str(next(own).runs[0].result["query"])


def _compare(entries: Sequence[Entry], k: int, protocol: str, primary: str) -> list[dict[str, Any]]:
    """All rows of one (entry, k): every metric on every slice, and the champions' tests on the primary one."""
    about = entries[0].runs[0].result
    floor = champion(entries, ["floor"], primary, "ndcg@10")
    cf = champion(entries, _CF, primary, "ndcg@10")
    champions = {e.name for g in GROUPS if (e := champion(entries, [g], primary, "ndcg@10"))}
    rows = []
    for entry in sorted(entries, key=lambda e: GROUPS.index(e.group)):
        for query, metric, split, values in _cells(entry, primary):
            interval = bootstrap_interval(list(values.values()))
            base = floor.values(query, metric) if floor and split == "all" else {}
            row = {
                "dataset": about["dataset"], "protocol": protocol, "order": about["order"],
                "split": split, "k": k, "model": entry.name, "group": entry.group,
                "reads": entry.reads, "metric": metric, "slice": query,
                "mean": _round(interval.mean), "low": _round(interval.low), "high": _round(interval.high),
                "n_tasks": len(values), "gain_over_floor": None, "gain_low": None, "gain_high": None,
                "gain_over_cf": None, "p_floor": None, "p_cf": None,
                "champion": entry.name in champions and split == "all",
                "valid": _round(entry.valid(query, metric)) if split == "all" else None,
            }  # fmt: skip
            if base and entry is not floor:
                gain = paired_gain(*paired(values, base))
                row |= {"gain_over_floor": _round(gain.mean), "gain_low": _round(gain.low),
                        "gain_high": _round(gain.high)}  # fmt: skip
            if row["champion"] and (query, metric) == (primary, "ndcg@10"):
                if floor and entry is not floor:
                    row["p_floor"] = wilcoxon_p(*paired(values, floor.values(query, metric)))
                if cf and entry is not cf and entry.group in ("ours", "published"):
                    both = paired(values, cf.values(query, metric))
                    row["gain_over_cf"], row["p_cf"] = _round(paired_gain(*both).mean), wilcoxon_p(*both)
            rows.append(row)
    return rows


def _cells(entry: Entry, primary: str) -> Iterator[tuple[str, str, str, Values]]:
    """(slice, metric, split, values): every slice over all splits, the primary NDCG@10 for each split, too."""
    slices = {query: None for run in entry.runs for query in run.result["slices"]}
    for query in slices:
        for metric in _METRICS if query in (primary, "after", "later") else ("ndcg@10",):
            if values := entry.values(query, metric):
                yield query, metric, "all", values
    if len(entry.runs) > 1:
        for run in entry.runs:
            yield primary, "ndcg@10", str(run.result["split"]), run.values(primary, "ndcg@10")


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Holm over all p-values of a column, in place."""
    for column in ("p_floor", "p_cf"):
        tested = {i: row[column] for i, row in enumerate(rows) if row[column] is not None}
        for i, p in holm(tested).items():
            rows[i][column] = float(f"{p:.3g}")


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _choices(root: Path, file: dict[str, Any]) -> list[str]:
    """Lines that say what was chosen on valid, how many trials were done, and which grid edges were hit."""
    lines = []
    grids = {row["name"]: row.get("grid", {}) for row in (*file["rows"], *file["recbole"]["rows"])}
    for row, grid in grids.items():
        if not grid:
            continue
        chosen = []
        for judging in file["settings"]:
            for unit in _units(root, judging):
                if unit["row"] == row and judging.get("recbole_from", judging["name"]) == judging["name"]:
                    chosen += list(unit["chosen"].values())
        if not chosen:
            continue
        trials = next((len(u["trials"]) for j in file["settings"] for u in _units(root, j)
                       if u["row"] == row and "trials" in u), file["recbole"]["search"]["trials"])  # fmt: skip
        edges = []
        for names, options in grid.items():
            for name in names.split(","):
                numbers = [o for o in options if isinstance(o, int | float)]
                if len(numbers) > 2:
                    for edge in (min(numbers), max(numbers)):
                        hits = sum(c[name] == edge for c in chosen)
                        if hits > len(chosen) / 3:
                            edges.append(f"{name} = {edge} in {hits} of {len(chosen)}")
        lines.append(f"- {row}: {trials} trials; edges hit: {'; '.join(edges) or 'none'}")
    return lines


def _markdown(
    name: str, sections: Sequence[tuple[str, str, list[dict[str, Any]]]], choices: list[str]
) -> str:
    """One table per entry: rows are models, columns k, NDCG@10 of the primary query."""
    lines = [
        f"# {name}",
        "",
        f"Made by `recbole-meta benchmark {name}` and `recbole-meta table {name}`; all figures in `table.json`.",
        "NDCG@10, mean over users, with the gain over the best floor and its 95 % interval (paired bootstrap).",
        "**Bold**: the champion of its group, named on valid. `>floor`, `>CF`: better than the champion of the "
        "floors, of the fold-in rules and RecBole's models, at Holm-adjusted p < .01; `<` worse.",
    ]
    for title, primary, rows in sections:
        about = rows[0]
        lines += ["", f"## {title}: {about['dataset']}, {about['protocol']}, order {about['order']}, {primary}", ""]
        lines += _pivot([r for r in rows if r["slice"] == primary])
        late = [r for r in rows if r["slice"] == "later"]
        if late:
            lines += ["", f"Slice `later` ({max(r['n_tasks'] for r in late)} users):", "", *_pivot(late)]
    lines += ["", "## Settings, chosen on valid per k", "", *choices, ""]
    return "\n".join(lines)


def _pivot(rows: Sequence[dict[str, Any]]) -> list[str]:
    rows = [r for r in rows if r["metric"] == "ndcg@10" and r["split"] == "all"]
    shots = sorted({r["k"] for r in rows})
    n = max(r["n_tasks"] for r in rows)
    lines = [
        f"| group | model ({n} users) | " + " | ".join(f"k = {k}" for k in shots) + " |",
        "|---" * (len(shots) + 2) + "|",
    ]
    for model, group in dict.fromkeys((r["model"], r["group"]) for r in rows):
        cells = [_cell(next((r for r in rows if r["model"] == model and r["k"] == k), None)) for k in shots]
        lines.append(f"| {group} | {model} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['mean']:.3f}"
    if row["champion"]:
        text = f"**{text}**"
    if row["gain_over_floor"] is not None:
        text += f" ({row['gain_over_floor']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}])"
    for p, gain, against in (("p_floor", "gain_over_floor", "floor"), ("p_cf", "gain_over_cf", "CF")):
        if row[p] is not None and row[p] < 0.01:
            text += f" {'>' if row[gain] > 0 else '<'}{against}"
    return text
