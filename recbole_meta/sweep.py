"""Running a benchmark: search on valid, per k; test once; every step resumes where it was killed.

The unit of work is a file below the benchmark's folder of runs: what has its file, made by the
settings of today, is not run again. Several processes may work on one benchmark: a unit is locked
while it runs. Closed forms (floors, rules, ridges) are fitted once per trial and judged at every k.
What trains is searched once per order of rows: RecBole's models are trained anew for every k,
learners once for all k.
"""

import itertools
import json
import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_meta.benchmark import Benchmark, Judging, Row, Search, Settings, read_benchmark
from recbole_meta.checkpoint import finish
from recbole_meta.choice import ModelChoice, choose_model, model_page
from recbole_meta.data.prepare import find_dataset, prepare, read_protocol, sha256
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.fitting import (
    Outcome,
    fit_learner,
    judge_all,
    judge_learner,
    judge_recbole,
    thread_limit,
    used_settings,
    valid_metric,
)
from recbole_meta.stage import Stage, load_stage, stage_config
from recbole_meta.tracking import check_writable, write_atomically, write_run

_log = logging.getLogger(__name__)
_FAILED = ".failed"  # ending of the file beside a unit's that says why it failed
_WAIT = 2.0  # seconds, where other processes have all that is missing
_OF_BATCHES = ("train_batch_size", "eval_batch_size", "train_neg_sample_args")  # of the loaders


class Sweep:
    """The units of a benchmark; ``run`` does those that are missing."""

    def __init__(
        self,
        benchmark: Benchmark,
        data_path: str,
        prepared_path: str,
        runs: Path,
        since: float = 0.0,
    ) -> None:
        self.benchmark = benchmark
        self.data_path, self.prepared_path = data_path, prepared_path
        self.folder = runs / benchmark.name
        self._stages: dict[tuple[str, ...], Stage] = {}
        self.since = since
        self._done: set[Path] = set()
        self._digests: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        """Pass over the units until none is missing; waits where another process has the rest.

        A unit that raises stops nothing but those that need it; it is tried again at the next
        start.
        """
        start, said = time.perf_counter(), -1
        while todo := self._open():
            finished = sum(self._try(unit) for unit in todo)
            missing, spent = len(todo) - finished, time.perf_counter() - start
            if missing != said:
                _log.info("%d units are missing, %.0f s spent", missing, spent)
            said = missing
            if not finished:
                time.sleep(_WAIT)

    def _open(self) -> list["Unit"]:
        """The missing units that did not fail since the start and need none that did."""
        missing = [unit for unit in self.units() if not self._is_done(unit)]
        failed = {unit.file for unit in missing if self._has_failed(unit)}
        return [u for u in missing if u.file not in failed and failed.isdisjoint(u.needs)]

    def check(self) -> None:
        """An error that names the units that failed, where not all units are done."""
        missing = [unit for unit in self.units() if not self._is_done(unit)]
        failed = [unit for unit in missing if self._has_failed(unit)]
        if missing:
            said = [f"{u.file.relative_to(self.folder)} ({_last_line(u.failure)})" for u in failed]
            raise RecboleMetaError(
                f"Benchmark '{self.benchmark.name}' is not finished: {len(failed)} units failed"
                f"{': ' if said else ''}{', '.join(said)}; {len(missing) - len(failed)} others are "
                f"missing. What stopped them stands beside, in files that end in {_FAILED}; they "
                "are tried again at the next start."
            )

    def _has_failed(self, unit: "Unit") -> bool:
        """Whether the unit failed since the start, in whatever process."""
        return unit.failure.is_file() and unit.failure.stat().st_mtime >= self.since

    def _is_done(self, unit: "Unit") -> bool:
        """Whether the unit's file is there and was made by the settings of today."""
        if unit.file not in self._done:
            try:
                content = json.loads(unit.file.read_text("utf-8"))
                made = all(content.get(key) == value for key, value in unit.made_by().items())
                if not (made and unit.runs_agree(content)):
                    return False
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return False  # it is not there, or damaged
            self._done.add(unit.file)
        return True

    def _search_about(self, row: Row, search: Search) -> dict[str, Any]:
        """What a search depends on beside its trial."""
        sha = self._sha256(self.benchmark.judging(search.setting), search.split)
        seed = self.benchmark.seed
        return {"model": row.model, "shots": search.shots, "seed": seed, "sha256": sha}

    def _search_agrees(self, row: Row, search: Search, content: dict[str, Any]) -> bool:
        about = self._search_about(row, search)
        return bool(content.get("about", about) == about)

    def _runs_agree(
        self, judging: Judging, split: int, row: Row, k: int | None, content: dict[str, Any]
    ) -> bool:
        """The runs are of this row, these shots (None: all), this prepared folder and seed, and
        their settings are the chosen ones over the model's page.
        """
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        shots = [str(k) for k in (protocol.support_sizes if k is None else (k,))]
        if content["row"] != row.name or list(content["runs"]) != shots:
            return False
        choice = choose_model(row.model)
        for shot in shots:
            folder = self.folder / content["runs"][shot]
            result = json.loads((folder / "result.json").read_text("utf-8"))
            used = json.loads(json.dumps(model_page(choice) | content["chosen"][shot]))
            config = result["config"]
            if not (
                (folder / "tasks.npz").is_file()
                and result["data"]["sha256"] == self._sha256(judging, split)
                and (result["seed"], result["group"]) == (self.benchmark.seed, choice.group)
                and content["chosen"][shot].keys() <= config.keys()
                and all(config[key] == used[key] for key in config.keys() & used.keys())
            ):
                return False
        return True

    def _sha256(self, judging: Judging, split: int) -> str:
        """The digest of an entry's prepared folder, which need not be opened for it."""
        key = (judging.name, split)
        if key not in self._digests:
            file = self._prepare(judging, split) / "protocol.json"
            self._digests[key] = str(json.loads(file.read_text("utf-8"))["sha256"])
        return self._digests[key]

    def _try(self, unit: "Unit") -> bool:
        """Whether this process did the unit or saw it fail; False: it waits, or is another's."""
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{unit.file}.lock", timeout=0):
                if self._is_done(unit) or self._has_failed(unit):
                    return False
                return self._do(unit)
        except Timeout:
            return False

    def _do(self, unit: "Unit") -> bool:
        """The work of a locked unit, written before the lock is let go."""
        name = unit.file.relative_to(self.folder)
        start = time.perf_counter()
        try:
            content = unit.work()
            if content is None:
                return False
            content["seconds"] = round(time.perf_counter() - start, 2)
            write_atomically(unit.file, (json.dumps(content, indent=1) + "\n").encode())
            if not self._is_done(unit):
                raise RecboleMetaError(
                    "What it wrote does not agree with the benchmark, the data or the seed."
                )
        except Exception:
            _log.exception("%s failed", name)
            write_atomically(unit.failure, traceback.format_exc().encode())
            return True
        unit.failure.unlink(missing_ok=True)
        _log.info("%s: %.1f s", name, content["seconds"])
        return True

    def units(self) -> Iterator["Unit"]:
        """All units, RecBole's searches first; a unit that waits for another does nothing yet."""
        b = self.benchmark
        for row, search in itertools.product(b.trained_rows, b.searches):
            for file, trial in self._trials(row, search):
                yield Unit(
                    file,
                    partial(self._search, row, search, trial),
                    partial(dict, settings=trial),
                    partial(self._search_agrees, row, search),
                )
        for judging in b.settings:
            rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
            for split, row in itertools.product(judging.splits, rows):
                yield Unit(
                    self.folder / judging.name / str(split) / f"{slug(row.name)}.json",
                    partial(self._judge_row, judging, split, row),
                    partial(dict, trials=row.trials(b.trials)),
                    partial(self._runs_agree, judging, split, row, None),
                )
        theirs = [j for j in b.settings if j.trained_from == j.name]
        for row, judging in itertools.product(b.trained_rows, theirs):
            trials = tuple(file for file, _ in self._trials(row, b.search_of(judging)))
            ours = choose_model(row.model).ours
            for split, k in itertools.product(judging.splits, (None,) if ours else b.trained_shots):
                name = slug(row.name) if k is None else f"{slug(row.name)}-k{k}"
                yield Unit(
                    self.folder / judging.name / str(split) / f"{name}.json",
                    partial(self._judge_trained, judging, split, row, k),
                    partial(self._chosen, row, judging, k),
                    partial(self._runs_agree, judging, split, row, k),
                    trials,
                )

    def prepared(self, judging: Judging, split: int) -> Prepared:
        """The prepared folder of an entry's split."""
        return open_prepared(self._prepare(judging, split))

    def _prepare(self, judging: Judging, split: int) -> Path:
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        return prepare(
            self.benchmark.dataset,
            protocol,
            judging.protocol,
            self.data_path,
            self.prepared_path,
        )

    def _search(self, row: Row, search: Search, trial: Settings) -> dict[str, Any]:
        """A trial on valid: RecBole's model at the search's k, a learner by its mean over k."""
        prepared = self.prepared(self.benchmark.judging(search.setting), search.split)
        choice, seed = choose_model(row.model), self.benchmark.seed
        if choice.ours:
            stage = load_stage(choice, prepared, "valid", prepared.shots[0], seed, trial)
            trainer = fit_learner(choice, stage)
            metric = valid_metric(prepared)
            score = trainer.best_score * (1 if metric.bigger else -1)
            valid, epochs = {metric.name: score}, trainer.best_epoch
        else:
            outcome = judge_recbole(choice, prepared, search.shots, seed, trial, test=False)
            valid, epochs = outcome.valid.means(), outcome.epochs
        return {
            "settings": trial,
            "valid": valid,
            "epochs": epochs,
            "about": self._search_about(row, search),
        }

    def _trials(self, row: Row, search: Search) -> list[tuple[Path, Settings]]:
        """The file and the settings of each trial of a row that trains; none without a choice."""
        folder = self.folder / "search" / search.setting / slug(row.name)
        trials = row.trials(search.trials)
        return [(folder / f"{_hash(t)}.json", t) for t in trials] if len(trials) > 1 else []

    def searched(self, row: Row, judging: Judging) -> Settings | None:
        """The best settings of a row that trains on valid; None while trials are missing."""
        search = self.benchmark.search_of(judging)
        files = [file for file, _ in self._trials(row, search)]
        if not files:
            return row.trials(1)[0]
        try:
            trials = [json.loads(file.read_text("utf-8")) for file in files]
        except (OSError, ValueError):
            return None
        if not all(self._search_agrees(row, search, trial) for trial in trials):
            return None
        metric = valid_metric(self.prepared(self.benchmark.judging(search.setting), search.split))
        sign = 1 if metric.bigger else -1
        best: Settings = max(trials, key=lambda trial: sign * trial["valid"][metric.name])[
            "settings"
        ]
        return best

    def _chosen(self, row: Row, judging: Judging, k: int | None) -> dict[str, Any]:
        shots = self._shots(judging) if k is None else (k,)
        return {"chosen": dict.fromkeys(map(str, shots), self.searched(row, judging))}

    def _judge_trained(
        self, judging: Judging, split: int, row: Row, k: int | None
    ) -> dict[str, Any] | None:
        """The best settings of the search: RecBole's model at k, a learner at every k (None)."""
        settings = self.searched(row, judging)
        if settings is None:
            return None
        prepared = self.prepared(judging, split)
        choice, seed = choose_model(row.model), self.benchmark.seed
        training = self.folder / judging.name / str(split) / "training" / slug(row.name)
        if k is None:
            outcomes = list(judge_all(choice, prepared, seed, settings, folder=training))
        else:
            outcomes = [judge_recbole(choice, prepared, k, seed, settings)]
        runs = {
            str(outcome.k): self._write(row, choice, judging, split, prepared, outcome)
            for outcome in outcomes
        }
        finish(training)
        return {"row": row.name, "runs": runs, "chosen": dict.fromkeys(runs, settings)}

    @staticmethod
    def _shots(judging: Judging) -> tuple[int, ...]:
        return read_protocol(judging.protocol, **judging.changed).support_sizes

    def _judge_row(self, judging: Judging, split: int, row: Row) -> dict[str, Any]:
        """Every trial on valid at every k, then the best of each k on test."""
        prepared = self.prepared(judging, split)
        choice = choose_model(row.model)
        metric = valid_metric(prepared)
        sign = 1 if metric.bigger else -1
        best: dict[int, tuple[float, Settings, Any, float]] = {}
        scores: list[dict[str, float]] = []
        trials = row.trials(self.benchmark.trials)
        for trial in trials:
            stage = self._stage(choice, prepared, "valid", trial)
            start = time.perf_counter()
            trainer = fit_learner(
                choice, stage, config=self._config(choice, prepared, "valid", trial)
            )
            fit = time.perf_counter() - start
            scores.append({})
            for k in prepared.shots:
                judged = judge_learner(trainer, choice, stage, "valid", k)
                score = judged.means()[metric.name]
                scores[-1][str(k)] = score
                if k not in best or sign * score > sign * best[k][0]:
                    best[k] = (score, trial, judged, fit)
        runs = {}
        for k, (_, trial, valid, fit) in best.items():
            last = self._stage(choice, prepared, "test", trial)
            trainer = fit_learner(
                choice, last, config=self._config(choice, prepared, "test", trial)
            )
            start = time.perf_counter()
            test = judge_learner(trainer, choice, last, "test", k)
            seconds = {"fit": fit, "evaluate": time.perf_counter() - start}
            used = used_settings(choice, trainer.config, trial)
            outcome = Outcome(k, valid, test, seconds, used)
            runs[str(k)] = self._write(row, choice, judging, split, prepared, outcome)
        chosen = {str(k): entry[1] for k, entry in best.items()}
        return {"row": row.name, "runs": runs, "chosen": chosen, "trials": trials, "scores": scores}

    def _stage(
        self, choice: ModelChoice, prepared: Prepared, phase: str, settings: Settings
    ) -> Stage:
        """Loaded once per training file and settings of batches: most rows of ours share it."""
        values = model_page(choice) | settings
        batches = {name: values[name] for name in _OF_BATCHES if name in values}
        train = prepared.train_name(phase, prepared.shots[0])
        key = (prepared.name, train, str(choice.cls.input_type), json.dumps(batches))
        if key not in self._stages:
            while len(self._stages) > 1:  # valid's and test's of one protocol are kept
                self._stages.pop(next(iter(self._stages)))
            self._stages[key] = load_stage(
                choice, prepared, phase, prepared.shots[0], self.benchmark.seed, batches
            )
        return self._stages[key]

    def _config(
        self, choice: ModelChoice, prepared: Prepared, phase: str, settings: Settings
    ) -> Any:
        """A trial's own Config: what a row sets on a shared one, the next row would find there."""
        k, seed = prepared.shots[0], self.benchmark.seed
        return stage_config(choice, prepared, phase, k, seed, settings)

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
    runs_agree: Callable[[dict[str, Any]], bool]  # what the file's content says of data and seed
    needs: tuple[Path, ...] = ()  # files of units that come first

    @property
    def failure(self) -> Path:
        """Where it is written why the unit failed."""
        return self.file.with_name(self.file.name + _FAILED)


def slug(name: str) -> str:
    """A row's name as that of a file."""
    return name.replace(" + b ", "+").replace(" on ", "~").replace(" ", "")


def _last_line(file: Path) -> str:
    return file.read_text("utf-8").strip().splitlines()[-1]


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
    if processes < 1:
        raise SettingError(f"'processes' must be at least 1, found {processes}.")
    benchmark = read_benchmark(name)
    find_dataset(benchmark.dataset, data_path)
    check_writable(Path(runs))
    since = time.time()
    arguments = (name, data_path, prepared_path, str(runs), since)
    if processes == 1:
        _work(*arguments)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=arguments) for _ in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    Sweep(benchmark, data_path, prepared_path, Path(runs), since).check()
    return benchmark


def _work(name: str, data_path: str, prepared_path: str, runs: str, since: float) -> None:
    """What a process does; it ends with its parent, since every file is written whole."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with thread_limit(1):
        Sweep(read_benchmark(name), data_path, prepared_path, Path(runs), since).run()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
