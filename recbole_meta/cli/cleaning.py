"""The command that deletes what the others made."""

import argparse
import json
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path

from recbole_meta.cli.parsing import Command

_OF_TRAINING = ("last.pt", "best.pt", "model.pt")  # what a training leaves beside its runs


def add_commands(command: Command) -> None:
    """clean."""
    sub = command(
        "clean",
        "Delete prepared folders and runs.",
        "clean --prepared_path dataset/prepared --runs runs --yes",
        _clean,
    )
    sub.add_argument(
        "--prepared_path", default="dataset/prepared", help="its prepared folders are deleted"
    )
    sub.add_argument("--runs", default="runs", help="runs below it are deleted")
    sub.add_argument(
        "--yes", action="store_true", help="delete; without it, only say what would be deleted"
    )


def _clean(options: argparse.Namespace) -> None:
    """What is known as ours by its content, then the folders that this leaves empty."""
    from recbole_meta.tracking import LOCK

    root = Path(options.runs)
    prepared = [path.parent for path in Path(options.prepared_path).glob("*/protocol.json")]
    prepared = [path for path in prepared if (path / f"{path.name}.test.inter").is_file()]
    runs = [path.parent for path in root.rglob("result.json")]
    runs = [path for path in runs if (path / "tasks.npz").is_file()]
    units = [path for path in root.rglob("*.json") if path.parent not in runs and _is_unit(path)]
    models = [path for name in _OF_TRAINING for path in root.rglob(name) if _is_trained(path)]
    found = [*sorted(prepared), *sorted(runs), *sorted(units), *sorted(models)]
    if options.yes:
        locks = list(Path(options.prepared_path).glob(".*.lock"))
        locks += {path.parent / LOCK for path in runs if (path.parent / LOCK).exists()}
        _delete(found)
        for beside in [*root.rglob("*.json.lock"), *root.rglob("*.json.failed")]:
            locks += [beside] if not beside.with_suffix("").exists() else []
        locks += [path for unit in units for path in _of_sweep(unit) if path.is_file()]
        _delete(locks)
        gone = [*runs, *units, *models, *locks]
        left = sorted({up for path in gone for up in path.parents}, reverse=True)
        for folder in left:
            if folder.is_relative_to(root) and folder != Path() and not any(folder.iterdir()):
                folder.rmdir()
    for path in found:  # said last: deleting does not end where nobody reads on
        print(f"{'deleted' if options.yes else 'would delete'} {path}")
    if not found:
        print("nothing to delete")


def _of_sweep(unit: Path) -> Iterable[Path]:
    """What a sweep keeps beside a unit, and what it says of all of them."""
    from recbole_meta.progress import LOG
    from recbole_meta.room import ROOM
    from recbole_meta.study import JOURNAL

    yield from unit.parent.glob(f"tpe-*{JOURNAL}*")
    for root in unit.parents[2:4]:  # <entry>/<split>/<unit>, search/<entry>/<row>/<trial>
        if (root / LOG).is_file():
            yield from (root / LOG, *(root / ROOM).glob("*"))


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_trained(path: Path) -> bool:
    """Whether this is a checkpoint or a saved model of ours, of whatever format."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return False
    ours = isinstance(content, dict) and "format" in content
    return ours and ("identity" in content or content.get("kind") == "model")


def _is_unit(path: Path) -> bool:
    """Whether this is what a benchmark writes when a unit of its work is done."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        return False
    return (
        isinstance(content, dict) and "seconds" in content and bool({"runs", "valid"} & {*content})
    )
