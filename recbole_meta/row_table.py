"""The table of a page of rows, from the files of its runs alone.

The unit is the user, the mean over seeds. Every row is compared with the best floor, model of
RecBole's and single-task model on valid, and with the row that the page names as ``against``
(Wilcoxon, paired over users; Holm over all tests of the table).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recbole_meta.evaluation.rows import direction
from recbole_meta.evaluation.significance import bootstrap_interval, holm, paired_gain, wilcoxon_p

_RESAMPLES = 2_000
_GROUPS = ("floor", "recbole", "single")
_AGAINST = "against"
_BASES = (*_GROUPS, _AGAINST)


class Shown(Protocol):
    """What a table needs of its page."""

    dataset: str
    protocol: str
    choose: str
    shown: tuple[str, ...]
    against: str | None


class Finished:
    """A row whose runs are there."""

    def __init__(
        self, name: str, group: str, trials: int, chosen: dict[str, Any], places: Sequence[Path]
    ) -> None:
        self.name, self.group, self.trials, self.chosen = name, group, trials, chosen
        self.results = [json.loads((p / "result.json").read_text("utf-8")) for p in places]
        self.arrays = []
        for place in places:
            with np.load(place / "tasks.npz", allow_pickle=False) as file:
                self.arrays.append({key: file[key] for key in file.files})

    def values(self, metric: str) -> "np.ndarray[Any, Any] | None":
        """Each user's mean over seeds, [U], nan: not judged; None: a figure of all rows at once, or
        none.
        """
        if metric not in self.arrays[0] or np.isnan(self.arrays[0][metric]).all():
            return None
        return np.mean([arrays[metric] for arrays in self.arrays], axis=0)

    def has(self, metric: str) -> bool:
        """Whether the row is judged by it: a model of RecBole's ranks for one objective alone."""
        return metric in self.results[0]["metrics"]

    def mean(self, metric: str, split: str = "metrics") -> float:
        """The mean over seeds; nan where there is none, null in the file."""
        found = [result[split][metric] for result in self.results]
        return float(np.mean([np.nan if value is None else value for value in found]))


def row_table(name: str, page: Shown, rows: list[Finished], results: Path) -> list[Path]:
    """``table.json`` and ``table.md``."""
    cells = [cell for metric in page.shown for cell in _cells(page, metric, rows)]
    tests = {(n, base): cell[f"p_{base}"] for n, cell in enumerate(cells) for base in _BASES
             if cell[f"p_{base}"] is not None}  # fmt: skip
    for (number, base), p in holm(tests).items():
        cells[number][f"p_{base}"] = float(f"{p:.3g}")
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    table, markdown = folder / "table.json", folder / "table.md"
    lines = ",\n".join(json.dumps(cell, separators=(",", ":")) for cell in cells)
    table.write_text(f"[\n{lines}\n]\n", "utf-8")
    markdown.write_text("\n".join(_markdown(name, page, rows, cells)) + "\n", "utf-8")
    return [table, markdown]


def _cells(page: Shown, metric: str, rows: list[Finished]) -> list[dict[str, Any]]:
    """One metric of every row, beside the best of each base on valid."""
    sign = direction(metric)
    best = {
        base: max(here, key=lambda row: sign * row.mean(metric, "valid_metrics"))
        for base in _GROUPS
        if (here := [row for row in rows if row.group == base and row.has(metric)])
    }
    for row in rows:
        if row.name == page.against and row.has(metric):
            best[_AGAINST] = row
    found = []
    for row in (each for each in rows if each.has(metric)):
        values = row.values(metric)
        mean = row.mean(metric)
        cell: dict[str, Any] = {
            "dataset": page.dataset, "protocol": page.protocol, "metric": metric,
            "model": row.name, "group": row.group, "seeds": len(row.results), "mean": mean,
            "low": None, "high": None, "n_tasks": None,
            "valid": row.mean(metric, "valid_metrics"),
        }  # fmt: skip
        if values is not None:
            interval = bootstrap_interval(values, resamples=_RESAMPLES)
            cell |= {"low": interval.low, "high": interval.high,
                     "n_tasks": int((~np.isnan(values)).sum())}  # fmt: skip
        for base in _BASES:
            cell |= dict.fromkeys((f"gain_{base}", f"gain_{base}_low", f"gain_{base}_high",
                                   f"p_{base}"))  # fmt: skip
            other = best.get(base)
            if other is None or other is row or values is None or row.group == "floor":
                continue
            theirs = other.values(metric)
            assert theirs is not None
            better, worse = (values, theirs) if sign > 0 else (theirs, values)
            gain = paired_gain(better, worse, resamples=_RESAMPLES)
            cell |= {f"gain_{base}": gain.mean, f"gain_{base}_low": gain.low}
            cell |= {f"gain_{base}_high": gain.high, f"p_{base}": wilcoxon_p(values, theirs)}
        found.append({k: _rounded(v) if isinstance(v, float) and k[0] != "p" else v
                      for k, v in cell.items()})  # fmt: skip
    return found


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 5)


def _named(page: Shown) -> str:
    return "the best single-task model on valid" if page.against is None else page.against


def _markdown(
    name: str, page: Shown, rows: list[Finished], cells: list[dict[str, Any]]
) -> list[str]:
    lines = [
        f"# {name}", "",
        f"Made by `recbole-meta rows {name}`; all figures are in `table.json`. Means on test over",
        "users, whose values are means over seeds (`pooled_auc`, `calibration_error` and `ratio`:",
        f"over all rows). Settings and epochs are chosen on valid, settings by {page.choose}. In",
        f"brackets the gain over {_named(page)}, paired over users;",
        "`>single`, `<single`: better, worse than the best single-task model on valid at",
        "Holm-adjusted p < .01 (Wilcoxon); so of the floor, of RecBole's models, which learn the",
        "positives of one objective alone, and of the row that the others stand `against`.",
        "", "| group | model | " + " | ".join(page.shown) + " |",
        "|---" * (len(page.shown) + 2) + "|",
    ]  # fmt: skip
    found = {(cell["model"], cell["metric"]): cell for cell in cells}
    for row in rows:
        base = "single" if page.against is None else _AGAINST
        shown = [_shown(found.get((row.name, metric)), base) for metric in page.shown]
        lines.append(f"| {row.group} | {row.name} | {' | '.join(shown)} |")
    lines += ["", "## Settings, chosen on valid", ""]
    for row in rows:
        seconds = np.mean([result["seconds"]["fit"] for result in row.results])
        lines.append(
            f"- {row.name}: {row.trials} trial{'s' * (row.trials > 1)}, {len(row.results)} "
            f"seed{'s' * (len(row.results) > 1)}; {row.chosen}; {row.results[0]['parameters']} "
            f"parameters; {seconds:.0f} s a training."
        )
    return lines


def _shown(cell: dict[str, Any] | None, bracket: str) -> str:
    if cell is None:
        return ""
    if cell["mean"] is None:
        return "-"
    text = f"{cell['mean']:.4f}"
    if cell[f"gain_{bracket}"] is not None:
        text += f" ({cell[f'gain_{bracket}']:+.4f})"
    for base in _BASES:
        if cell[f"p_{base}"] is not None and cell[f"p_{base}"] < 0.01:
            text += f" {'>' if cell[f'gain_{base}'] > 0 else '<'}{base}"
    return text
