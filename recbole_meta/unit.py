"""A unit of a benchmark's work: one file, made once, and the site where the units lie."""

import json
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.benchmark import Benchmark, Judging, Row
from recbole_meta.choice import choose_model
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import SettingError
from recbole_meta.evaluation.entries import FAILED, SEARCH
from recbole_meta.tracking import write_atomically

_AGAIN = 5.0  # seconds until time is up again, where something kept the first exception


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
        where = self.data_path, self.prepared_path
        return prepare(judging.dataset, protocol, judging.protocol, *where)


@dataclass(frozen=True)
class Unit:
    """Work whose result is one file; ``work`` gives None while it must wait for another unit."""

    file: Path
    row: Row
    entries: tuple[str, ...]  # that lack the row where the unit fails
    k: int | None  # at which; None: at all
    work: Callable[[], dict[str, Any] | None]
    made_by: Callable[[], dict[str, Any]]  # entries that the file has if today's settings made it
    agrees: Callable[[dict[str, Any]], bool]  # what the file's content says of data and seed
    needs: tuple[Path, ...] = ()  # files of units that come first

    @property
    def kind(self) -> tuple[str, bool]:
        """Units of one kind take about as long: the row's, judged or tried."""
        return self.row.name, self.file.parent.parent.parent.name == SEARCH

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

    def fail(self, error: BaseException, minutes: float | None = None) -> None:
        """Write why it failed; ``minutes``: it did not end in as many."""
        content = {
            "row": self.row.name,
            "group": choose_model(self.row.model).group,
            "entries": self.entries,
            "k": self.k,
            "error": traceback.format_exception_only(error)[-1].strip().splitlines()[-1],
            "minutes": minutes,
            "made_by": self.made_by(),
            "traceback": "".join(traceback.format_exception(error)).splitlines(),
        }
        write_atomically(self.failure, (json.dumps(content, indent=1) + "\n").encode())

    def has_failed(self, since: float, minutes: float | None) -> bool:
        """Whether it failed since then, in whatever process, or did not end in these minutes or
        more.
        """
        try:
            if self.failure.stat().st_mtime >= since:
                return True
            found = json.loads(self.failure.read_text("utf-8"))
            made_by = json.loads(json.dumps(self.made_by()))
            capped = minutes is not None and found["minutes"] is not None
            return capped and minutes <= found["minutes"] and found["made_by"] == made_by
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def said(self) -> str:
        """What its failure says in short."""
        return str(json.loads(self.failure.read_text("utf-8"))["error"])


class TimeUp(BaseException):
    """A unit took longer than it may; no ``except Exception`` on the way keeps it."""


@contextmanager
def time_cap(minutes: float | None) -> Iterator[None]:
    """`TimeUp` is raised inside after as many minutes; None: never."""
    if minutes is None:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeUp(f"It did not end in {minutes:g} minutes.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_minutes(minutes: float | None) -> None:
    """Refuse a cap that is none, or that cannot be kept here."""
    if minutes is None:
        return
    if not 0 < minutes < float("inf"):
        raise SettingError(f"'minutes' must be above 0, found {minutes}.")
    main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not main:
        raise SettingError("'minutes' needs the signals of Unix, and the main thread.")
