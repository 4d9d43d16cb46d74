"""What was chosen on valid: how many trials, which edges of the grids, how many epochs."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole_meta.evaluation.entries import SEARCH, RunFiles, seeds_of, slug
from recbole_meta.report.units import units_of


def choices(root: Path, file: dict[str, Any]) -> list[str]:
    """How many trials each row had, which edges of its grid were chosen often, and whether the
    epochs ended a training, a line each.
    """
    units = [unit for judging in file["settings"] for unit in units_of(root, judging)]
    lines = []
    for row in (*file["rows"], *file["trained"]["rows"]):
        mine = [unit for unit in units if unit["row"] == row["name"]]
        if "grid" in row and mine:
            lists = [options for options in row["grid"].values() if isinstance(options, list)]
            points = math.prod(map(len, lists)) if len(lists) == len(row["grid"]) else math.inf
            numbers = {min(points, search["trials"]) for search in file["trained"]["searches"]}
            here = len(mine[0].get("trials", []))
            tried = here or " or ".join(map(str, sorted(numbers)))
            chosen = [
                settings
                for unit in mine
                for k, settings in unit["chosen"].items()
                if k != "0"  # without support most settings change nothing
            ]
            edges = "; ".join(_edges(row["grid"], chosen)) or "none"
            lost = _diverged(root, row["name"])
            tried = f"{tried} trials{f' ({lost} diverged)' if lost else ''}"
            seeds = len(seeds_of(file, row["name"]))
            mean = f"; the mean of each user over {seeds} seeds" if seeds > 1 else ""
            lines.append(
                f"- {row['name']}: {tried}; edges chosen: {edges}{_capped(root, mine)}{mean}"
            )
    return lines


def _diverged(root: Path, row: str) -> int:
    """How many trials of a row ended since the loss was no number."""
    files = (root / SEARCH).glob(f"*/{slug(row)}/*.json")
    return sum("diverged" in json.loads(file.read_text("utf-8")) for file in files)


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
