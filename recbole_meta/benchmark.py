"""A published table from one file: search on valid, per k; test once; every step resumes where it
was killed.

The unit of work is a file below the benchmark's folder of runs: what has its file is not run
again. Several processes may work on one benchmark: a unit is locked while it runs. Rows of ours
(floors, rules, learners) are fitted once per trial and judged at every k; RecBole's models are
searched once and trained for every k.
"""

import itertools
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from recbole_meta.data.prepare import prepare, read_protocol, sha256
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import SettingError
from recbole_meta.evaluation.entries import GROUPS
from recbole_meta.fitting import (
    Outcome,
    fit_learner,
    judge_learner,
    judge_recbole,
    thread_limit,
    used_settings,
    valid_metric,
)
from recbole_meta.settings import load_properties, read_settings
from recbole_meta.stage import (
    ModelChoice,
    Stage,
    check_settings,
    choose_model,
    load_stage,
    model_page,
)
from recbole_meta.tracking import write_atomically, write_run

_log = logging.getLogger(__name__)
Settings = dict[str, Any]


@dataclass(frozen=True)
class Judging:
    """One entry of ``settings``: a protocol with changes, and its splits."""

    name: str
    protocol: str
    changed: dict[str, Any]
    splits: tuple[int, ...]
    groups: tuple[str, ...]  # whose rows of ours are judged
    recbole_from: (
        str | None
    )  # the entry whose runs of RecBole's models are read; itself: they run here


@dataclass(frozen=True)
class Row:
    """A row of the table: a model, what is fixed, and the grid that is searched."""

    name: str
    model: str
    fixed: dict[str, Any]
    grid: dict[str, Any]

    def trials(self, number: int) -> list[Settings]:
        """At most ``number`` different settings, drawn once and for all without replacement."""
        names = list(self.grid)
        points = list(itertools.product(*self.grid.values()))
        if len(points) > number:
            chosen = np.random.default_rng(0).choice(len(points), number, replace=False)
            points = [points[i] for i in sorted(chosen)]
        return [self.fixed | _unfold(names, point) for point in points]


def _unfold(names: list[str], point: tuple[Any, ...]) -> Settings:
    """'a,b': [1, 2] sets two settings together."""
    settings: Settings = {}
    for name, value in zip(names, point, strict=True):
        together = name.split(",")
        settings |= dict(zip(together, value if len(together) > 1 else [value], strict=True))
    return settings


@dataclass(frozen=True)
class Search:
    """Where RecBole's models are searched; an entry is judged with the search of its order."""

    setting: str
    split: int
    shots: int
    trials: int


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file."""

    name: str
    dataset: str
    seed: int
    trials: int
    settings: tuple[Judging, ...]
    rows: tuple[Row, ...]
    searches: tuple[Search, ...]
    recbole_shots: tuple[int, ...]
    recbole_rows: tuple[Row, ...]


def read_benchmark(name: str) -> Benchmark:
    """``properties/benchmark/<name>.yaml``, checked: models, settings and grids exist."""
    values = load_properties("benchmark", name)
    try:
        recbole = values["recbole"]
        judgings = []
        for entry in values["settings"]:
            filled = {"changed": {}, "groups": list(GROUPS), "recbole_from": entry["name"], **entry}
            judgings.append(read_settings(Judging, filled, f"Benchmark '{name}'"))
        rows = [_row(entry, name) for entry in values["rows"]]
        theirs = [_row(entry, name) for entry in recbole["rows"]]
        benchmark = Benchmark(
            name, values["dataset"], values["seed"], values["trials"], tuple(judgings), tuple(rows),
            tuple(read_settings(Search, s, f"Benchmark '{name}'") for s in recbole["searches"]),
            tuple(recbole["shots"]), tuple(theirs),
        )  # fmt: skip
    except KeyError as error:
        raise SettingError(f"Benchmark '{name}' lacks the entry {error}.") from error
    for row in (*rows, *theirs):
        check_settings(choose_model(row.model), row.trials(1)[0])
    return benchmark


def _row(entry: Mapping[str, Any], name: str) -> Row:
    return read_settings(Row, {"fixed": {}, "grid": {}, **entry}, f"Benchmark '{name}', rows")


class Sweep:
    """The units of a benchmark; ``run`` does those that are missing."""

    def __init__(
        self, benchmark: Benchmark, data_path: str, prepared_path: str, runs: Path
    ) -> None:
        self.benchmark = benchmark
        self.data_path, self.prepared_path = data_path, prepared_path
        self.folder = runs / benchmark.name
        self._stages: dict[tuple[str, str], Stage] = {}

    def run(self) -> None:
        """Pass over the units until none is missing; waits where another process has the rest."""
        start = time.perf_counter()
        while True:
            units = list(self.units())
            missing = [unit for unit in units if not unit.file.is_file()]
            if not missing:
                return
            done = 0
            for unit in missing:
                done += self._try(unit)
            spent = time.perf_counter() - start
            _log.info(
                "%d of %d units are missing, %.0f s spent", len(missing) - done, len(units), spent
            )
            if not done:
                time.sleep(2)

    def _try(self, unit: "Unit") -> bool:
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{unit.file}.lock", timeout=0):
                if unit.file.is_file():
                    return True
                start = time.perf_counter()
                content = unit.work()
                if content is None:
                    return False
                content["seconds"] = round(time.perf_counter() - start, 2)
                write_atomically(unit.file, (json.dumps(content, indent=1) + "\n").encode())
                _log.info("%s: %.1f s", unit.file.relative_to(self.folder), content["seconds"])
        except Timeout:
            return False
        return True

    def units(self) -> Iterator["Unit"]:
        """All units, RecBole's searches first; a unit that waits for another does nothing yet."""
        b = self.benchmark
        for row, search in itertools.product(b.recbole_rows, b.searches):
            for file, trial in self._trials(row, search):
                yield Unit(file, partial(self._search_recbole, row, search, trial))
        for judging in b.settings:
            rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
            for split, row in itertools.product(judging.splits, rows):
                yield Unit(
                    self.folder / judging.name / str(split) / f"{_slug(row.name)}.json",
                    partial(self._judge_row, judging, split, row),
                )
        theirs = [j for j in b.settings if j.recbole_from == j.name]
        for row, judging in itertools.product(b.recbole_rows, theirs):
            for split, k in itertools.product(judging.splits, b.recbole_shots):
                yield Unit(
                    self.folder / judging.name / str(split) / f"{_slug(row.name)}-k{k}.json",
                    partial(self._judge_recbole, judging, split, row, k),
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
        prepared = self.prepared(self._judging(search.setting), search.split)
        outcome = judge_recbole(
            choose_model(row.model), prepared, search.shots, self.benchmark.seed, trial, test=False
        )
        return {"settings": trial, "valid": outcome.valid.means(), "epochs": outcome.epochs}

    def _judging(self, name: str) -> Judging:
        return next(judging for judging in self.benchmark.settings if judging.name == name)

    def _trials(self, row: Row, search: Search) -> list[tuple[Path, Settings]]:
        """The file and the settings of each trial of a model of RecBole."""
        folder = self.folder / "search" / search.setting / _slug(row.name)
        return [(folder / f"{_hash(t)}.json", t) for t in row.trials(search.trials)]

    def searched(self, row: Row, judging: Judging) -> list[dict[str, Any]] | None:
        """All trials of the search with this entry's order; None while some are missing."""
        order = read_protocol(judging.protocol, **judging.changed).order
        for search in self.benchmark.searches:
            searched = self._judging(search.setting)
            if read_protocol(searched.protocol, **searched.changed).order == order:
                files = [file for file, _ in self._trials(row, search)]
                if not all(file.is_file() for file in files):
                    return None
                return [json.loads(file.read_text()) for file in files]
        raise SettingError(f"Benchmark '{self.benchmark.name}' has no search for order '{order}'.")

    def _judge_recbole(
        self, judging: Judging, split: int, row: Row, k: int
    ) -> dict[str, Any] | None:
        trials = self.searched(row, judging)
        if trials is None:
            return None
        prepared = self.prepared(judging, split)
        metric = valid_metric(prepared)
        best = max(
            trials, key=lambda trial: trial["valid"][metric.name] * (1 if metric.bigger else -1)
        )
        choice = choose_model(row.model)
        outcome = judge_recbole(choice, prepared, k, self.benchmark.seed, best["settings"])
        run = self._write(row, choice, judging, split, prepared, outcome)
        return {"row": row.name, "runs": {str(k): run}, "chosen": {str(k): best["settings"]}}

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
        named = replace(choice, name=_slug(row.name))
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


def _configured(choice: ModelChoice, stage: Stage, settings: Settings) -> Any:
    """The stage's Config with this model's settings."""
    for key, value in (model_page(choice) | settings).items():
        stage.config[key] = value
    return stage.config


def _slug(name: str) -> str:
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
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {processes} processes failed: see their messages.")
    return benchmark


def _work(name: str, data_path: str, prepared_path: str, runs: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with thread_limit(1):
        Sweep(read_benchmark(name), data_path, prepared_path, Path(runs)).run()
