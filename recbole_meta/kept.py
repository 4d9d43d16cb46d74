"""The finished units of a benchmark as one small file, so that nobody has to run them again.

The file, a zip, holds what lies below ``runs/<name>``: the trials of searches, the units, and of
their runs ``result.json`` and the values per task, which are what a table is made of. Rankings,
predictions and labels are not in it. A unit that is put back counts as done while the settings, the
data and the seed are today's.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import RunFiles
from recbole_meta.report.units import finished_units
from recbole_meta.tracking import npz_bytes, write_atomically

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry: the same units give the same bytes


def keep(root: Path, file: Path) -> int:
    """Write the finished units below ``root`` to the file; how many there are."""
    units = list(finished_units(root))
    if not units:
        raise DataError(f"{root}: no finished unit. Run 'recbole-meta benchmark' first.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as kept:
        for name, content in sorted(_contents(root, units)):
            kept.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, buffer.getvalue())
    return len(units)


def _contents(root: Path, units: list[Path]) -> Iterator[tuple[str, bytes]]:
    for unit in [*units, *root.glob("search/*/*/*.json")]:
        yield unit.relative_to(root).as_posix(), unit.read_bytes()
    for unit in units:
        for folder in json.loads(unit.read_text("utf-8"))["runs"].values():
            run = RunFiles(root / folder)
            yield f"{folder}/result.json", (root / folder / "result.json").read_bytes()
            yield f"{folder}/tasks.npz", npz_bytes(_per_task(run))


def _per_task(run: RunFiles) -> dict[str, np.ndarray]:
    """The tasks, and the values of each metric in each of its queries."""
    names = {
        metric if query == run.result["query"] else f"{query}/{metric}"
        for query, metrics in run.result["slices"].items()
        for metric in metrics
    }
    return {name: array for name, array in run.arrays.items() if name in {"task", *names}}


def put_back(file: Path, root: Path) -> int:
    """Write what the file has and the folder lacks; how many files that are."""
    try:
        with zipfile.ZipFile(file) as kept:
            contents = {name: kept.read(name) for name in kept.namelist()}
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DataError(f"Cannot read the kept units {file}: {error}") from error
    for name in contents:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.suffix not in (".json", ".npz"):
            raise DataError(f"{file} holds no kept units: '{name}' is none.")
    missing = [name for name in contents if not (root / name).exists()]
    for name in sorted(missing, key=lambda name: "/runs/" not in name):  # a unit after its runs
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(root / name, contents[name])
    return len(missing)
