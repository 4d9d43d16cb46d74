"""What a benchmark has finished, and what failed, read from its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import FAILED, Entry, RunFiles, seeds_of

LEAD = {"ndcg@10": "NDCG@10", "mae": "MAE", "auc": "AUC"}  # rankings, ratings, labels


def units_of(root: Path, judging: dict[str, Any]) -> Iterator[dict[str, Any]]:
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
    for unit in units_of(root, judging):
        for k, folder in unit["runs"].items():
            run = RunFiles(root / folder)
            if run.result.get("seed") in seeds_of(file, unit["row"]):
                found.setdefault((int(k), unit["row"]), []).append(run)
    by_k: dict[int, list[Entry]] = {}
    for (k, row), runs in found.items():
        if len(runs) == len(judging["splits"]) * len(seeds_of(file, row)):
            reads = " or ".join(dict.fromkeys(run.result["reads"] for run in runs))
            entry = Entry(row, runs[0].result["group"], reads, tuple(runs))
            by_k.setdefault(k, []).append(entry)
    return by_k


def primary_of(by_k: dict[int, list[Entry]]) -> str:
    """The primary query of an entry: that of its own runs (RecBole's may be another entry's)."""
    entries = [entry for entries in by_k.values() for entry in entries]
    own = next((entry for entry in entries if entry.group != "recbole"), entries[0])
    return str(own.runs[0].result["query"])


def lead_of(result: dict[str, Any]) -> str:
    """The metric that champions are named by."""
    return next(metric for metric in LEAD if metric in result["metrics"])


def failures(root: Path) -> Iterator[dict[str, Any]]:
    """What failed units, and trials, say of themselves; a file of another kind says nothing."""
    for path in sorted(root.rglob(f"*.json{FAILED}")):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and {"row", "entries", "k", "group", "error"} <= found.keys():
            yield found
