"""A table of multi-task models on splits of behaviours: search on valid, test once per seed.

A page of ``properties/multitask`` says which rows stand in it and what each may try. A row's
settings are chosen for every objective apart (``choose: each``), as for a rule or a model of one
objective, or once for all of them by the mean over objectives (``choose: mean``), as for a model
that is one. A distribution over categories is chosen by its own metric where settings are chosen
``each``; it is in no mean, and a row whose model says none has no part in it. Every trial and every
run is a file: what has its file, made by the settings and data of today, is not done again.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recbole_meta.behaviour_fitting import (
    check_behaviour_settings,
    fit_behaviour,
    judged_objectives,
)
from recbole_meta.benchmark import Row, Settings
from recbole_meta.choice import choose_model, is_closed_form
from recbole_meta.compat import recbole_model_names
from recbole_meta.data.behaviours import Behaviours, open_behaviours, prepare_behaviours
from recbole_meta.data.objectives import Objectives, by_kind
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import check_names, slug
from recbole_meta.evaluation.objectives import metric_name
from recbole_meta.evaluation.rows import direction
from recbole_meta.model import multitask_models
from recbole_meta.objective_fitting import (
    ObjectiveFit,
    check_objective_settings,
    fit_objectives,
    multitask_model,
)
from recbole_meta.outcome import thread_limit
from recbole_meta.reading import read_row
from recbole_meta.search import digest
from recbole_meta.settings import Count, Size, load_properties, named_page, read_settings
from recbole_meta.tracking import (
    check_writable,
    commit,
    json_text,
    npz_bytes,
    read_finished,
    versions,
    write_atomically,
)

_log = logging.getLogger(__name__)
METRIC = "ndcg@10"  # chooses settings, on valid
SHARE_METRIC = "cross_entropy"  # those of a distribution


@dataclass(frozen=True)
class MultitaskRow(Row):
    """A row of the table, and whether its settings are those of one objective or of all."""

    choose: Literal["each", "mean"]
    group: Literal["floor", "rule", "recbole", "single", "ours"] | None  # ~: the model's own


@dataclass(frozen=True)
class Page:
    """A page of ``properties/multitask``."""

    dataset: str
    protocol: str  # behaviours_given | behaviours_time | behaviours_random
    seeds: tuple[Count, ...]  # of rows that train, where a row has none; the first one searches
    trials: Size
    rows: tuple[dict[str, Any], ...]
    published: tuple[dict[str, Any], ...]  # figures of others: name, note, and metrics by name


@dataclass(frozen=True)
class Multitask:
    """The same, checked."""

    name: str
    dataset: str
    seeds: tuple[int, ...]
    trials: int
    rows: tuple[MultitaskRow, ...]


def multitask_page(name: str) -> tuple[str, Page]:
    """The name and the content of a page: of ``properties/multitask``, or a path."""
    name, values = named_page("multitask", name)
    return name, read_settings(Page, values, f"Page '{name}'")


def read_multitask(name: str, objectives: Objectives) -> Multitask:
    """A page, refused where a row would stop in the middle of the work."""
    name, page = multitask_page(name)
    where = f"Page '{name}', rows"
    rows = tuple(
        read_row({"group": None, **entry}, where, MultitaskRow, seeds=page.seeds)
        for entry in page.rows
    )
    check_names([row.name for row in rows], where)
    if not rows or not all(row.seeds for row in rows):
        raise SettingError(f"Page '{name}' has no rows or no seeds.")
    for row in rows:
        if row.ranges():
            raise SettingError(
                f"{where}: '{row.ranges()[0]}' of '{row.name}' is a range: name the values to try."
            )
        _check_trials(row, row.trials(page.trials), objectives, where)
    return Multitask(name, page.dataset, page.seeds, page.trials, rows)


def _check_trials(
    row: MultitaskRow, trials: list[Settings], objectives: Objectives, where: str
) -> None:
    """Settings that cannot be, and objectives that no trial would be judged on."""
    ranked = tuple(by_kind(objectives)[0])
    judged = [_judged(row.model, trial, ranked) for trial in trials]
    for trial in trials:
        _check_settings(row.model, trial, objectives)
    missing = [name for name in ranked if not any(name in each for each in judged)]
    if missing:
        raise SettingError(
            f"{where}: no trial of '{row.name}' learns '{missing[0]}'. Name it in 'behaviour'."
        )
    if row.choose == "mean" and any(each != ranked for each in judged):
        raise SettingError(
            f"{where}: '{row.name}' has models of one behaviour: 'choose' must be each."
        )


def _is_multitask(model: str) -> bool:
    """Else it is a model of RecBole's; an error where it is neither."""
    if model in multitask_models():
        return True
    if model in recbole_model_names():
        return False
    known = [*multitask_models(), *recbole_model_names()]
    raise SettingError(f"Unknown multi-task model '{model}'. {nearest(model, known)}")


def _check_settings(model: str, given: Settings, objectives: Objectives) -> Settings:
    ranked, said = map(tuple, by_kind(objectives))
    if _is_multitask(model):
        return check_objective_settings(model, given, ranked, said)
    return check_behaviour_settings(model, given, ranked)


def _judged(model: str, trial: Settings, objectives: tuple[str, ...]) -> tuple[str, ...]:
    """The behaviours that a trial is judged on."""
    return objectives if _is_multitask(model) else judged_objectives(trial, objectives)


def _group(row: MultitaskRow) -> str:
    own = multitask_model(row.model).group if _is_multitask(row.model) else "recbole"
    return row.group or own


def _trains(model: str, trial: Settings) -> bool:
    """Whether seeds matter: a closed form has one."""
    if not _is_multitask(model):
        return not is_closed_form(choose_model(model))
    return bool((load_properties("model", model) | trial)["epochs"])


def run_multitask(
    name: str,
    data_path: str = "dataset",
    prepared_path: str = "dataset/prepared",
    runs: str | Path = "runs",
    device: str = "cpu",
) -> Path:
    """Run what is missing of a page, on one thread; the folder of its runs."""
    about = multitask_page(name)[1]
    behaviours = open_behaviours(
        prepare_behaviours(about.dataset, data_path, prepared_path, about.protocol)
    )
    page = read_multitask(name, behaviours.objectives | behaviours.distributions)
    check_writable(Path(runs))
    folder = Path(runs) / page.name
    with thread_limit(1):
        for row in page.rows:
            _RowRun(page, row, behaviours, folder, device).run()
    return folder


class _RowRun:
    """The work of one row; the best fits of the search are kept until they are judged on test."""

    def __init__(
        self, page: Multitask, row: MultitaskRow, behaviours: Behaviours, root: Path, device: str
    ) -> None:
        self.page, self.row, self.behaviours, self.device = page, row, behaviours, device
        self.root, self.folder = root, root / slug(row.name)
        self.trials = row.trials(page.trials)
        trains = any(_trains(row.model, trial) for trial in self.trials)
        self.seeds = row.seeds if trains else row.seeds[:1]
        self.made_by = {"sha256": behaviours.sha256, "model": row.model}
        says = _is_multitask(row.model) and multitask_model(row.model).distributes
        self.said = tuple(behaviours.distributions) if says else ()
        self.judged = (*behaviours.objectives, *self.said)
        self._fits: dict[str, ObjectiveFit] = {}

    def run(self) -> None:
        """Search, then test; the row's own file says what was chosen and where its runs are."""
        start = time.perf_counter()
        scores = [self._trial(trial) for trial in self.trials]
        chosen = {name: self._best(scores, name) for name in self.judged}
        runs = {
            str(seed): {name: self._test(settings, seed) for name, settings in chosen.items()}
            for seed in self.seeds
        }
        content = self.made_by | {
            "row": self.row.name, "choose": self.row.choose, "seeds": list(self.seeds),
            "trials": self.trials, "scores": scores, "chosen": chosen, "runs": runs,
            "seconds": round(time.perf_counter() - start, 2),
        }  # fmt: skip
        file = self.root / f"{slug(self.row.name)}.json"
        write_atomically(file, json_text(content).encode())
        _log.info("%s: done", self.row.name)

    def _made_by(self, settings: Settings, seed: int) -> dict[str, Any]:
        """What a fit depends on: its settings over the model's page, the data, the seed."""
        objectives = self.behaviours.objectives | self.behaviours.distributions
        used = _check_settings(self.row.model, settings, objectives)
        return self.made_by | {"settings": settings, "config": used, "seed": seed}

    def _score_of(self, means: Settings, objective: str) -> float:
        """What chooses the settings of an objective; it is not chosen where it was not judged."""
        metric = metric_name(objective if self.row.choose == "each" else "mean", METRIC)
        if self.row.choose == "each" and objective in self.said:
            metric = metric_name(objective, SHARE_METRIC)
        return float(direction(metric) * means.get(metric, -direction(metric) * math.inf))

    def _best(self, scores: list[Settings], objective: str) -> Settings:
        best = max(range(len(scores)), key=lambda n: self._score_of(scores[n], objective))
        return self.trials[best]

    def _trial(self, trial: Settings) -> Settings:
        """The means on valid with these settings."""
        file = self.folder / "search" / f"{digest(trial)}.json"
        wanted = self._made_by(trial, self.seeds[0])
        found = read_finished(file)
        if found | wanted != found:
            fit = self._fit(trial, self.seeds[0])
            found = wanted | {"valid": fit.valid.means(), "seconds": fit.seconds}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json_text(found).encode())
            self._keep(trial, fit)
            _log.info("%s, %s: %s", self.row.name, trial, found["valid"])
        return dict(found["valid"])

    def _keep(self, trial: Settings, fit: ObjectiveFit) -> None:
        """Only fits that are the best of some objective so far."""
        self._fits[digest(trial)] = fit
        best = {
            max(self._fits, key=lambda key: self._score_of(self._fits[key].valid.means(), name))
            for name in self.judged
        }
        self._fits = {key: self._fits[key] for key in best}

    def _fit(self, settings: Settings, seed: int) -> ObjectiveFit:
        fit = fit_objectives if _is_multitask(self.row.model) else fit_behaviour
        return fit(self.row.model, self.behaviours, seed, settings, self.device)

    def _test(self, settings: Settings, seed: int) -> str:
        """The folder of a run, below the page's."""
        folder = self.folder / f"seed{seed}-{digest(settings)}"
        name = folder.relative_to(self.root).as_posix()
        wanted = {"group": _group(self.row), **self._made_by(settings, seed)}
        found = read_finished(folder / "result.json")
        whole = (folder / "tasks.npz").is_file()
        if whole and found | wanted == found:
            return name
        kept = self._fits.get(digest(settings)) if seed == self.seeds[0] else None
        fit = kept or self._fit(settings, seed)
        judged = fit.test(self.behaviours)
        result = wanted | {
            "row": self.row.name,
            "dataset": self.behaviours.description["dataset"],
            "protocol": self.behaviours.description["protocol"],
            "metrics": judged.means(),
            "valid_metrics": fit.valid.means(),
            "seconds": fit.seconds,
            "epochs": fit.epochs,
            "history": fit.history,
            "versions": versions(),
            "commit": commit(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)  # no old result beside new tasks
        write_atomically(folder / "tasks.npz", npz_bytes(judged.to_npz()))
        write_atomically(folder / "result.json", json_text(result).encode())
        return name
