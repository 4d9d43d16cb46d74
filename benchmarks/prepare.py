"""Preparing ML-1M's k-shot curve in random order: wall time and peak memory of a fresh process.

``seconds`` are those from the first import to the finished folder, ``peak_rss_mb`` is the largest
resident memory (2^20 bytes) of the process that does only this.

    python benchmarks/prepare.py --json prepare.json
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROTOCOL = "user_cold_curve"
SETTINGS = {"order": "random", "folds": 0}


def measure(dataset: str, data_path: str, folder: str) -> dict[str, Any]:
    """Prepare into the empty folder; what is imported counts."""
    start = time.perf_counter()
    from recbole_meta.data.prepare import prepare, read_protocol

    made = prepare(dataset, read_protocol(PROTOCOL, **SETTINGS), PROTOCOL, data_path, folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = json.loads((made / "protocol.json").read_text("utf-8"))["counts"]
    return {
        "dataset": dataset, "protocol": PROTOCOL, **SETTINGS,
        "rows": counts["rows"], "users": counts["users"], "items": counts["items"],
        "seconds": round(seconds, 2),
        "peak_rss_mb": round(peak / 2 ** (20 if sys.platform == "darwin" else 10), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("RECBOLE_META_DATA", "../shared/data")
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--data_path", default=default)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        result = pool.apply(measure, (options.dataset, options.data_path, folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
