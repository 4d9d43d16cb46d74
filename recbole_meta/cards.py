"""A reproduction card per published learner: published, measured, the floor beside, the verdict.

``properties/card/<Model>.yaml`` holds what a paper claims and in which benchmark of this repository
it is measured; every figure of ours is read from ``results/<benchmark>/table.json``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.errors import DataError, SettingError
from recbole_meta.evaluation.metrics import sign
from recbole_meta.settings import load_properties, names, read_settings

CLOSE = 0.02  # a figure this near a published one is said to agree with it


@dataclass(frozen=True)
class Card:
    """A page of ``properties/card``."""

    paper: str
    code: str  # what the published code does otherwise, or ~ where none was found
    differs: str  # of our model from the paper
    claims: tuple[dict[str, Any], ...]  # published figures and where they are measured
    ours: tuple[dict[str, Any], ...]  # the same on protocols that the paper does not claim for
    open: tuple[str, ...]  # claims that are not measured


@dataclass(frozen=True)
class Line:
    """One figure of a card."""

    text: str
    benchmark: str
    protocol: str
    k: int
    metric: str
    slice: str
    rows: tuple[str, ...]  # of the benchmark
    published: float | None
    source: str | None  # of the published figure


def write_cards(results: Path) -> list[Path]:
    """``results/cards/<Model>.md`` of every page."""
    folder = results / "cards"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names("card"):
        path = folder / f"{name}.md"
        path.write_text(card(name, results), "utf-8")
        paths.append(path)
    return paths


def card(name: str, results: Path) -> str:
    """The Markdown of one card."""
    page = read_settings(Card, load_properties("card", name), f"card '{name}'")
    lines = [
        f"# {name}",
        "",
        "Made by `recbole-meta cards` from `properties/card` and the tables of `results`. Above or",
        "below the floor: the 95 % interval of the gain over it, row by row, does not span zero.",
        "",
        f"- Paper: {page.paper}",
        f"- Published code: {page.code}",
        f"- Ours differs: {page.differs}",
    ]
    counts = {"above": 0, "level": 0, "below": 0}
    for title, entries in (("Published", page.claims), ("Measured here alone", page.ours)):
        if not entries:
            continue
        lines += ["", f"## {title}", ""]
        lines += [
            "| what | published | row | measured [95 %] | best floor | gain over it | verdict |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for entry in entries:
            line = read_settings(
                Line, {"published": None, "source": None, **entry}, f"card '{name}'"
            )
            for row in line.rows:
                text, verdict = _measured(line, row, results)
                lines.append(text)
                if verdict:
                    counts[verdict] += 1
    total = sum(counts.values())
    lines += ["", "## Verdict", ""]
    if total:
        lines.append(
            f"Of {total} measured rows {counts['above']} are above the best floor, "
            f"{counts['level']} level with it, {counts['below']} below."
        )
    lines += [f"Not measured: {text}" for text in page.open]
    commands = _commands([*page.claims, *page.ours])
    lines += ["", "## Commands", "", "```bash", *commands, "```"]
    return "\n".join(lines) + "\n"


def _measured(line: Line, row: str, results: Path) -> tuple[str, str | None]:
    """A row of the card's table, and its verdict; None where the benchmark has no such row yet."""
    claim = "" if line.published is None else f"{line.published:.3f} ({line.source})"
    head = f"| {line.text} | {claim} | {row} | "
    cells = [cell for cell in _table(line.benchmark, results) if _is_of(cell, line)]
    mine = next((cell for cell in cells if cell["model"] == row), None)
    if mine is None or mine["mean"] is None:
        return head + "not run | | | |", None
    if mine["gain_over_floor"] is None:
        return head + f"{mine['mean']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}] | | | |", None
    floors = [c for c in cells if c["group"] == "floor" and c["mean"] is not None]
    floor = next((c for c in floors if c["gain_over_floor"] is None), None)
    verdict = _verdict(mine)
    said = f"{verdict} the floor" if verdict != "level" else "level with the floor"
    if line.published is not None:
        said += f"; {_against(mine['mean'], line)}"
    return (
        head
        + f"{mine['mean']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}] | "
        + (f"{floor['model']} {floor['mean']:.3f}" if floor else "")
        + f" | {mine['gain_over_floor']:+.3f} [{mine['gain_low']:+.3f}, {mine['gain_high']:+.3f}]"
        + f" | {said} |",
        verdict,
    )


def _verdict(cell: dict[str, Any]) -> str:
    if cell["gain_low"] > 0:
        return "above"
    return "below" if cell["gain_high"] < 0 else "level"


def _against(mean: float, line: Line) -> str:
    assert line.published is not None
    better = sign(line.metric) * (mean - line.published)
    if round(abs(better), 4) <= CLOSE:
        return f"within {CLOSE} of what was published"
    return f"{abs(better):.3f} {'better' if better > 0 else 'worse'} than published"


def _is_of(cell: dict[str, Any], line: Line) -> bool:
    keys = ("protocol", "k", "metric", "slice")
    return cell["split"] == "all" and all(cell[key] == getattr(line, key) for key in keys)


def _table(benchmark: str, results: Path) -> list[dict[str, Any]]:
    path = results / benchmark / "table.json"
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _commands(entries: list[dict[str, Any]]) -> list[str]:
    found = []
    for benchmark in dict.fromkeys(entry["benchmark"] for entry in entries):
        if benchmark not in names("benchmark"):
            raise SettingError(f"A card names the benchmark '{benchmark}', which has no page.")
        page = load_properties("benchmark", benchmark)
        data = "" if page["dataset"] == "ml-100k" else " --data_path ../shared/data"
        found += [f"recbole-meta benchmark {benchmark}{data} && recbole-meta table {benchmark}"]
    return found
