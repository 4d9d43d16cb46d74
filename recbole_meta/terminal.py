"""The table of a few runs for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_meta.evaluation.entries import GROUPS, Entry, RunFiles, champion, gain
from recbole_meta.evaluation.metrics import sign
from recbole_meta.evaluation.significance import Interval, bootstrap_interval


def terminal_table(folders: Sequence[Path], changed: Mapping[str, Any] | None = None) -> str:
    """Group, metric with interval, gain over the best floor (positive is better), seconds, what it
    reads; the best row is marked.

    ``changed``: the settings of models that are not the defaults.
    """
    settings = ", ".join(f"{key} = {value}" for key, value in (changed or {}).items())
    settings = f"the defaults but {settings}" if settings else "the defaults"
    entries = []
    for folder in folders:
        files = RunFiles(folder)
        about = files.result
        entries.append(Entry(about["model"], about["group"], about["reads"], (files,)))
    lines: list[str] = []
    for k in sorted({e.runs[0].result["shots"] for e in entries}):
        at_k = [e for e in entries if e.runs[0].result["shots"] == k]
        lines += ["", *_terminal_rows(at_k, k, settings)]
    return "\n".join(lines[1:])


_SECOND = {"ndcg@10": "recall@10", "mae": "rmse", "auc": "logloss"}


def _terminal_rows(entries: Sequence[Entry], k: int, settings: str) -> list[str]:
    about = entries[0].runs[0].result
    query, metric = about["query"], next(m for m in _SECOND if m in about["metrics"])
    floor = champion(entries, ["floor"], query, metric)
    means = {e.name: float(np.mean(list(e.values(query, metric).values()))) for e in entries}
    best = max(means, key=lambda name: sign(metric) * means[name])
    second = _SECOND[metric]
    gain_head = f"gain over {floor.name}" if floor else "gain"
    rows = [
        [
            "",
            "group",
            "model",
            f"{metric} [95 %]",
            second,
            f"{gain_head} [95 %]",
            "seconds",
            "reads",
        ]
    ]
    ordered = sorted(entries, key=lambda e: (GROUPS.index(e.group), sign(metric) * means[e.name]))
    for entry in ordered:
        run = entry.runs[0]
        values = entry.values(query, metric)
        over = "(best floor on valid)" if entry is floor else ""
        if floor and entry is not floor:
            over = _signed(gain(metric, values, floor.values(query, metric)))
        rows.append([
            "*" if entry.name == best else "", entry.group, entry.name,
            _interval(bootstrap_interval(list(values.values()))),
            f"{run.result['metrics'][second]:.4f}", over,
            f"{sum(run.result['seconds'].values()):.1f}", entry.reads,
        ])  # fmt: skip
    head = (
        f"{about['dataset']}, {about['protocol']}, order {about['order']}, split {about['split']}, "
        f"k = {k}: {_counted(entries[0], query, metric)}, query '{query}'"
    )
    better = "larger" if sign(metric) > 0 else "smaller"
    return [
        head,
        *_aligned(rows),
        f"* best mean on test ({better} is better); settings are {settings}.",
    ]


def _counted(entry: Entry, query: str, metric: str) -> str:
    """How many users the query has, and of how many of them the metric is known."""
    n, users = (len(entry.values(query, m)) for m in (metric, _SECOND[metric]))
    who = "users of cold items" if query == "cold" else "cold users"
    return f"{users} {who}" + (f" ({metric}: {n} with both labels)" if n < users else "")


def _interval(i: Interval) -> str:
    return f"{i.mean:.4f} [{i.low:.4f}, {i.high:.4f}]"


def _signed(i: Interval) -> str:
    return f"{i.mean:+.4f} [{i.low:+.4f}, {i.high:+.4f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
