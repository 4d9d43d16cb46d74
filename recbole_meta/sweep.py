"""Running a benchmark: search on valid, per k; test once; every step resumes where it was killed.

The unit of work is a file below the benchmark's folder of runs: what has its file, made by the
settings of today, is not run again. Several processes may work on one benchmark: a unit is locked
while it runs. Closed forms (floors, rules, ridges) are fitted once per trial and judged at every k.
What trains is searched once per order of rows: RecBole's models are trained anew for every k,
learners once for all k. Searches have the benchmark's seed; the best settings are trained with
every seed of the row, each a unit of its own.
"""

import itertools
import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_meta.benchmark import Benchmark, Search
from recbole_meta.choice import choose_model
from recbole_meta.data.source import find_dataset
from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.evaluation.entries import FAILED
from recbole_meta.judging import RowJudge
from recbole_meta.outcome import thread_limit
from recbole_meta.progress import LOG, Log, said_left, seconds_left
from recbole_meta.reading import read_benchmark
from recbole_meta.room import Peak, Room
from recbole_meta.search import Searches
from recbole_meta.tracking import check_writable, write_atomically
from recbole_meta.unit import Site, TimeUp, Unit, check_minutes, time_cap

_log = logging.getLogger(__name__)
_WAIT = 2.0  # seconds, where other processes have all that is missing


@dataclass(frozen=True)
class Limits:
    """What a sweep may take; None: no bound."""

    processes: int
    minutes: float | None  # of a unit; what does not end is a failure that is not tried again
    memory: float | None  # GB, of all processes of this machine


class Sweep:
    """The units of a benchmark; ``run`` does those that are missing."""

    def __init__(self, site: Site, since: float = 0.0, limits: Limits | None = None) -> None:
        self.site, self.since, self.limits = site, since, limits or Limits(1, None, None)
        self.benchmark, self.folder = site.benchmark, site.folder
        self.searches = Searches(site)
        self.judge = RowJudge(site, self.searches)
        self.log = Log(self.folder / LOG)
        self._took: dict[tuple[str, bool], list[float]] = {}  # seconds of the finished units
        self._done: set[Path] = set()

    @cached_property
    def _units(self) -> list[Unit]:
        return list(self.units())

    def run(self) -> None:
        """Pass over the units until none is missing; waits where another process has the rest.

        A unit that raises stops nothing but those that need it; it is tried again at the next
        start.
        """
        _log.info("%s", said := self.left())
        self.room = Room(self.folder, self.limits.memory)
        while todo := self._open():
            if said != (said := self.left()):
                _log.info("%s", said)
            if not sum(self._try(unit) for unit in todo):
                time.sleep(_WAIT)
        self.room.close()

    def left(self) -> str:
        """How many units are missing, and about how long they take."""
        missing = self._open()
        seconds = seconds_left([unit.kind for unit in missing], self._took)
        return said_left(len(missing), seconds, self.limits.processes)

    def _open(self) -> list[Unit]:
        """The missing units that did not fail since the start and need none that did."""
        missing = [unit for unit in self._units if not self._is_done(unit)]
        failed = {unit.file for unit in missing if self._has_failed(unit)}
        return [u for u in missing if u.file not in failed and failed.isdisjoint(u.needs)]

    def check(self) -> None:
        """An error that names the units that failed, where not all units are done."""
        missing = [unit for unit in self._units if not self._is_done(unit)]
        failed = [unit for unit in missing if self._has_failed(unit)]
        if missing:
            said = [f"{u.file.relative_to(self.folder)} ({u.said()})" for u in failed]
            raise RecboleMetaError(
                f"Benchmark '{self.benchmark.name}' is not finished: {len(failed)} units failed"
                f"{': ' if said else ''}{', '.join(said)}; {len(missing) - len(failed)} others are "
                f"missing. What stopped them stands beside, in files that end in {FAILED}; they "
                "are tried again at the next start, or with more minutes."
            )

    def _has_failed(self, unit: Unit) -> bool:
        return unit.has_failed(self.since, self.limits.minutes)

    def _is_done(self, unit: Unit) -> bool:
        """Whether the unit's file is there and was made by the settings of today."""
        if unit.file not in self._done:
            content = unit.made()
            if content is None:
                return False
            self._done.add(unit.file)
            self._took.setdefault(unit.kind, []).append(content.get("seconds", 0.0))
        return True

    def _try(self, unit: Unit) -> bool:
        """Whether this process did the unit or saw it fail; False: it waits, or is another's."""
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{unit.file}.lock", timeout=0):
                if self._is_done(unit) or self._has_failed(unit) or not self._may_begin(unit):
                    return False
                if not self.room.enter(self._need(unit)):
                    return False
                try:
                    return self._do(unit)
                finally:
                    self.room.leave()
        except Timeout:
            return False

    def _may_begin(self, unit: Unit) -> bool:
        return all(file in self._done or file.is_file() for file in unit.needs)

    def _need(self, unit: Unit) -> float:
        """The memory in GB that it is expected to need; nothing known: its share of the bound."""
        if self.limits.memory is None:
            return 0.0
        peak = self.log.peak(unit.row.name, unit.row.model)
        return self.limits.memory / self.limits.processes if peak is None else peak

    def _do(self, unit: Unit) -> bool:
        """The work of a locked unit, written before the lock is let go."""
        name = unit.file.relative_to(self.folder).as_posix()
        about = {"row": unit.row.name, "model": unit.row.model}
        start, event = time.perf_counter(), "done"
        self.log.add("start", name, **about)
        with Peak() as peak:
            try:
                with time_cap(self.limits.minutes):
                    content = unit.work()
                if content is None:
                    self.log.add("waits", name, **about)
                    return False
                content["seconds"] = round(time.perf_counter() - start, 2)
                write_atomically(unit.file, (json.dumps(content, indent=1) + "\n").encode())
                if not self._is_done(unit):
                    raise RecboleMetaError(
                        "What it wrote does not agree with the benchmark, the data or the seed."
                    )
            except Exception as error:
                event = "failed"
                _log.exception("%s failed", name)
                unit.fail(error)
            except TimeUp as error:
                event = "capped"
                _log.warning("%s failed: %s", name, error)
                unit.fail(error, self.limits.minutes)
        seconds = round(time.perf_counter() - start, 2)
        self.log.add(event, name, seconds=seconds, peak_gb=round(peak.gb, 3), **about)
        if event == "done":
            unit.failure.unlink(missing_ok=True)
            _log.info("%s: %.1f s; %s", name, seconds, self.left())
        return True

    def units(self) -> Iterator[Unit]:
        """All units, RecBole's searches first; a unit that waits for another does nothing yet."""
        b = self.benchmark
        yield from self._trials()
        for judging in b.settings:
            rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
            runs = [(row, seed) for row in rows for seed in row.seeds]
            for split, (row, seed) in itertools.product(judging.splits, runs):
                name = row.unit(None, seed, b.seed)
                yield Unit(
                    self.folder / judging.name / str(split) / f"{name}.json",
                    row,
                    (judging.name,),
                    None,
                    partial(self.judge.closed_form, judging, split, row, seed),
                    partial(dict, trials=row.trials(b.trials)),
                    partial(self.judge.agrees, judging, split, row, None, seed),
                )
        yield from self._trained()

    def _trials(self) -> Iterator[Unit]:
        """Of the searches of the rows that train."""
        for row, search in itertools.product(self.benchmark.trained_rows, self.benchmark.searches):
            for trial in self.searches.trials(row, search):
                yield Unit(
                    trial.file,
                    row,
                    self._served(search),
                    None,
                    partial(self.searches.work, row, search, trial),
                    trial.made_by,
                    partial(self.searches.agrees, row, search),
                )

    def _served(self, search: Search) -> tuple[str, ...]:
        """The entries whose rows that train need this search."""
        b = self.benchmark
        own = [j for j in b.settings if j.trained_from == j.name]
        here = {judging.name for judging in own if b.search_of(judging) == search}
        return tuple(judging.name for judging in b.settings if judging.trained_from in here)

    def _trained(self) -> Iterator[Unit]:
        """Of the rows that train, judged with the best of their search."""
        b, judge = self.benchmark, self.judge
        theirs = [j for j in b.settings if j.trained_from == j.name]
        for row, judging in itertools.product(b.trained_rows, theirs):
            trials = tuple(t.file for t in self.searches.trials(row, b.search_of(judging)))
            shots = (None,) if choose_model(row.model).ours else b.trained_shots
            for seed, split, k in itertools.product(row.seeds, judging.splits, shots):
                name = row.unit(k, seed, b.seed)
                yield Unit(
                    self.folder / judging.name / str(split) / f"{name}.json",
                    row,
                    tuple(j.name for j in b.settings if j.trained_from == judging.name),
                    k,
                    partial(judge.trained, judging, split, row, k, seed),
                    partial(judge.chosen, row, judging, k),
                    partial(judge.agrees, judging, split, row, k, seed),
                    trials,
                )


def run_benchmark(
    name: str,
    data_path: str = "dataset",
    prepared_path: str = "dataset/prepared",
    runs: str | Path = "runs",
    processes: int = 1,
    minutes: float | None = None,
    memory: float | None = None,
) -> Benchmark:
    """Run what is missing of a benchmark, in this many processes of one thread each.

    ``minutes`` that a unit may take; ``memory`` in GB of all processes together.
    """
    if processes < 1:
        raise SettingError(f"'processes' must be at least 1, found {processes}.")
    if memory is not None and not memory > 0:
        raise SettingError(f"'memory' must be above 0, found {memory}.")
    check_minutes(minutes)
    limits = Limits(processes, minutes, memory)
    benchmark = read_benchmark(name)
    for dataset in {judging.dataset for judging in benchmark.settings}:
        find_dataset(dataset, data_path)
    check_writable(Path(runs))
    since = time.time()
    arguments = (name, data_path, prepared_path, str(runs), since, limits)
    if processes == 1:
        _work(*arguments)
    else:
        here = Room(Path(runs) / benchmark.name, memory)
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=arguments) for _ in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        here.close()
    Sweep(Site(benchmark, data_path, prepared_path, Path(runs)), since, limits).check()
    return benchmark


def _work(
    name: str, data_path: str, prepared_path: str, runs: str, since: float, limits: Limits
) -> None:
    """What a process does; it ends with its parent, since every file is written whole."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    site = Site(read_benchmark(name), data_path, prepared_path, Path(runs))
    with thread_limit(1):
        Sweep(site, since, limits).run()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
