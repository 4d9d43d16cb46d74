"""Kill a training at random moments (SIGKILL), start it again: the same bits in the end?

    python benchmarks/resume.py --kills 100 --json resume.json

A small MAML on the sample data set is run once without interruption. Then it is started, killed
after a random time and started again, until it was killed so often; whenever it ends, parameters,
history and tasks.npz of every k are compared with those of the whole run.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CHANGES = {
    "shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0, "epochs": 40,
    "stopping_step": 40, "train_batch_size": 8, "embedding_size": 4,
}  # fmt: skip


def start(results: Path, prepared: Path) -> subprocess.Popen:
    """The run in a process of its own."""
    code = (
        "import sys, json; from recbole_meta.quick_start import run; "
        "run('MAML', 'tiny', 'user_cold_curve', settings=json.loads(sys.argv[1]), "
        "data_path=sys.argv[2], prepared_path=sys.argv[3], results=sys.argv[4], threads=1)"
    )
    arguments = [json.dumps(CHANGES), str(ROOT / "dataset"), str(prepared), str(results)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


def outcome(results: Path) -> dict[str, bytes]:
    """Parameters, history and what was judged, as bytes by name."""
    from recbole_meta.checkpoint import read_checkpoint

    found: dict[str, bytes] = {}
    for path in sorted(results.rglob("best.pt")):
        for name, value in read_checkpoint(path)["model"].items():
            found[f"parameter {name}"] = value.numpy().tobytes()
    for path in sorted(results.rglob("tasks.npz")):
        with np.load(path) as arrays:
            for name in arrays.files:
                found[f"{path.parent.name} {name}"] = arrays[name].tobytes()
    for path in sorted(results.rglob("result.json")):
        result = json.loads(path.read_text("utf-8"))
        found[f"{path.parent.name} history"] = json.dumps(result["history"]).encode()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        assert start(folder / "whole", folder / "prepared").wait() == 0
        seconds = time.perf_counter() - began
        whole = outcome(folder / "whole")
        assert any(key.startswith("parameter") for key in whole)
        kills, ended, resumed, differences = 0, 0, 0, 0
        results = folder / "cut"
        while kills < options.kills or ended == 0:
            resumed += any(results.rglob("last.pt"))
            process = start(results, folder / "prepared")
            try:
                # Most of the time of so small a run is the import of torch and RecBole.
                limit = rng.uniform(0.4, 1.1) * seconds if kills < options.kills else None
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                continue
            assert code == 0, f"the run ended with {code}"
            found = outcome(results)
            differences += sum(found.get(key) != value for key, value in whole.items())
            differences += len(found.keys() - whole.keys())
            ended += 1
            shutil.rmtree(results)
        print(f"{kills} kills, {resumed} starts from a checkpoint, {ended} runs ended, "
              f"{differences} differences in {len(whole)} arrays")  # fmt: skip
    if options.json:
        found = {
            "kills": kills, "resumed": resumed, "ended": ended, "differences": differences,
            "arrays": len(whole),
        }  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
