"""The published table of a benchmark, from the result files of its runs alone.

The champion of a group is named by valid; only champions are tested against each other, paired over
users (Wilcoxon), and the p-values are adjusted by Holm over all (protocol, order, k) of the table.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import (
    FAILED,
    GROUPS,
    Entry,
    RunFiles,
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

_CF = ("fold-in", "recbole")
_RESAMPLES = 2_000  # of users, for an interval: thousands of cells
_LEAD = {"ndcg@10": "NDCG@10", "mae": "MAE", "auc": "AUC"}  # rankings, ratings, labels


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
    page.write_text(_markdown(name, sections, _choices(root, file), file), "utf-8")
    return table, page


def _units(root: Path, judging: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The finished units of an entry, RecBole's rows from where they ran."""
    own = judging.get("trained_from", judging["name"]) == judging["name"]
    sources = [(judging["name"], lambda trained: own or not trained)]
    if not own and judging["trained_from"]:
        sources.append((judging["trained_from"], lambda trained: trained))
    for source, wanted in sources:
        for split in judging["splits"]:
            for file in sorted((root / source / str(split)).glob("*.json")):
                unit = _unit(file)
                if wanted("scores" not in unit):
                    yield unit


def finished_units(root: Path) -> Iterator[Path]:
    """The files of a benchmark's finished units, ``<entry>/<split>/<row>.json``."""
    for file in sorted(root.glob("*/*/*.json")):
        _unit(file)
        yield file


def _unit(file: Path) -> dict[str, Any]:
    """A finished unit; an error names a damaged file, which 'benchmark' makes again."""
    try:
        unit = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        unit = None
    if not (isinstance(unit, dict) and {"row", "runs", "chosen"} <= unit.keys()):
        raise DataError(f"{file} is damaged: run 'recbole-meta benchmark' again, then 'table'.")
    return unit


def entries_of(root: Path, judging: dict[str, Any], file: dict[str, Any]) -> dict[int, list[Entry]]:
    """k -> the rows that have all splits with all seeds."""
    found: dict[tuple[int, str], list[RunFiles]] = {}
    for unit in _units(root, judging):
        for k, folder in unit["runs"].items():
            run = RunFiles(root / folder)
            if run.result.get("seed") in seeds_of(file, unit["row"]):
                found.setdefault((int(k), unit["row"]), []).append(run)
    by_k: dict[int, list[Entry]] = {}
    for (k, row), runs in found.items():
        if len(runs) == len(judging["splits"]) * len(seeds_of(file, row)):
            about = runs[0].result
            by_k.setdefault(k, []).append(Entry(row, about["group"], about["reads"], tuple(runs)))
    return by_k


def primary_of(by_k: dict[int, list[Entry]]) -> str:
    """The primary query of an entry: that of its own runs (RecBole's may be another entry's)."""
    entries = [entry for entries in by_k.values() for entry in entries]
    own = next((entry for entry in entries if entry.group != "recbole"), entries[0])
    return str(own.runs[0].result["query"])


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
    for failure in _failures(root):
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


def _failures(root: Path) -> Iterator[dict[str, Any]]:
    """What failed units, and trials, say of themselves; a file of another kind says nothing."""
    for path in sorted(root.rglob(f"*.json{FAILED}")):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and {"row", "entries", "k", "group", "error"} <= found.keys():
            yield found


def lead_of(result: dict[str, Any]) -> str:
    """The metric that champions are named by."""
    return next(metric for metric in _LEAD if metric in result["metrics"])


def _compare(entries: Sequence[Entry], k: int, protocol: str, primary: str) -> list[dict[str, Any]]:
    """All rows of one (entry, k): every metric on every slice, and the champions' tests on the
    primary one.
    """
    about = entries[0].runs[0].result
    lead = lead_of(about)
    floor = champion(entries, ["floor"], primary, lead)
    cf = champion(entries, _CF, primary, lead)
    champions = {e.name for g in GROUPS if (e := champion(entries, [g], primary, lead))}
    rows = []
    for entry in sorted(entries, key=lambda e: GROUPS.index(e.group)):
        for query, metric, split, values in _cells(entry, primary):
            interval = bootstrap_interval(list(values.values()), resamples=_RESAMPLES)
            base = floor.values(query, metric) if floor and split == "all" else {}
            row = {
                "dataset": about["dataset"], "protocol": protocol, "order": about["order"],
                "split": split, "k": k, "model": entry.name, "group": entry.group,
                "reads": entry.reads, "seeds": entry.n_seeds, "metric": metric, "slice": query,
                "mean": _round(interval.mean), "low": _round(interval.low),
                "high": _round(interval.high), "n_tasks": len(values),
                "gain_over_floor": None, "gain_low": None, "gain_high": None,
                "gain_over_cf": None, "p_floor": None, "p_cf": None,
                "champion": entry.name in champions and split == "all",
                "valid": _round(entry.valid(query, metric)) if split == "all" else None,
            }  # fmt: skip
            if base and entry is not floor:
                gain = _gain(values, base, metric)
                row |= {"gain_over_floor": _round(gain.mean), "gain_low": _round(gain.low),
                        "gain_high": _round(gain.high)}  # fmt: skip
            if row["champion"] and (query, metric) == (primary, lead):
                if floor and entry is not floor:
                    row["p_floor"] = wilcoxon_p(*paired(values, floor.values(query, metric)))
                if cf and entry is not cf and entry.group in ("ours", "published"):
                    theirs = cf.values(query, metric)
                    row["gain_over_cf"] = _round(_gain(values, theirs, metric).mean)
                    row["p_cf"] = wilcoxon_p(*paired(values, theirs))
            rows.append(row)
    return rows


def _gain(values: Values, base: Values, metric: str) -> Interval:
    """How much better than the base, paired over users: above zero for a smaller error, too."""
    better, worse = (base, values) if metric in SMALLER_IS_BETTER else (values, base)
    return paired_gain(*paired(better, worse), resamples=_RESAMPLES)


def _cells(entry: Entry, primary: str) -> Iterator[tuple[str, str, str, Values]]:
    """(slice, metric, split, values): all metrics of the primary query, the lead of its slices.

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
            if values := entry.values(query, metric):
                yield query, metric, "all", values
    splits = entry.of_splits()
    if len(splits) > 1:
        for number, split in splits.items():
            yield primary, lead, str(number), split.values(primary, lead)


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Holm over all p-values of a column, in place."""
    for column in ("p_floor", "p_cf"):
        tested = {i: row[column] for i, row in enumerate(rows) if row[column] is not None}
        for i, p in holm(tested).items():
            rows[i][column] = float(f"{p:.3g}")


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _choices(root: Path, file: dict[str, Any]) -> list[str]:
    """How many trials each row had, which edges of its grid were chosen often, and whether the
    epochs ended a training, a line each.
    """
    units = [unit for judging in file["settings"] for unit in _units(root, judging)]
    lines = []
    for row in (*file["rows"], *file["trained"]["rows"]):
        mine = [unit for unit in units if unit["row"] == row["name"]]
        if "grid" in row and mine:
            lists = [options for options in row["grid"].values() if isinstance(options, list)]
            points = math.prod(map(len, lists)) if len(lists) == len(row["grid"]) else math.inf
            tried = len(mine[0].get("trials", [])) or min(
                points, file["trained"]["searches"][0]["trials"]
            )
            chosen = [
                settings
                for unit in mine
                for k, settings in unit["chosen"].items()
                if k != "0"  # without support most settings change nothing
            ]
            edges = "; ".join(_edges(row["grid"], chosen)) or "none"
            seeds = len(seeds_of(file, row["name"]))
            mean = f"; the mean of each user over {seeds} seeds" if seeds > 1 else ""
            lines.append(
                f"- {row['name']}: {tried} trials; edges chosen: {edges}{_capped(root, mine)}{mean}"
            )
    return lines


def _edges(grid: dict[str, Any], chosen: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The ends of numeric grids of three values or more that over a third of the choices sit on,
    and those of ranges that they lie beside: within a twentieth of the range.
    """
    for names, options in grid.items():
        if isinstance(options, dict):
            yield from _ends(names, options, [settings[names] for settings in chosen])
            continue
        together = names.split(",")
        columns = zip(*options, strict=True) if len(together) > 1 else [options]
        for name, column in zip(together, columns, strict=True):
            values = set(map(str, column))
            if len(values) < 3 or not all(isinstance(value, int | float) for value in column):
                continue
            for edge in (min(column), max(column)):
                hits = sum(settings[name] == edge for settings in chosen)
                if 3 * hits > len(chosen):
                    yield f"{name} = {edge} in {hits} of {len(chosen)}"


def _ends(name: str, options: dict[str, Any], chosen: Sequence[float]) -> Iterator[str]:
    scale = math.log if options.get("log") else float
    low, high = scale(options["low"]), scale(options["high"])
    places = [(scale(value) - low) / (high - low) for value in chosen]
    for end, hits in (
        ("low", sum(place < 0.05 for place in places)),
        ("high", sum(place > 0.95 for place in places)),
    ):
        if 3 * hits > len(chosen):
            yield f"{name} near {options[end]} in {hits} of {len(chosen)}"


def _capped(root: Path, units: Sequence[dict[str, Any]]) -> str:
    """In how many trainings of a learner the best epoch is in the last tenth of those allowed."""
    results = [RunFiles(root / next(iter(unit["runs"].values()))).result for unit in units]
    trained = [result for result in results if result.get("history")]
    late = sum(10 * result["epochs"] > 9 * result["config"]["epochs"] for result in trained)
    return f"; best epoch near the cap in {late} of {len(trained)}" if late else ""


@dataclass(frozen=True)
class Section:
    """What the page shows of an entry."""

    judging: dict[str, Any]
    primary: str
    rows: list[dict[str, Any]]
    absent: list[str]

    @property
    def lead(self) -> str:
        """The metric that champions are named by."""
        return lead_of({"metrics": {row["metric"] for row in self.rows}})

    @property
    def order(self) -> str:
        """The order of its rows."""
        return str(self.rows[0]["order"])


def _origin(section: Section, sections: Sequence[Section], file: dict[str, Any]) -> str:
    """On what the settings of a section's rows were chosen; what trains had another choice."""
    trained = {row["name"] for row in file["trained"]["rows"]}
    here = {row["model"]: row["group"] for row in section.rows if row["model"] in trained}
    ours = any(group != "recbole" for group in here.values())
    said = (
        f"{'Closed forms' if ours else 'Ours'}: at most {file['trials']} trials per k and split, "
    )
    said += "on valid by this query."
    if not here:
        return said
    name = section.judging["name"]
    by_name = {other.judging["name"]: other for other in sections}
    source = section.judging.get("trained_from", name)
    order = by_name[source].order
    search = next(s for s in file["trained"]["searches"] if by_name[s["setting"]].order == order)
    kinds = []
    if "recbole" in here.values():
        kinds.append(f" RecBole's models: one search of {search['trials']} trials at k = "
                     f"{search['shots']}")  # fmt: skip
    if ours:
        number = f"one search of {search['trials']} trials, " if not kinds else ""
        kinds.append(f" {'l' if kinds else 'L'}earners that train: {number}by the mean over k")
    said += ";".join(kinds) + (
        f", on valid of split {search['split']} of `{search['setting']}`, for all k and splits"
    )
    if search["setting"] != source:
        said += f"; `{search['setting']}` sees users and rows that the splits here hold back"
    elif len(section.judging["splits"]) > 1:
        said += "; users of that valid are judged in other splits"
    said += "."
    if source != name:
        said += (
            f" They are the runs of `{source}`: **search and early stopping chose by its query, "
            f"{by_name[source].primary}**, not by this one, to their disadvantage."
        )
    return said


def _markdown(
    name: str, sections: Sequence[Section], choices: list[str], file: dict[str, Any]
) -> str:
    """One table per entry: rows are models, columns k, the lead metric of the primary query."""
    leads = dict.fromkeys(_LEAD[section.lead] for section in sections)
    lines = [
        f"# {name}",
        "",
        f"Made by `recbole-meta benchmark {name}` and `recbole-meta table {name}`; all figures are",
        f"in `table.json`. {', '.join(leads)}, mean over users, and the gain over the best floor "
        "(above",
        "zero: better) with its 95 % interval (paired bootstrap). **Bold**: the champion of its",
        "group, named on valid.",
        "`>floor`, `>CF`: better than the champion of the floors, of the fold-in rules and",
        "RecBole's models, at Holm-adjusted p < .01 (Wilcoxon over users); `<floor`, `<CF`: worse.",
    ]
    for section in sections:
        about = section.rows[0]
        where = f"{about['dataset']}, {about['protocol']}, order {about['order']}"
        lines += ["", f"## {section.judging['name']}: {where}, {section.primary}", ""]
        lines += [_origin(section, sections, file), ""]
        lines += _pivot([r for r in section.rows if r["slice"] == section.primary], section.lead)
        late = [r for r in section.rows if r["slice"] == "later"]
        if late:
            n = max(r["n_tasks"] for r in late)
            lines += ["", f"Slice `later` ({n} users):", "", *_pivot(late, section.lead)]
        failed = {r["model"]: r["failed"] for r in section.rows if "failed" in r}
        if failed:
            said = "; ".join(f"{model} ({error})" for model, error in failed.items())
            lines += ["", f"Failed: {said}."]
        if section.absent:
            lines += ["", f"Not finished, so not shown: {', '.join(section.absent)}."]
    lines += ["", "## Settings, chosen on valid", "", *choices, ""]
    return "\n".join(lines)


def _pivot(rows: Sequence[dict[str, Any]], lead: str) -> list[str]:
    rows = [r for r in rows if r["metric"] == lead and r["split"] == "all"]
    shots = sorted({r["k"] for r in rows})
    n = max(r["n_tasks"] for r in rows)
    lines = [
        f"| group | model ({n} users) | " + " | ".join(f"k = {k}" for k in shots) + " |",
        "|---" * (len(shots) + 2) + "|",
    ]
    for model, group in dict.fromkeys((r["model"], r["group"]) for r in rows):
        cells = [
            _cell(next((r for r in rows if r["model"] == model and r["k"] == k), None))
            for k in shots
        ]
        lines.append(f"| {group} | {model} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "failed" in row:
        return "" if row is None else "failed"
    text = f"{row['mean']:.3f}"
    if row["champion"]:
        text = f"**{text}**"
    if row["gain_over_floor"] is not None:
        text += (
            f" ({row['gain_over_floor']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}])"
        )
    for p, gain, against in (
        ("p_floor", "gain_over_floor", "floor"),
        ("p_cf", "gain_over_cf", "CF"),
    ):
        if row[p] is not None and row[p] < 0.01:
            text += f" {'>' if row[gain] > 0 else '<'}{against}"
    return text
