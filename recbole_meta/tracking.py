"""The files of a run: ``result.json`` and ``tasks.npz``, written atomically."""

import importlib.metadata
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from recbole_meta.choice import ModelChoice
from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import DataError, SettingError

if TYPE_CHECKING:
    from recbole_meta.outcome import Outcome

LOCK = ".lock"  # beside the runs of a setting, while one of them is written
_log = logging.getLogger(__name__)

_PACKAGES = ("recbole_meta", "recbole", "torch", "numpy", "scipy", "pandas")


def run_folder(root: Path, model: str, prepared: Prepared, seed: int, k: int) -> Path:
    """One folder per (model, data set, protocol, order, split, seed, k)."""
    about, settings = prepared.description, prepared.description["settings"]
    setting = f"{about['dataset']}-{about['protocol']}-{settings['order']}-{settings['split']}"
    return root / setting / f"{model}-seed{seed}-k{k}"


def training_folder(root: Path, model: str, prepared: Prepared, seed: int) -> Path:
    """Where a learner that is trained once for all k keeps its checkpoints."""
    return run_folder(root, model, prepared, seed, 0).with_name(f"{model}-seed{seed}")


def write_run(
    root: Path, choice: ModelChoice, prepared: Prepared, seed: int, outcome: "Outcome"
) -> Path:
    """Write an outcome; an older one of the same run is replaced, with a warning where that had
    other settings or data.
    """
    test = outcome.tested
    about = prepared.description
    folder = run_folder(root, choice.name, prepared, seed, outcome.k)
    result = {
        "model": choice.name,
        "group": choice.group,
        "reads": choice.reads(outcome.settings, prepared.feedback, prepared.side),
        "dataset": about["dataset"],
        "protocol": about["protocol"],
        "order": about["settings"]["order"],
        "split": about["settings"]["split"],
        "seed": seed,
        "shots": outcome.k,
        "query": test.primary,
        "metrics": test.means(),
        "slices": {name: test.means(name) for name in test.metrics},
        "valid_metrics": outcome.valid.means(),
        "valid_slices": {name: outcome.valid.means(name) for name in outcome.valid.metrics},
        "seconds": outcome.seconds,
        "epochs": outcome.epochs,
        "history": outcome.history,
        "config": outcome.settings,
        "versions": versions(),
        "data": {"prepared": prepared.name, "sha256": prepared.sha256},
        "commit": commit(),
    }
    text = json_text(result)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / LOCK):
            if replaced := _differences(folder / "result.json", json.loads(text)):
                _log.warning("%s replaces a run with %s", folder, replaced)
            (folder / "result.json").unlink(missing_ok=True)  # no old result beside new tasks
            write_atomically(folder / "tasks.npz", npz_bytes(test.to_npz()))
            write_atomically(folder / "result.json", text.encode())
    except OSError as error:
        raise DataError(f"Cannot write the run {folder}: {error}") from error
    used = ", ".join(f"{key} = {value}" for key, value in outcome.settings.items()) or "none"
    took = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in outcome.seconds.items())
    _log.info("%s at k = %d: %s, settings: %s", choice.name, outcome.k, took, used)
    return folder


def _differences(file: Path, new: dict[str, Any]) -> str:
    """The old run's settings and prepared folder that are not the new one's, as in a message."""
    try:
        old = json.loads(file.read_text("utf-8"))
        settings, data = dict(old["config"]), dict(old["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # none, or none that could be used
    found = [
        f"{key} = {settings.get(key)} (now {new['config'].get(key)})"
        for key in settings | new["config"]
        if settings.get(key) != new["config"].get(key)
    ]
    if data != new["data"]:
        found.append(f"the prepared folder {data.get('prepared')} (now {new['data']['prepared']})")
    return ", ".join(found)


def json_text(content: Any) -> str:
    """Indented, with null for what is no finite number: JSON has no NaN."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def npz_bytes(arrays: dict[str, Any]) -> bytes:
    """The arrays as a compressed .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def check_writable(folder: Path, make: bool = True) -> None:
    """An error before the long work, where files could not be written into the folder."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(f"Cannot write into the folder {folder}: {error.strerror}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """A temporary file, synced, renamed: the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def commit() -> str | None:
    """The commit of the checkout that runs; None outside of one (installed inside another's)."""
    package = Path(__file__).resolve().parent
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    root, _, head = found.strip().partition("\n")
    return head if Path(root).resolve() == package.parent else None


def read_finished(file: Path) -> dict[str, Any]:
    """What a file of a finished step holds; nothing where it is not there, or damaged."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
