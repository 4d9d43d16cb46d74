"""The table of a page of multi-task models, from the files of its runs alone.

The unit is the user: a user's values are averaged over the seeds. The champion of a group is named
on valid, per objective; ours is tested against the champions of the floors, of the rules, of
RecBole's models and of the models of one objective (Wilcoxon, paired over users; Holm over all
tests of the table). A distribution over categories has a part of its own, led by its cross-entropy,
of which less is better: a gain is what is less. Rows whose models say none are not in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import slug
from recbole_meta.evaluation.significance import bootstrap_interval, holm, paired_gain, wilcoxon_p
from recbole_meta.settings import named_page

GROUPS = ("floor", "rule", "recbole", "single", "ours")
_BASES = GROUPS[:-1]  # whose champions the later groups are compared with
LEAD = "ndcg@10"
_METRICS = ("ndcg@10", "recall@10")
_QUERIES = ("", "/novel")
SHARE_LEAD = "cross_entropy"  # of a distribution
_SHARE_METRICS = ("cross_entropy", "recall@3")
_RESAMPLES = 2_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """A row's runs of one objective: what a user's value is, and the mean on valid."""

    row: str
    group: str
    objective: str
    arrays: list[dict[str, npt.NDArray[Any]]]  # of each seed
    results: list[dict[str, Any]]

    @property
    def ranked(self) -> bool:
        """Else it is a distribution."""
        return f"{self.objective}/{LEAD}" in self.arrays[0]

    @property
    def lead(self) -> str:
        """The metric that names champions and is tested."""
        return f"{self.objective}/{LEAD if self.ranked else SHARE_LEAD}"

    @property
    def metrics(self) -> list[str]:
        """What the table has of it."""
        if not self.ranked:
            return [f"{self.objective}/{metric}" for metric in _SHARE_METRICS]
        return [f"{self.objective}/{metric}{query}" for metric in _METRICS for query in _QUERIES]

    def values(self, metric: str) -> Floats:
        """Each user's mean over seeds, [T]; nan: not in the slice."""
        return np.mean([arrays[metric] for arrays in self.arrays], axis=0)

    def mean_of(self, metric: str, split: str = "metrics") -> list[float]:
        """The mean over users of each seed; nan where nobody is judged, null in the file."""
        found = [result[split][metric] for result in self.results]
        return [np.nan if value is None else float(value) for value in found]


def multitask_table(name: str, runs: Path, results: Path) -> tuple[Path, Path]:
    """``table.json`` and ``table.md`` of a page from the runs below ``runs/<name>``."""
    name, page = named_page("multitask", name)
    units = [_unit(runs / name, entry["name"]) for entry in page["rows"]]
    cells = [cell for unit in units for cell in _cells(runs / name, unit)]
    rows = _rows(cells)
    seconds = {unit["row"]: _seconds(cells, unit["row"]) for unit in units}
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    table, markdown = folder / "table.json", folder / "table.md"
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    table.write_text(f"[\n{lines}\n]\n", "utf-8")
    markdown.write_text("\n".join(_markdown(name, page, units, rows, seconds)) + "\n", "utf-8")
    return table, markdown


def _unit(root: Path, row: str) -> dict[str, Any]:
    """What the search of a row chose, and where its runs are."""
    file = root / f"{slug(row)}.json"
    try:
        unit: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Row '{row}' is not finished: {error}") from error
    return unit


def _cells(root: Path, unit: dict[str, Any]) -> list[Cell]:
    found: dict[str, Cell] = {}
    for by_objective in unit["runs"].values():
        for objective, folder in by_objective.items():
            result = json.loads((root / folder / "result.json").read_text("utf-8"))
            with np.load(root / folder / "tasks.npz", allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if key.startswith(f"{objective}/")}
            new = Cell(unit["row"], result["group"], objective, [], [])
            cell = found.setdefault(objective, new)
            cell.arrays.append(arrays)
            cell.results.append(result)
    return list(found.values())


def _seconds(cells: Sequence[Cell], row: str) -> float:
    """Of one fit, the mean over a row's runs."""
    results = [result for cell in cells if cell.row == row for result in cell.results]
    fits = {(json.dumps(r["settings"]), r["seed"]): r["seconds"]["fit"] for r in results}
    return float(np.mean(list(fits.values())))


def _champions(cells: Sequence[Cell], objective: str) -> dict[str, Cell]:
    """The best of each group on valid."""
    best: dict[str, Cell] = {}

    def valid(cell: Cell) -> float:
        return _sign(cell.lead) * float(np.mean(cell.mean_of(cell.lead, "valid_metrics")))

    for cell in cells:
        if cell.objective == objective:
            other = best.get(cell.group)
            if other is None or valid(cell) > valid(other):
                best[cell.group] = cell
    return best


def _rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every row, objective, metric and slice; the champions' tests on the leading metrics."""
    rows = []
    for objective in dict.fromkeys(cell.objective for cell in cells):
        best = _champions(cells, objective)
        for cell in (cell for cell in cells if cell.objective == objective):
            rows += [_row(cell, metric, best) for metric in cell.metrics]
    tests = {
        (number, key): row[key]
        for number, row in enumerate(rows)
        for key in (f"p_{group}" for group in _BASES)
        if row[key] is not None
    }
    for (number, key), p in holm(tests).items():
        rows[number][key] = float(f"{p:.3g}")
    return rows


def _row(cell: Cell, metric: str, best: dict[str, Cell]) -> dict[str, Any]:
    values = cell.values(metric)
    interval = bootstrap_interval(values, resamples=_RESAMPLES)
    means = cell.mean_of(metric)
    champion = best[cell.group] is cell
    row = {
        "dataset": cell.results[0]["dataset"], "protocol": cell.results[0]["protocol"],
        "objective": cell.objective, "metric": metric, "model": cell.row, "group": cell.group,
        "mean": _round(interval.mean), "low": _round(interval.low), "high": _round(interval.high),
        "n_tasks": int((~np.isnan(values)).sum()), "seeds": len(means),
        "sd_of_seeds": _round(float(np.std(means, ddof=1))) if len(means) > 1 else None,
        "valid": _round(float(np.mean(cell.mean_of(metric, "valid_metrics")))),
        "champion": champion,
    }  # fmt: skip
    for group in _BASES:
        base = best.get(group)
        row |= {f"gain_{group}": None, f"gain_{group}_low": None, f"gain_{group}_high": None,
                f"p_{group}": None}  # fmt: skip
        if base is None or GROUPS.index(group) >= GROUPS.index(cell.group):
            continue
        sign = _sign(metric)
        gain = paired_gain(sign * values, sign * base.values(metric), resamples=_RESAMPLES)
        row |= {f"gain_{group}": _round(gain.mean), f"gain_{group}_low": _round(gain.low),
                f"gain_{group}_high": _round(gain.high)}  # fmt: skip
        if champion and metric.startswith(cell.lead):
            row[f"p_{group}"] = wilcoxon_p(values, base.values(metric))
    return row


def _sign(metric: str) -> int:
    """1 where more is better."""
    return -1 if metric.endswith(SHARE_LEAD) else 1


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def _markdown(
    name: str,
    page: dict[str, Any],
    units: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    seconds: dict[str, float],
) -> list[str]:
    said = list(dict.fromkeys(r["objective"] for r in rows if r["metric"].endswith(SHARE_LEAD)))
    objectives = [o for o in dict.fromkeys(row["objective"] for row in rows) if o not in said]
    lines = [
        f"# {name}", "",
        f"Made by `recbole-meta multitask {name}`; all figures are in `table.json`. NDCG@10, mean",
        "over users with a positive in test, with its 95 % interval (bootstrap over users, whose",
        "values are means over seeds). **Bold**: the champion of its group, named on valid, per",
        "objective. `>rule`, `>recbole`, `>single`: better than that group's champion at",
        "Holm-adjusted p < .01 (Wilcoxon over users); `<rule`, `<single`: worse. Seconds are of",
        "one fit on one thread, its validations included: the mean over the runs that are judged.",
    ]  # fmt: skip
    for query, title in zip(_QUERIES, ("All pairs", "Novel pairs: unseen under any behaviour")):
        found = {(r["model"], r["metric"]): r for r in rows}
        counts = {o: rows_of(rows, f"{o}/{LEAD}{query}")[0]["n_tasks"] for o in objectives}
        head = " | ".join(f"{o} ({counts[o]} users)" for o in objectives)
        lines += ["", f"## {title}", "", f"| group | model | {head} |",
                  "|---" * (len(objectives) + 2) + "|"]  # fmt: skip
        for model, group in dict.fromkeys((r["model"], r["group"]) for r in rows):
            cells = [_cell(found[model, f"{o}/{LEAD}{query}"]) for o in objectives]
            lines.append(f"| {group} | {model} | {' | '.join(cells)} |")
        for other in page["published"] if not query else ():
            cells = [f"{other['metrics'][f'{o}/{LEAD}']:.4f}" for o in objectives]
            lines.append(f"| published | {other['name']} | {' | '.join(cells)} |")
    for objective in said:
        lines += _distribution(objective, rows)
    lines += [f"\n{other['name']}: {other['note']}" for other in page["published"]]
    lines += ["", "## Settings, chosen on valid", ""]
    return lines + [line for unit in units for line in _chosen(unit, page, seconds[unit["row"]])]


def _distribution(objective: str, rows: list[dict[str, Any]]) -> list[str]:
    """The part of a distribution over categories."""
    found = {
        (r["model"], r["metric"].split("/")[1]): r for r in rows if r["objective"] == objective
    }
    count = next(iter(found.values()))["n_tasks"]
    lines = [
        "", f"## {objective}: a distribution over categories ({count} users)", "",
        "Cross-entropy (less is better) to a user's own distribution in test, and the share of it",
        "in the three likeliest categories over the largest that any three have.", "",
        "| group | model | cross_entropy | recall@3 |", "|---|---|---|---|",
    ]  # fmt: skip
    for model, row in {model: row for (model, _), row in found.items()}.items():
        cells = " | ".join(_cell(found[model, metric]) for metric in _SHARE_METRICS)
        lines.append(f"| {row['group']} | {model} | {cells} |")
    return lines


def rows_of(rows: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The rows of one metric."""
    return [row for row in rows if row["metric"] == metric]


def _cell(row: dict[str, Any]) -> str:
    if row["mean"] is None:  # nobody is judged
        return "-"
    text = f"{row['mean']:.4f}"
    text = f"**{text}**" if row["champion"] else text
    text += f" [{row['low']:.4f}, {row['high']:.4f}]"
    for group in _BASES:
        if row[f"p_{group}"] is not None and row[f"p_{group}"] < 0.01:
            text += f" {'>' if row[f'gain_{group}'] > 0 else '<'}{group}"
    return text


def _chosen(unit: dict[str, Any], page: dict[str, Any], fit: float) -> list[str]:
    """How many trials a row had, how long one takes, what was chosen, on which edges of its grid
    that lies.
    """
    (entry,) = (entry for entry in page["rows"] if entry["name"] == unit["row"])
    grid = entry.get("grid", {})
    how = "per objective" if unit["choose"] == "each" else "by the mean over objectives"
    seeds = len(unit["seeds"])
    trials = len(unit["trials"])
    said = f"{trials} trial{'s' * (trials > 1)}, chosen {how}; {seeds} seed{'s' * (seeds > 1)}"
    lines = [f"- {unit['row']}: {said}; {fit:.1f} s a fit."]
    if not grid:
        return lines
    for objective, settings in unit["chosen"].items():
        parts = [f"{key} = {settings[key]}{_edge(grid.get(key), settings[key])}"
                for names in grid for key in names.split(",")]  # fmt: skip
        lines.append(f"  - {objective}: {', '.join(parts)}")
    return lines


def _edge(options: Any, value: Any) -> str:
    """Says that a number is an end of its grid."""
    if not isinstance(options, list) or len(options) < 3 or not isinstance(value, int | float):
        return ""
    return " (edge)" if value in (min(options), max(options)) else ""
