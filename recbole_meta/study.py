"""Trials that learn from those done: TPE of Optuna, with a journal that processes share.

The files of the trials are what came out; the journal says which points are being tried. It is made
whole from the files before a point is asked for, so neither a kill nor a lost journal costs a
trial. A point belongs to a numbered trial: who runs that trial again gets the same point.

The sampler of each trial is seeded by its number. One process therefore gives the same trials each
time, killed or not. With several, a point depends on which trials were done when it was asked for:
the points differ from run to run, their number does not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from recbole_meta.errors import SettingError

Point = dict[str, Any]  # name of the grid -> what is tried
JOURNAL = ".journal"  # ending of its file, beside those of the trials
_NAME = "trials"
_AT_RANDOM = 5  # trials before the first that learns
_NUMBER = "number"  # of a trial of ours, among Optuna's notes


def check_optuna() -> None:
    """An error that says what to install, where Optuna is not."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise SettingError(
            "'sampler: tpe' needs Optuna: pip install -c constraints.txt -e \".[search]\"."
        ) from error


class Study:
    """The points of a search over a grid of lists and ranges."""

    def __init__(self, journal: Path, grid: Mapping[str, Any], bigger: bool, seed: int) -> None:
        self.journal, self.grid, self.seed = journal, grid, seed
        self.direction: Literal["maximize", "minimize"] = "maximize" if bigger else "minimize"

    def ask(self, number: int, done: Mapping[int, tuple[Point, float]]) -> Point:
        """The point of a trial: the one it has, else a new one that knows those ``done``."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.journal}.lock"):
            _cut_half_line(self.journal)
            study = self._open(number)
            self._tell(study, done)
            known = {trial.user_attrs[_NUMBER]: trial for trial in study.get_trials()
                     if _NUMBER in trial.user_attrs}  # fmt: skip
            if number in known:
                return self._point(known[number].params)
            trial = study.ask(self._space())
            trial.set_user_attr(_NUMBER, number)
            return self._point(trial.params)

    def _open(self, number: int) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=(self.seed + number) % 2**32,
            n_startup_trials=_AT_RANDOM,
            constant_liar=True,  # keeps off what others are trying
        )
        held: Any = _Held()
        storage = JournalStorage(JournalFileBackend(str(self.journal), lock_obj=held))
        return optuna.create_study(
            storage=storage,
            sampler=sampler,
            study_name=_NAME,
            direction=self.direction,
            load_if_exists=True,
        )

    def _tell(self, study: Any, done: Mapping[int, tuple[Point, float]]) -> None:
        """Bring the journal up to the files: values, and trials that it lacks."""
        from optuna.trial import TrialState, create_trial

        missing = dict(done)
        for trial in study.get_trials():
            number = trial.user_attrs.get(_NUMBER)
            found = missing.pop(number, None)
            if trial.state != TrialState.RUNNING:
                continue
            if number is None:  # killed before it had its number: nobody runs it
                study.tell(trial.number, state=TrialState.FAIL)
            elif found is not None:
                study.tell(trial.number, found[1])
        for number, (point, value) in sorted(missing.items()):
            params = {name: self._choice(name, point[name]) for name in self.grid}
            notes = {_NUMBER: number}
            study.add_trial(
                create_trial(
                    params=params, distributions=self._space(), value=value, user_attrs=notes
                )
            )

    def _space(self) -> dict[str, Any]:
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        space: dict[str, Any] = {}
        for name, options in self.grid.items():
            if isinstance(options, list):
                space[name] = CategoricalDistribution([json.dumps(option) for option in options])
                continue
            low, high = options["low"], options["high"]
            kind = FloatDistribution if isinstance(low, float) else IntDistribution
            space[name] = kind(low, high, log=options["log"])
        return space

    def _choice(self, name: str, value: Any) -> Any:
        """As Optuna holds it: an option of a list is text, since it may be a list itself."""
        return json.dumps(value) if isinstance(self.grid[name], list) else value

    def _point(self, params: Mapping[str, Any]) -> Point:
        return {
            name: json.loads(params[name]) if isinstance(options, list) else params[name]
            for name, options in self.grid.items()
        }


class _Held:
    """The lock of a journal whose users hold a lock already, which a kill lets go."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _cut_half_line(journal: Path) -> None:
    """What a killed process wrote last may have no end; Optuna would write on in that line."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(journal, "r+b") as file:
            file.truncate(whole)
