"""The finished units of a benchmark as one small file, so that nobody has to run them again.

The file, a .tar.xz, holds what lies below ``runs/<name>``: the trials of searches, the units, and
of their runs ``result.json`` and the values per task, which are what a table is made of. Rankings,
predictions and labels are not in it. Most values stand in several runs and slices, so they are
compressed together, not file by file. A unit that is put back counts as done while the settings,
the data and the seed are today's.
"""

import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import RunFiles
from recbole_meta.report.units import finished_units
from recbole_meta.tracking import write_atomically


def keep(root: Path, file: Path) -> int:
    """Write the finished units below ``root`` to the file; how many there are.

    The same units give the same bytes.
    """
    units = list(finished_units(root))
    if not units:
        raise DataError(f"{root}: no finished unit. Run 'recbole-meta benchmark' first.")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.PAX_FORMAT) as kept:
        for name, content in sorted(_contents(root, units)):
            entry = tarfile.TarInfo(name)  # without a time or an owner
            entry.size = len(content)
            kept.addfile(entry, io.BytesIO(content))
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
            values = io.BytesIO()
            np.savez(values, **_per_task(run))  # compressed with all others
            yield f"{folder}/tasks.npz", values.getvalue()


def _per_task(run: RunFiles) -> dict[str, Any]:
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
        whole = io.BytesIO(lzma.decompress(file.read_bytes()))  # to its end, and its checksums
        with tarfile.open(fileobj=whole, mode="r:") as kept:
            contents = {entry.name: _content(file, kept, entry) for entry in kept}
    except (OSError, lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(f"Cannot read the kept units {file}: {error}") from error
    for name in contents:
        path, elsewhere = PurePosixPath(name), PureWindowsPath(name).drive or "\\" in name
        outside = path.is_absolute() or ".." in path.parts or elsewhere
        if outside or path.suffix not in (".json", ".npz"):
            raise DataError(f"{file} holds no kept units: '{name}' is none.")
    missing = [name for name in contents if not (root / name).exists()]
    for name in sorted(missing, key=lambda name: "/runs/" not in name):  # a unit after its runs
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(root / name, contents[name])
    return len(missing)


def _content(file: Path, kept: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    content = kept.extractfile(entry) if entry.isfile() else None
    if content is None:
        raise DataError(f"{file} holds no kept units: '{entry.name}' is none.")
    return content.read()
