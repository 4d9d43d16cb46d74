"""Running a benchmark: search on valid, per k; test once; every step resumes where it was killed.

The unit of work is a file below the benchmark's folder of runs: what has its file, made by the
settings of today, is not run again. Several processes may work on one benchmark: a unit is locked
while it runs. Rows of ours (floors, rules, learners) are fitted once per trial and judged at every
k; RecBole's models are searched once per order of rows and trained for every k.
"""

import itertools
import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_meta.benchmark import Benchmark, Judging, Row, Search, Settings, read_benchmark
from recbole_meta.data.prepare import prepare, read_protocol, sha256
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.fitting import (
    Outcome,
    fit_learner,
    judge_learner,
    judge_recbole,
    thread_limit,
    used_settings,
    valid_metric,
)
from recbole_meta.stage import ModelChoice, Stage, choose_model, load_stage, model_page
from recbole_meta.tracking import write_atomically, write_run

_log = logging.getLogger(__name__)


class Sweep:
    """The units of a benchmark; ``run`` does those that are missing."""

    def __init__(
        self, benchmark: Benchmark, data_path: str, prepared_path: str, runs: Path
    ) -> None:
        self.benchmark = benchmark
        self.data_path, self.prepared_path = data_path, prepared_path
        self.folder = runs / benchmark.name
        self._stages: dict[tuple[str, str], Stage] = {}
        self._done: set[Path] = set()
        self._failed: list[Path] = []

    def run(self) -> None:
        """Pass over the units until none is missing; waits where another process has the rest.

        A unit that raises stops nothing else; it is named at the end, and tried at the next start.
        """
        start = time.perf_counter()
        while missing := [unit for unit in self.units() if not self._is_done(unit)]:
            todo = [unit for unit in missing if unit.file not in self._failed]
            if not todo:
                break
            finished = sum(self._try(unit) for unit in todo)
            _log.info(
                "%d units are missing, %.0f s spent",
                len(missing) - finished,
                time.perf_counter() - start,
            )
            if not finished:
                time.sleep(2)
        if self._failed:
            names = ", ".join(str(file.relative_to(self.folder)) for file in self._failed)
            raise RecboleMetaError(
                f"{len(self._failed)} units failed: {names}. Their logs say why."
            )

    def _is_done(self, unit: "Unit") -> bool:
        """Whether the unit's file is there and was made by the settings of today."""
        if unit.file not in self._done and unit.file.is_file():
            content = json.loads(unit.file.read_text("utf-8"))
            if all(content.get(key) == value for key, value in unit.made_by().items()):
                self._done.add(unit.file)
        return unit.file in self._done

    def _try(self, unit: "Unit") -> bool:
        """Whether the unit was done by this process; False: it waits, fails, or is another's."""
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{unit.file}.lock", timeout=0):
                if self._is_done(unit):
                    return False
                start = time.perf_counter()
                content = unit.work()
        except Timeout:
            return False
        except Exception:
            _log.exception("%s failed", unit.file.relative_to(self.folder))
            self._failed.append(unit.file)
            return False
        if content is None:
            return False
        content["seconds"] = round(time.perf_counter() - start, 2)
        write_atomically(unit.file, (json.dumps(content, indent=1) + "\n").encode())
        _log.info("%s: %.1f s", unit.file.relative_to(self.folder), content["seconds"])
        return True

    def units(self) -> Iterator["Unit"]:
        """All units, RecBole's searches first; a unit that waits for another does nothing yet."""
        b = self.benchmark
        for row, search in itertools.product(b.recbole_rows, b.searches):
            for file, trial in self._trials(row, search):
                yield Unit(
                    file,
                    partial(self._search_recbole, row, search, trial),
                    partial(dict, settings=trial),
                )
        for judging in b.settings:
            rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
            for split, row in itertools.product(judging.splits, rows):
                yield Unit(
                    self.folder / judging.name / str(split) / f"{slug(row.name)}.json",
                    partial(self._judge_row, judging, split, row),
                    partial(dict, trials=row.trials(b.trials)),
                )
        theirs = [j for j in b.settings if j.recbole_from == j.name]
        for row, judging in itertools.product(b.recbole_rows, theirs):
            for split, k in itertools.product(judging.splits, b.recbole_shots):
                yield Unit(
                    self.folder / judging.name / str(split) / f"{slug(row.name)}-k{k}.json",
                    partial(self._judge_recbole, judging, split, row, k),
                    partial(self._chosen, row, judging, k),
                )

    def prepared(self, judging: Judging, split: int) -> Prepared:
        """The prepared folder of an entry's split."""
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        return open_prepared(
            prepare(
                self.benchmark.dataset,
                protocol,
                judging.protocol,
                self.data_path,
                self.prepared_path,
            )
        )

    def _search_recbole(self, row: Row, search: Search, trial: Settings) -> dict[str, Any]:
        prepared = self.prepared(self.benchmark.judging(search.setting), search.split)
        outcome = judge_recbole(
            choose_model(row.model), prepared, search.shots, self.benchmark.seed, trial, test=False
        )
        return {"settings": trial, "valid": outcome.valid.means(), "epochs": outcome.epochs}

    def _trials(self, row: Row, search: Search) -> list[tuple[Path, Settings]]:
        """The file and the settings of each trial of a model of RecBole."""
        folder = self.folder / "search" / search.setting / slug(row.name)
        return [(folder / f"{_hash(t)}.json", t) for t in row.trials(search.trials)]

    def searched(self, row: Row, judging: Judging) -> Settings | None:
        """The best settings of a model of RecBole on valid; None while trials are missing."""
        search = self.benchmark.search_of(judging)
        files = [file for file, _ in self._trials(row, search)]
        if not all(file.is_file() for file in files):
            return None
        trials = [json.loads(file.read_text("utf-8")) for file in files]
        metric = valid_metric(self.prepared(self.benchmark.judging(search.setting), search.split))
        sign = 1 if metric.bigger else -1
        best: Settings = max(trials, key=lambda trial: sign * trial["valid"][metric.name])[
            "settings"
        ]
        return best

    def _chosen(self, row: Row, judging: Judging, k: int) -> dict[str, Any]:
        return {"chosen": {str(k): self.searched(row, judging)}}

    def _judge_recbole(
        self, judging: Judging, split: int, row: Row, k: int
    ) -> dict[str, Any] | None:
        settings = self.searched(row, judging)
        if settings is None:
            return None
        prepared = self.prepared(judging, split)
        choice = choose_model(row.model)
        outcome = judge_recbole(choice, prepared, k, self.benchmark.seed, settings)
        run = self._write(row, choice, judging, split, prepared, outcome)
        return {"row": row.name, "runs": {str(k): run}, "chosen": {str(k): settings}}

    def _judge_row(self, judging: Judging, split: int, row: Row) -> dict[str, Any]:
        """Every trial on valid at every k, then the best of each k on test."""
        prepared = self.prepared(judging, split)
        choice = choose_model(row.model)
        metric = valid_metric(prepared)
        sign = 1 if metric.bigger else -1
        stage = self._stage(choice, prepared, "valid")
        best: dict[int, tuple[float, Settings, Any, float]] = {}
        scores: list[dict[str, float]] = []
        trials = row.trials(self.benchmark.trials)
        for trial in trials:
            start = time.perf_counter()
            trainer = fit_learner(choice, stage, _configured(choice, stage, trial))
            fit = time.perf_counter() - start
            scores.append({})
            for k in prepared.shots:
                judged = judge_learner(trainer, choice, stage, "valid", k)
                score = judged.means()[metric.name]
                scores[-1][str(k)] = score
                if k not in best or sign * score > sign * best[k][0]:
                    best[k] = (score, trial, judged, fit)
        last = stage if "test" in stage.data else self._stage(choice, prepared, "test")
        runs = {}
        for k, (_, trial, valid, fit) in best.items():
            trainer = fit_learner(choice, last, _configured(choice, last, trial))
            start = time.perf_counter()
            test = judge_learner(trainer, choice, last, "test", k)
            seconds = {"fit": fit, "evaluate": time.perf_counter() - start}
            outcome = Outcome(k, valid, test, seconds, used_settings(choice, trainer.config))
            runs[str(k)] = self._write(row, choice, judging, split, prepared, outcome)
        chosen = {str(k): entry[1] for k, entry in best.items()}
        return {"row": row.name, "runs": runs, "chosen": chosen, "trials": trials, "scores": scores}

    def _stage(self, choice: ModelChoice, prepared: Prepared, phase: str) -> Stage:
        """Loaded once per training file: all rows of ours read the same."""
        key = (prepared.name, prepared.train_name(phase, prepared.shots[0]))
        if key not in self._stages:
            self._stages.clear()
            self._stages[key] = load_stage(
                choice, prepared, phase, prepared.shots[0], self.benchmark.seed, {}
            )
        return self._stages[key]

    def _write(
        self,
        row: Row,
        choice: ModelChoice,
        judging: Judging,
        split: int,
        prepared: Prepared,
        outcome: Outcome,
    ) -> str:
        named = replace(choice, name=slug(row.name))
        folder = write_run(
            self.folder / judging.name / str(split) / "runs",
            named,
            prepared,
            self.benchmark.seed,
            outcome,
        )
        return str(folder.relative_to(self.folder))


@dataclass(frozen=True)
class Unit:
    """Work whose result is one file; ``work`` gives None while it must wait for another unit."""

    file: Path
    work: Callable[[], dict[str, Any] | None]
    made_by: Callable[[], dict[str, Any]]  # entries that the file has if today's settings made it


def _configured(choice: ModelChoice, stage: Stage, settings: Settings) -> Any:
    """The stage's Config with this model's settings."""
    for key, value in (model_page(choice) | settings).items():
        stage.config[key] = value
    return stage.config


def slug(name: str) -> str:
    """A row's name as that of a file."""
    return name.replace(" + b ", "+").replace(" on ", "~").replace(" ", "")


def _hash(settings: Settings) -> str:
    return sha256(json.dumps(settings, sort_keys=True).encode())[:8]


def run_benchmark(
    name: str,
    data_path: str = "dataset",
    prepared_path: str = "dataset/prepared",
    runs: str | Path = "runs",
    processes: int = 1,
) -> Benchmark:
    """Run what is missing of a benchmark, in this many processes of one thread each."""
    benchmark = read_benchmark(name)
    arguments = (name, data_path, prepared_path, str(runs))
    if processes < 1:
        raise SettingError(f"'processes' must be at least 1, found {processes}.")
    if processes == 1:
        _work(*arguments)
        return benchmark
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RecboleMetaError(f"Benchmark '{name}' is not finished: units failed, see the log.")
    return benchmark


def _work(name: str, data_path: str, prepared_path: str, runs: str) -> None:
    """What a process does; it ends with its parent, since every file is written whole."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    with thread_limit(1):
        Sweep(read_benchmark(name), data_path, prepared_path, Path(runs)).run()
