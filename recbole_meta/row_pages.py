"""A table of multi-task models of rows: search on valid, test once per seed, then the table.

A page of ``properties/rows`` names the data set, how its rows are split, which rows stand in the
table, what each may try, and the metric that chooses on valid. Every trial and every run is a file:
what has its file, made by the settings and data of today, is not done again. The unit is the user,
the mean over seeds; every row is compared with the floor, RecBole's model and the single-task
model, each the best of its group on valid (`row_table`).
"""

import json
import logging
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from recbole_meta.benchmark import Row, Settings
from recbole_meta.choice import choose_model, is_closed_form
from recbole_meta.compat import recbole_model_names
from recbole_meta.data.objectives import read_objectives
from recbole_meta.data.row_splits import RowSplits, open_rows, prepare_rows
from recbole_meta.data.source import find_dataset
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import check_names, slug
from recbole_meta.evaluation.rows import check_row_metric, direction
from recbole_meta.model import row_models
from recbole_meta.outcome import thread_limit
from recbole_meta.reading import read_row
from recbole_meta.row_fitting import RowFit, check_row_settings, fit_rows, row_model
from recbole_meta.row_recbole import OBJECTIVE, check_ranker_settings, fit_ranker_of_rows
from recbole_meta.row_table import Finished, row_table
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


@dataclass(frozen=True)
class Page:
    """A page of ``properties/rows``."""

    dataset: str
    protocol: str
    split_seed: Count
    seeds: tuple[Count, ...]  # of rows that train; the first one searches
    trials: Size
    most_users: Size | None  # who rank on valid; ~: all
    test_users: Size | None  # who rank on test; ~: all
    choose: str  # the metric that chooses settings on valid
    shown: tuple[str, ...] | None  # metrics of the table; ~: those of the objectives
    against: str | None  # a row that the others are compared with, too
    rows: tuple[dict[str, Any], ...]


def read_rows_page(name: str) -> tuple[str, Page]:
    """The name and the content of a page: of ``properties/rows``, or a path."""
    name, values = named_page("rows", name)
    return name, read_settings(Page, values, f"Page '{name}'")


def run_rows(
    name: str,
    data_path: str = "dataset",
    prepared_path: str = "dataset/prepared",
    runs: str | Path = "runs",
    results: str | Path = "results",
    device: str = "cpu",
    processes: int = 1,
) -> list[Path]:
    """Run what is missing of a page, a row to a process of one thread, and write its table."""
    if processes < 1:
        raise SettingError(f"'processes' must be at least 1, found {processes}.")
    name, page = read_rows_page(name)
    page = _with_shown(page, data_path)
    folder = open_rows(
        prepare_rows(page.dataset, page.protocol, data_path, prepared_path, page.split_seed)
    )
    rows = _checked(name, page, folder)
    check_writable(Path(runs))
    root = Path(runs) / name
    work = [(page, row, folder.path, root, device) for row in rows]
    if processes == 1:
        finished = [_run_row(*each) for each in work]
    else:
        finished = _run_beside(work, processes)
    return row_table(name, page, finished, Path(results))


def _run_beside(work: list[tuple[Any, ...]], processes: int) -> list[Finished]:
    """As many rows at a time, in their order; after one that fails nothing else begins."""
    left = list(enumerate(work))[::-1]
    running: dict[Future[Finished], int] = {}
    found: dict[int, Finished] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        while left or running:
            while left and len(running) < processes:
                place, each = left.pop()
                running[pool.submit(_run_row, *each)] = place
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                found[running.pop(future)] = future.result()
    return [found[place] for place in range(len(work))]


def _run_row(page: Page, row: Row, place: Path, root: Path, device: str) -> Finished:
    with thread_limit(1):
        return _RowRun(page, row, open_rows(place), root, device).run()


def _with_shown(page: Page, data_path: str) -> Page:
    """With the metrics that the data set's objectives name, where the page names none."""
    if page.shown is not None:
        return page
    objectives = read_objectives(page.dataset, find_dataset(page.dataset, data_path))
    shown = tuple(f"{name}/{m}" for name, one in objectives.items() for m in one.metrics)
    if not shown:
        raise SettingError(
            f"The page has no 'shown' and no objective of '{page.dataset}' has 'metrics': name one."
        )
    return replace(page, shown=shown)


def _checked(name: str, page: Page, folder: RowSplits) -> list[Row]:
    """Refused where a row would stop in the middle of the work."""
    where = f"Page '{name}', rows"
    for metric in (page.choose, *page.shown):
        check_row_metric(metric, folder.objectives, f"Page '{name}': metric")
    rows = [read_row(entry, where, Row, seeds=page.seeds) for entry in page.rows]
    names = [row.name for row in rows]
    check_names(names, where)
    if not rows or not page.seeds:
        raise SettingError(f"{where}: there are no rows or no seeds.")
    if page.against is not None and page.against not in names:
        raise SettingError(
            f"{where}: 'against' is '{page.against}'. {nearest(page.against, names)}"
        )
    for row in rows:
        if row.ranges():
            raise SettingError(f"{where}: '{row.ranges()[0]}' is a range: name the values to try.")
        for trial in row.trials(page.trials):
            _settings(row.model, trial, folder)
    return rows


def _of_rows(model: str) -> bool:
    """Whether it is a model of rows of ours; else it is one of RecBole's that ranks."""
    if model in row_models():
        return True
    known = [*row_models(), *recbole_model_names()]
    if model.removeprefix("recbole.") not in known:
        raise SettingError(f"Unknown model of rows '{model}'. {nearest(model, known)}")
    return False


def _settings(model: str, given: Settings, folder: RowSplits) -> Settings:
    """All settings of a model, refused where they cannot be."""
    check = check_row_settings if _of_rows(model) else check_ranker_settings
    return check(model, given, folder)


def _trains(model: str, trial: Settings) -> bool:
    """Whether seeds matter: a closed form has one."""
    if not _of_rows(model):
        return not is_closed_form(choose_model(model))
    return bool((load_properties("model", model) | trial)["epochs"])


class _RowRun:
    """The work of one row: trials on valid by the first seed, then the chosen settings on test."""

    def __init__(self, page: Page, row: Row, folder: RowSplits, root: Path, device: str) -> None:
        self.page, self.row, self.folder, self.device = page, row, folder, device
        self.root = root / slug(row.name)
        self.trials = row.trials(page.trials)
        self.seeds = page.seeds
        self.kept: tuple[Settings, RowFit] | None = None  # of the best trial that was made just now

    def run(self) -> Finished:
        """What the table needs of the row."""
        best = self.trials[0]
        if len(self.trials) > 1:
            best = self._search()
        seeds = self.seeds if _trains(self.row.model, best) else self.seeds[:1]
        places = [self._test(best, seed) for seed in seeds]
        group = row_model(self.row.model).group if _of_rows(self.row.model) else "recbole"
        return Finished(self.row.name, group, len(self.trials), best, places)

    def _search(self) -> Settings:
        """The best trial; its fit is kept for its test, of the others none."""
        best, top = self.trials[0], -np.inf
        for trial in self.trials:
            kept = self.kept
            if (score := self._score(trial)) > top:
                best, top = trial, score
            else:
                self.kept = kept
        return best

    def _score(self, trial: Settings) -> float:
        """On valid, bigger is better: by the page, or by the one objective that the row ranks."""
        means, metric = self._trial(trial), self.page.choose
        if metric not in means:
            metric = f"{trial[OBJECTIVE]}/ndcg@10"
        if means[metric] is None or np.isnan(means[metric]):  # null in the file
            raise SettingError(f"'choose': '{metric}' has no value on valid.")
        return direction(metric) * means[metric]

    def _wanted(self, settings: Settings, seed: int) -> dict[str, Any]:
        """What a fit depends on."""
        used = _settings(self.row.model, settings, self.folder)
        return {
            "sha256": self.folder.sha256, "model": self.row.model, "seed": seed,
            "config": json.loads(json.dumps(used)), "most_users": self.page.most_users,
            "test_users": self.page.test_users,
        }  # fmt: skip

    def _place(self, settings: Settings, seed: int) -> Path:
        """The folder of a run."""
        return self.root / f"seed{seed}-{digest(settings)}"

    def _fit(self, settings: Settings, seed: int) -> RowFit:
        most = self.page.most_users
        fit = fit_rows if _of_rows(self.row.model) else fit_ranker_of_rows
        return fit(self.row.model, self.folder, seed, settings, self.device, most)

    def _trial(self, settings: Settings) -> dict[str, float]:
        """The means on valid with these settings."""
        file = self.root / "search" / f"{digest(settings)}.json"
        wanted = self._wanted(settings, self.seeds[0])
        found = read_finished(file)
        tested = read_finished(self._place(settings, self.seeds[0]) / "result.json")
        if found | wanted != found:
            if tested | wanted == tested:  # its test was done while it was the only trial
                valid, seconds = tested["valid_metrics"], tested["seconds"]
            else:
                fit = self._fit(settings, self.seeds[0])
                self.kept = settings, fit
                valid, seconds = fit.valid.means(), fit.seconds
            found = wanted | {"valid": valid, "seconds": seconds}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json_text(found).encode())
            _log.info("%s, %s: %s", self.row.name, settings, found["valid"].get(self.page.choose))
        return dict(found["valid"])

    def _test(self, settings: Settings, seed: int) -> Path:
        """The folder of a run, made where it is not there."""
        place = self._place(settings, seed)
        wanted = self._wanted(settings, seed)
        found = read_finished(place / "result.json")
        if found | wanted == found and (place / "tasks.npz").is_file():
            return place
        mine = self.kept is not None and self.kept[0] == settings and seed == self.seeds[0]
        fit = self.kept[1] if mine and self.kept else self._fit(settings, seed)
        judged = fit.test(self.folder, self.page.test_users)
        result = wanted | {
            "metrics": judged.means(), "valid_metrics": fit.valid.means(), "seconds": fit.seconds,
            "epochs": fit.epochs, "history": fit.history,
            "parameters": sum(each.numel() for each in fit.model.parameters()),
            "versions": versions(), "commit": commit(),
        }  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").unlink(missing_ok=True)  # no old result beside new tasks
        write_atomically(place / "tasks.npz", npz_bytes(judged.to_npz()))
        write_atomically(place / "result.json", json_text(result).encode())
        _log.info("%s, seed %s: %s", self.row.name, seed, result["metrics"].get(self.page.choose))
        return place
