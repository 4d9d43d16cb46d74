"""The search of a row that trains: its trials on valid, and the best of them.

Trials are drawn from the grid once and for all, or each is asked of a `Study` when it begins.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.benchmark import Judging, Row, Search, Settings
from recbole_meta.choice import choose_model
from recbole_meta.data.folders import sha256
from recbole_meta.errors import Diverged
from recbole_meta.evaluation.entries import SEARCH, slug
from recbole_meta.fitting import fit_learner
from recbole_meta.outcome import Metric, valid_metric
from recbole_meta.recbole_fitting import judge_recbole
from recbole_meta.stage import load_stage
from recbole_meta.study import JOURNAL, Point, Study
from recbole_meta.unit import Site


@dataclass(frozen=True)
class Trial:
    """Settings that are tried, and the file of what came out."""

    file: Path
    settings: Settings | None  # None: the study says when the trial begins
    number: int

    def made_by(self) -> dict[str, Any]:
        """What its file says if it is this trial's."""
        return {"number": self.number} if self.settings is None else {"settings": self.settings}


class Searches:
    """The trials of the rows that train."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def trials(self, row: Row, search: Search) -> list[Trial]:
        """All trials of a row; none without a choice."""
        folder = self.site.folder / SEARCH / search.setting / slug(row.name)
        if search.learns(row):
            name = self._study_name(row, search)
            return [Trial(folder / f"{name}-{i}.json", None, i) for i in range(search.trials)]
        drawn = row.trials(search.trials)
        if len(drawn) == 1:
            return []
        return [Trial(folder / f"{digest(s)}.json", s, i) for i, s in enumerate(drawn)]

    def _study_name(self, row: Row, search: Search) -> str:
        """One study per space, model, data and seed; more trials go on with it."""
        space = {"fixed": row.fixed, "grid": row.grid}
        return f"{search.sampler}-{digest([space, self._about(row, search)])}"

    def work(self, row: Row, search: Search, trial: Trial) -> dict[str, Any]:
        """A trial on valid: RecBole's model at the search's k, a learner by its mean over k."""
        benchmark = self.site.benchmark
        prepared = self.site.prepared(benchmark.judging(search.setting), search.split)
        choice, seed, metric = choose_model(row.model), benchmark.seed, valid_metric(prepared)
        settings, told = trial.settings, {}
        if settings is None:
            point = self._ask(row, search, trial, metric)
            settings, told = row.at(point), {"number": trial.number, "point": point}
        valid: dict[str, float | None]
        try:
            if choice.ours:
                stage = load_stage(choice, prepared, "valid", prepared.shots[0], seed, settings)
                trainer = fit_learner(choice, stage)
                score = trainer.best_score * (1 if metric.bigger else -1)
                valid, epochs = {metric.name: score}, trainer.best_epoch
            else:
                outcome = judge_recbole(choice, prepared, search.shots, seed, settings, test=False)
                valid, epochs = outcome.valid.means(), outcome.epochs
        except Diverged as error:  # what the settings are worth, and no failure of the row
            valid, epochs, told = {metric.name: None}, 0, told | {"diverged": str(error)}
        return {
            "settings": settings,
            "valid": valid,
            "epochs": epochs,
            "about": self._about(row, search),
            **told,
        }

    def _ask(self, row: Row, search: Search, trial: Trial, metric: Metric) -> Point:
        """What the study says that the trial should try, told of the trials that are done."""
        journal = trial.file.with_name(self._study_name(row, search) + JOURNAL)
        study = Study(journal, row.grid, metric.bigger, self.site.benchmark.seed)
        done = {}
        for other in self.trials(row, search):
            content = self._content(row, search, other)
            if content and "diverged" not in content:
                done[other.number] = (content["point"], content["valid"][metric.name])
        return study.ask(trial.number, done)

    def agrees(self, row: Row, search: Search, content: dict[str, Any]) -> bool:
        """Whether a trial was of today's model, shots, seed and data."""
        about = self._about(row, search)
        return bool(content.get("about", about) == about)

    def _about(self, row: Row, search: Search) -> dict[str, Any]:
        """What a search depends on beside its trial."""
        benchmark = self.site.benchmark
        sha = self.site.sha256(benchmark.judging(search.setting), search.split)
        seed = benchmark.seed
        return {"model": row.model, "shots": search.shots, "seed": seed, "sha256": sha}

    def best(self, row: Row, judging: Judging) -> Settings | None:
        """The best settings on valid of the entry's search; None while trials are missing. Where
        all diverged, the first: they diverge again, and the row fails.
        """
        search = self.site.benchmark.search_of(judging)
        trials = self.trials(row, search)
        if not trials:
            return row.trials(1)[0]
        found = [self._content(row, search, trial) for trial in trials]
        if None in found:
            return None
        setting = self.site.benchmark.judging(search.setting)
        metric = valid_metric(self.site.prepared(setting, search.split))
        sign = 1 if metric.bigger else -1
        scored = [trial for trial in found if "diverged" not in trial]
        best = max(scored, key=lambda trial: sign * trial["valid"][metric.name], default=found[0])
        return dict(best["settings"])

    def _content(self, row: Row, search: Search, trial: Trial) -> dict[str, Any] | None:
        """What a trial wrote; None where it must be made (again)."""
        try:
            content: dict[str, Any] = json.loads(trial.file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return content if self.agrees(row, search, content) else None


def digest(content: Any) -> str:
    """Eight digits that stand for settings in a file's name."""
    return sha256(json.dumps(content, sort_keys=True).encode())[:8]
