"""Kill a benchmark at random moments (SIGKILL), start it again: the same table, and nothing twice?

    python benchmarks/sweep.py small --kills 3 --processes 2 --json results/small/sweep.json

The benchmark is run once without interruption. Then it is started, its group of processes is killed
after a random time, and it is started again; after the last kill it may end. Its units, tasks.npz
of its runs and its table are compared with those of the whole run, and its log says which units
were begun how often.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from recbole_meta.evaluation.entries import benchmark_page
from recbole_meta.progress import LOG, Log
from recbole_meta.report import benchmark_table


def start(options: argparse.Namespace, runs: Path, prepared: Path) -> subprocess.Popen:
    """The benchmark in a group of processes of its own."""
    arguments = ["-m", "recbole_meta.cli", "benchmark", options.benchmark, "--runs", str(runs)]
    arguments += ["--processes", str(options.processes), "--data_path", options.data_path]
    return subprocess.Popen(
        [sys.executable, *arguments, "--prepared_path", str(prepared)], start_new_session=True
    )


def outcome(runs: Path, name: str) -> dict[str, bytes]:
    """Units without their seconds, tasks.npz of runs and the table, by name."""
    found = {}
    for path in sorted((runs / name).rglob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        content.pop("seconds", None)  # of a unit, and of a run
        found[str(path.relative_to(runs))] = json.dumps(content).encode()
    for path in sorted(runs.rglob("tasks.npz")):
        found[str(path.relative_to(runs))] = path.read_bytes()
    return found


def killed_and_ended(options: argparse.Namespace, runs: Path, prepared: Path, whole: float) -> int:
    """Until it has ended after the last kill; how many kills there were."""
    rng, kills = random.Random(options.seed), 0
    while True:
        process = start(options, runs, prepared)
        left = whole / (options.kills + 1)
        limit = rng.uniform(0.5, 1.2) * left if kills < options.kills else None
        try:
            assert process.wait(limit) == 0, "the benchmark ended with an error"
            return kills
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1


def counted(log: Log) -> dict[str, Any]:
    """How often units were begun and done, by the log of all starts."""
    begun, done, again, seen = 0, Counter(), 0, set()
    for event in log.events():
        if event["event"] == "done":
            done[event["unit"]] += 1
            seen.add(event["unit"])
        elif event["event"] == "start":
            begun += 1
            again += event["unit"] in seen
    return {"begun": begun, "done": len(done), "done_twice": sum(n > 1 for n in done.values()),
            "begun_after_done": again}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", help="a file of properties/benchmark, or a path")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name, _ = benchmark_page(options.benchmark)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.perf_counter()
        assert start(options, folder / "whole", folder / "prepared").wait() == 0
        seconds = time.perf_counter() - began
        kills = killed_and_ended(options, folder / "cut", folder / "prepared", seconds)
        found = counted(Log(folder / "cut" / name / LOG))
        outcomes = [outcome(folder / runs, name) for runs in ("whole", "cut")]
        tables = [
            benchmark_table(options.benchmark, folder / runs, folder / f"table-{runs}")
            for runs in ("whole", "cut")
        ]
        same = [a.read_bytes() == b.read_bytes() for a, b in zip(*tables, strict=True)]
    whole, cut = outcomes
    differences = [key for key in whole.keys() | cut.keys() if whole.get(key) != cut.get(key)]
    said = {"benchmark": name, "kills": kills, "processes": options.processes, "files": len(whole),
            "differences": len(differences), "same_table": all(same), **found}  # fmt: skip
    print(json.dumps(said, indent=1), *sorted(differences)[:10], sep="\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(differences) or not all(same) or found["done_twice"] > 0)


if __name__ == "__main__":
    main()
