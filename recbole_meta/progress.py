"""What a sweep did, in a file of one line per event, and how long the rest will take."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

LOG = "sweep.jsonl"  # below the benchmark's folder of runs


class Log:
    """Events of units, of all processes: ``start``, then ``done``, ``failed``, ``capped`` or, where
    another must come first, ``waits``.

    A unit that was killed has a ``start`` and nothing more.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, event: str, unit: str, **more: Any) -> None:
        """One write of one line, which a kill leaves whole or not there."""
        said = {"event": event, "unit": unit, "pid": os.getpid(), "time": time.time(), **more}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, (json.dumps(said) + "\n").encode())
        finally:
            os.close(handle)

    def events(self) -> Iterator[dict[str, Any]]:
        """All events so far; a line that is damaged is none."""
        if not self.file.is_file():
            return
        for line in self.file.read_text("utf-8", "replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event

    def peak(self, row: str, model: str) -> float | None:
        """The most memory, in GB, that a unit of this row had, or else of this model."""
        found: dict[str, list[float]] = {"row": [], "model": []}
        for event in self.events():
            if "peak_gb" in event:
                for key, name in (("row", row), ("model", model)):
                    if event.get(key) == name:
                        found[key].append(event["peak_gb"])
        return max(found["row"] or found["model"], default=None)


Kind = tuple[str, bool]


def seconds_left(missing: Iterable[Kind], took: Mapping[Kind, list[float]]) -> float | None:
    """Of work, by the mean of the finished units of the same kind, or of all; None: none is."""
    everything = [seconds for each in took.values() for seconds in each]
    if not everything:
        return None
    means = {kind: sum(each) / len(each) for kind, each in took.items()}
    return sum(means.get(kind, sum(everything) / len(everything)) for kind in missing)


def said_left(n_missing: int, seconds: float | None, processes: int) -> str:
    """``41 units are missing, about 1 h 40 min with 2 processes``."""
    text = f"{n_missing} unit{' is' if n_missing == 1 else 's are'} missing"
    if seconds is None or not n_missing:
        return text
    many = "process" if processes == 1 else "processes"
    return f"{text}, about {_span(seconds / min(processes, n_missing))} with {processes} {many}"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
