"""Prepared folders: made once, written whole or not at all, with digests of what they hold."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from recbole_meta.data.atomic import AtomicFile, write_file
from recbole_meta.errors import DataError

_log = logging.getLogger(__name__)

FORMAT = 1
_COMMENT = "# Plain RecBole: config_file_list [this file], data_path: the parent of this folder.\n"

Fill = Callable[[str, Path], dict[str, Any]]


def made_once(folder: Path, source: Path, fill: Fill) -> Path:
    """The folder, made by ``fill`` if it is not there yet; one process at a time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            there = (folder / "protocol.json").is_file()
            if not there:
                _write_whole(folder, fill)
            _log.info("%s: prepared folder %s %s", source, folder, "found" if there else "made")
    except OSError as error:
        raise DataError(f"Cannot write the prepared folder {folder}: {error}") from error
    return folder


def _write_whole(folder: Path, fill: Fill) -> None:
    """Everything in a temporary folder beside, then one rename; nothing stays after an error.

    ``fill(name, temporary)`` writes the files and returns what ``protocol.json`` says of them.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        description = fill(folder.name, temporary)
        outputs = {p.name.removeprefix(folder.name): p for p in sorted(temporary.iterdir())}
        description["outputs"] = {name: sha256(p.read_bytes()) for name, p in outputs.items()}
        description["sha256"] = digest(description)
        write_file(temporary / "protocol.json", json.dumps(description, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # a folder without protocol.json is no folder
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def digest(description: dict[str, Any]) -> str:
    """The digest of ``protocol.json`` without its own entry 'sha256'."""
    body = {key: value for key, value in description.items() if key != "sha256"}
    return sha256(json.dumps(body, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """The hex digest."""
    return hashlib.sha256(content).hexdigest()


def write_recbole(folder: Path, settings: dict[str, Any]) -> None:
    """``recbole.yaml``, which makes plain RecBole read the folder."""
    write_file(folder / "recbole.yaml", _COMMENT + yaml.safe_dump(settings, sort_keys=False))


def write_side(
    source: Path, target: Path, field: str, features: Sequence[str], tokens: list[str]
) -> None:
    """The lines of these users or items by token; a line of blanks where none is known."""
    if not source.is_file():
        write_file(target, "\n".join([f"{field}:token", *tokens]) + "\n")
        return
    file = AtomicFile(source)
    known: dict[str, int] = {}
    for row, token in enumerate(file.read([field])[field]):
        first = known.setdefault(token, row)
        if file.lines[first] != file.lines[row]:
            raise DataError(
                f"{source.name}: '{field}' is '{token}' in line {first + 2} and in line {row + 2}, "
                "and they differ."
            )
    for feature in features:
        file.check_feature(feature)
    place = file.columns.index(field)
    blanks = ["" for _ in file.columns]
    lines = []
    for token in tokens:
        if token in known:
            lines.append(file.lines[known[token]])
        else:
            lines.append("\t".join(blanks[:place] + [token] + blanks[place + 1 :]))
    file.lines = lines
    file.write(target)
