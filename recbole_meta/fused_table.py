"""The table of a page of fused rankings, from the files of its units alone.

The unit is the user: a user's values are means over the seeds. The champion of a source is the way
to fuse, with equal or searched weights, whose mean over the settings of gains is best on valid; the
baseline of equal weights is none. It is tested under each setting against the best head alone and
the best model of the graded target, both named on valid, and against the baseline: bootstrap over
users, and Wilcoxon with Holm over all tests of the table. It wins against one of them where it is
better under all settings.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import slug
from recbole_meta.evaluation.significance import bootstrap_interval, holm, paired_gain, wilcoxon_p
from recbole_meta.settings import named_page

METRIC = "fused/ndcg@10"
_LEVEL = 0.05
_RESAMPLES = 2_000
_KINDS = {"equal": ", equal weights", "searched": ", searched weights"}


@dataclass
class Cell:
    """A row under one setting of gains."""

    source: str
    dataset: str
    entry: dict[str, Any]
    values: dict[str, npt.NDArray[np.float64]]  # fused, and every objective: each user's NDCG@10
    row: dict[str, Any]

    @property
    def gains(self) -> str:
        return str(self.entry["gains"])

    @property
    def kind(self) -> str:
        return str(self.entry["kind"])

    @property
    def way(self) -> tuple[str, str]:
        """What has one champion for all settings of gains."""
        return self.entry["row"], self.kind

    @property
    def valid(self) -> float:
        return float(self.entry["valid"])

    def mean_of(self, objective: str) -> float:
        """The mean over the users of an objective."""
        return float(np.nanmean(self.values[objective]))


def fused_table(name: str, runs: Path, results: Path) -> tuple[Path, Path]:
    """``table.json`` and ``table.md`` of a page from the units below ``runs/<name>``."""
    name, page = named_page("fusion", name)
    sources = [entry["name"] for entry in page["sources"]]
    graded = [entry["name"] for entry in page["graded"]]
    cells = [cell for unit in (*sources, *graded) for cell in _cells(runs / name, unit)]
    for cell in cells:
        cell.row = _row(cell, [other for other in cells if other.source == cell.source])
    for source in sources:
        _test(cells, source, page["baseline"])
    _adjust(cells)
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    table, markdown = folder / "table.json", folder / "table.md"
    lines = ",\n".join(json.dumps(cell.row, separators=(",", ":")) for cell in cells)
    table.write_text(f"[\n{lines}\n]\n", "utf-8")
    markdown.write_text("\n".join(_markdown(name, page, cells)) + "\n", "utf-8")
    return table, markdown


def _cells(root: Path, unit: str) -> list[Cell]:
    file = root / f"{slug(unit)}.json"
    try:
        content = json.loads(file.read_text("utf-8"))
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError) as error:
        raise DataError(f"'{unit}' is not finished: {error}") from error
    names = ("fused", *content["objectives"])
    return [
        Cell(unit, content["dataset"], entry, {key: arrays[f"{n}/{key}"] for key in names}, {})
        for n, entry in enumerate(content["entries"])
    ]


def _row(cell: Cell, mine: list[Cell]) -> dict[str, Any]:
    """The row without its tests; ``mine``: all of its source."""
    interval = bootstrap_interval(cell.values["fused"], resamples=_RESAMPLES)
    objectives = [key for key in cell.values if key != "fused"]
    own = {
        each.entry["row"].split()[0]: each
        for each in mine
        if each.kind == "single" and each.gains == cell.gains
    }
    seeds = cell.entry["test"]
    return {
        "dataset": cell.dataset, "source": cell.source, "gains": cell.gains, "metric": METRIC,
        "model": cell.entry["row"], "kind": cell.kind, "weights": cell.entry["weights"],
        "settings": cell.entry.get("settings"),
        "mean": _round(interval.mean), "low": _round(interval.low), "high": _round(interval.high),
        "n_tasks": int((~np.isnan(cell.values["fused"])).sum()), "seeds": len(seeds),
        "sd_of_seeds": _round(float(np.std(seeds, ddof=1))) if len(seeds) > 1 else None,
        "valid": round(cell.valid, 6),
        "ndcg": {name: _round(cell.mean_of(name)) for name in objectives},
        "regret": {name: _regret(cell.mean_of(name), own[name].mean_of(name))
                   for name in objectives} if own else None,
        "champion": False, "against": {},
    }  # fmt: skip


def _regret(fused: float, own: float) -> float | None:
    """None where the own head finds nothing, so that no share of it can be lost."""
    return _round(1 - fused / own) if own else None


def _round(value: float) -> float:
    return round(float(value), 4)


def _best(cells: list[Cell], gains: str) -> Cell:
    """On valid, under a setting of gains."""
    return max((cell for cell in cells if cell.gains == gains), key=lambda cell: cell.valid)


def _test(cells: list[Cell], source: str, baseline: str) -> None:
    """Name the champion of a source, and test it; p-values are not adjusted yet."""
    mine = [cell for cell in cells if cell.source == source]
    fused = [cell for cell in mine if cell.kind in _KINDS and cell.way != (baseline, "equal")]
    scores: dict[tuple[str, str], list[float]] = {}
    for cell in fused:
        scores.setdefault(cell.way, []).append(cell.valid)
    champion = max(scores, key=lambda way: float(np.mean(scores[way])))
    rivals = {
        "best head": [cell for cell in mine if cell.kind == "single"],
        "baseline": [cell for cell in mine if cell.way == (baseline, "equal")],
        "graded model": [cell for cell in cells if cell.kind == "graded"],
    }
    for cell in (cell for cell in fused if cell.way == champion):
        cell.row["champion"] = True
        for name, others in rivals.items():
            if others:
                cell.row["against"][name] = _against(cell, _best(others, cell.gains))


def _against(cell: Cell, other: Cell) -> dict[str, Any]:
    pair = cell.values["fused"], other.values["fused"]
    gain = paired_gain(*pair, resamples=_RESAMPLES)
    return {"model": other.entry["row"], "gain": _round(gain.mean), "low": _round(gain.low),
            "high": _round(gain.high), "p": wilcoxon_p(*pair)}  # fmt: skip


def _adjust(cells: list[Cell]) -> None:
    """Holm over all tests."""
    tests = {
        (number, name): test["p"]
        for number, cell in enumerate(cells)
        for name, test in cell.row["against"].items()
    }
    for (number, name), p in holm(tests).items():
        cells[number].row["against"][name]["p"] = float(f"{p:.3g}")


def _markdown(name: str, page: dict[str, Any], cells: list[Cell]) -> list[str]:
    settings = list(page["gains"])
    users = cells[0].row["n_tasks"]
    lines = [
        f"# {name}", "",
        f"Made by `recbole-meta fuse {name}`; all figures are in `table.json`. Graded NDCG@10 on",
        f"test of one ranking for all objectives, mean over {users} users with a pair that is new",
        "under every behaviour, with its 95 % interval (bootstrap over users, whose values are",
        "means over seeds). An item's gain is the sum of what its behaviours are worth:", "",
        *(f"- {key}: {', '.join(f'{o} {v:g}' for o, v in gains.items())}"
          for key, gains in page["gains"].items()), "",
        "**Bold**: the champion of its source, named on valid by the mean over the settings of",
        f"gains. Each source had {page['trials']} trials of weights per method, each model of the",
        f"graded target at most {page['trials']} of its settings, per setting of gains, on valid.",
        "", f"| source | ranking | {' | '.join(settings)} |", "|---" * (len(settings) + 2) + "|",
    ]  # fmt: skip
    found = {(c.source, c.way, c.gains): c for c in cells}
    order = list(dict.fromkeys((c.source, c.way) for c in cells))
    for source, way in order:
        shown = [_interval(found[source, way, gains].row) for gains in settings]
        lines.append(f"| {source} | {_title(way)} | {' | '.join(shown)} |")
    lines += ["", "## Tests of the champions", "", *_tests(cells, settings)]
    lines += ["", "## The price", "",
              "Regret on test: the share of an objective's NDCG@10 under its own head's ranking",
              "that the fused one loses; below 0, it gains.", ""]  # fmt: skip
    if any(None in (cell.row["regret"] or {}).values() for cell in cells):
        lines[-1:] = ["-: its own head finds nothing on test.", ""]
    objectives = [key for key in cells[0].values if key != "fused"]
    lines += [f"| source | gains | ranking | {' | '.join(objectives)} | weights |",
              "|---" * (len(objectives) + 4) + "|"]  # fmt: skip
    for cell in cells:
        if cell.kind in ("equal", "searched"):
            lost = [cell.row["regret"][name] for name in objectives]
            regret = ["-" if each is None else f"{each:+.3f}" for each in lost]
            weights = ", ".join(f"{key} {w:.3f}" for key, w in cell.row["weights"].items())
            lines.append(f"| {cell.source} | {cell.gains} | {_title(cell.way)} | "
                         f"{' | '.join(regret)} | {weights} |")  # fmt: skip
    lines += ["", "## Models of the graded target", ""]
    for cell in (cell for cell in cells if cell.kind == "graded"):
        ndcg = ", ".join(f"{key} {value:.4f}" for key, value in cell.row["ndcg"].items())
        lines.append(f"- {cell.source}, {cell.gains}: {cell.entry['settings']}, of "
                     f"{len(cell.entry['trials'])} trials; NDCG@10 {ndcg}.")  # fmt: skip
    return lines


def _title(way: tuple[str, str]) -> str:
    return way[0] + _KINDS.get(way[1], "")


def _interval(row: dict[str, Any]) -> str:
    mean = f"**{row['mean']:.4f}**" if row["champion"] else f"{row['mean']:.4f}"
    return f"{mean} [{row['low']:.4f}, {row['high']:.4f}]"


def _tests(cells: list[Cell], settings: list[str]) -> list[str]:
    """Differences, and against whom a champion wins under all settings."""
    lines = [
        "| source | champion | against | gains | difference | Holm p |",
        "|---|---|---|---|---|---|",
    ]
    verdicts = []
    champions = [cell for cell in cells if cell.row["champion"]]
    for source in dict.fromkeys(cell.source for cell in champions):
        mine = [cell for cell in champions if cell.source == source]
        for rival in mine[0].row["against"]:
            tests = [(cell, cell.row["against"][rival]) for cell in mine]
            for cell, test in tests:
                gain = f"{test['gain']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]"
                lines.append(
                    f"| {source} | {_title(cell.way)} | {rival}: {test['model']} | {cell.gains} | "
                    f"{gain} | {test['p']:.3g} |"
                )
            verdicts.append(f"- {source} against the {rival}: {_verdict([t for _, t in tests])}.")
    return [*lines, "", f"A verdict asks for Holm-adjusted p < {_LEVEL} under all of "
            f"{', '.join(settings)}:", "", *verdicts]  # fmt: skip


def _verdict(tests: list[dict[str, Any]]) -> str:
    sure = [test["p"] < _LEVEL for test in tests]
    if all(sure) and all(test["gain"] > 0 for test in tests):
        return "better under every setting of gains"
    if all(sure) and all(test["gain"] < 0 for test in tests):
        return "worse under every setting of gains"
    better = sum(each and test["gain"] > 0 for each, test in zip(sure, tests))
    worse = sum(each and test["gain"] < 0 for each, test in zip(sure, tests))
    return f"no winner: better under {better}, worse under {worse} of {len(tests)} settings"
