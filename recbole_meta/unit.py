"""A unit of a benchmark's work: one file, made once, and the site where the units lie."""

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.benchmark import Benchmark, Judging, Row
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.tracking import write_atomically

FAILED = ".failed"  # ending of the file beside a unit's that says why it failed


class Site:
    """Where the units of a benchmark lie, and the data that they are made of."""

    def __init__(
        self, benchmark: Benchmark, data_path: str, prepared_path: str, runs: Path
    ) -> None:
        self.benchmark = benchmark
        self.data_path, self.prepared_path = data_path, prepared_path
        self.folder = runs / benchmark.name
        self._digests: dict[tuple[str, int], str] = {}

    def prepared(self, judging: Judging, split: int) -> Prepared:
        """The prepared folder of an entry's split."""
        return open_prepared(self._prepare(judging, split))

    def sha256(self, judging: Judging, split: int) -> str:
        """The digest of an entry's prepared folder, which need not be opened for it."""
        key = (judging.name, split)
        if key not in self._digests:
            file = self._prepare(judging, split) / "protocol.json"
            self._digests[key] = str(json.loads(file.read_text("utf-8"))["sha256"])
        return self._digests[key]

    def _prepare(self, judging: Judging, split: int) -> Path:
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        return prepare(
            self.benchmark.dataset,
            protocol,
            judging.protocol,
            self.data_path,
            self.prepared_path,
        )


@dataclass(frozen=True)
class Unit:
    """Work whose result is one file; ``work`` gives None while it must wait for another unit."""

    file: Path
    row: Row
    work: Callable[[], dict[str, Any] | None]
    made_by: Callable[[], dict[str, Any]]  # entries that the file has if today's settings made it
    agrees: Callable[[dict[str, Any]], bool]  # what the file's content says of data and seed
    needs: tuple[Path, ...] = ()  # files of units that come first

    @property
    def failure(self) -> Path:
        """Where it is written why the unit failed."""
        return self.file.with_name(self.file.name + FAILED)

    def made(self) -> dict[str, Any] | None:
        """The file's content; None where it is not there, damaged, or of other settings."""
        try:
            content: dict[str, Any] = json.loads(self.file.read_text("utf-8"))
            made = all(content.get(key) == value for key, value in self.made_by().items())
            return content if made and self.agrees(content) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def fail(self) -> None:
        """Write why it failed, inside of the ``except``."""
        write_atomically(self.failure, traceback.format_exc().encode())


def last_line(file: Path) -> str:
    """What a failure says in short."""
    return file.read_text("utf-8").strip().splitlines()[-1]
