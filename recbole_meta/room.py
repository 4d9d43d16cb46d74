"""The memory that the processes of a sweep share on one machine.

Each process says in a file what the unit that it works on will need. A unit begins where what all
have or will need, and what it needs itself, is within the bound; or where none is at work, so that
one always is.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from filelock import FileLock

from recbole_meta.tracking import write_atomically

ROOM = "processes"  # the folder of those files
_GB = 1e9
_EVERY = 0.1  # seconds between two looks at the memory


class Room:
    """A process's place; without a bound in ``gb`` there is always room."""

    def __init__(self, folder: Path, gb: float | None, pid: int | None = None) -> None:
        self.folder, self.gb = folder / ROOM, gb
        self.process = psutil.Process(pid or os.getpid())
        self.file = self.folder / f"{socket.gethostname()}-{self.process.pid}.json"
        if gb is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._say(0.0)

    def enter(self, need_gb: float) -> bool:
        """Whether a unit that needs as much may begin; if so, the room is taken."""
        if self.gb is None:
            return True
        with FileLock(self.folder / ".lock"):
            others = list(self._others())
            busy = any(expects > 0 for _, expects in others)
            taken = sum(max(has, expects) for has, expects in others)
            if busy and taken + max(_resident(self.process), need_gb) > self.gb:
                return False
            self._say(max(need_gb, 1e-9))
        return True

    def leave(self) -> None:
        """The unit has ended; the process is still there."""
        if self.gb is not None:
            self._say(0.0)

    def close(self) -> None:
        """The process ends."""
        self.file.unlink(missing_ok=True)

    def _say(self, expects: float) -> None:
        content = {"pid": self.process.pid, "since": self.process.create_time(), "gb": expects}
        write_atomically(self.file, json.dumps(content).encode())

    def _others(self) -> Iterator[tuple[float, float]]:
        """What each other process of this machine has and expects, in GB; the dead have none."""
        for file in self.folder.glob(f"{socket.gethostname()}-*.json"):
            if file == self.file:
                continue
            try:
                said = json.loads(file.read_text("utf-8"))
                process = psutil.Process(said["pid"])
                alive = process.create_time() == said["since"] and process.is_running()
                if not alive:
                    raise psutil.NoSuchProcess(said["pid"])
                yield _resident(process), float(said["gb"])
            except (psutil.Error, OSError, ValueError, KeyError, TypeError):
                file.unlink(missing_ok=True)


class Peak:
    """``with Peak() as peak: ...``: the most memory of this process meanwhile, ``peak.gb``."""

    def __init__(self) -> None:
        self.gb = 0.0
        self._process, self._over = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.gb = max(self.gb, _resident(self._process))
            if self._over.wait(_EVERY):
                return


def _resident(process: Any) -> float:
    return float(process.memory_info().rss) / _GB
