"""A benchmark file: what is judged, which rows stand in the table, and what each row may try."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from recbole_meta.choice import check_feedback, check_settings, choose_model, is_closed_form
from recbole_meta.data.prepare import read_protocol
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import GROUPS, benchmark_page, check_names
from recbole_meta.settings import Count, Size, read_settings
from recbole_meta.study import check_optuna

Settings = dict[str, Any]
R = TypeVar("R", bound="Row")


@dataclass(frozen=True)
class _Page:
    """What a benchmark file has at its top."""

    dataset: str
    seed: Count
    trials: Size
    settings: tuple[dict[str, Any], ...]
    rows: tuple[dict[str, Any], ...]
    trained: dict[str, Any]


@dataclass(frozen=True)
class _TrainedPage:
    """What stands under ``trained``."""

    searches: tuple[dict[str, Any], ...]
    shots: tuple[Count, ...]
    seeds: tuple[Count, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Judging:
    """One entry of ``settings``: a data set, a protocol with changes, and its splits."""

    name: str
    dataset: str  # the page's, where the entry names none
    protocol: str
    changed: dict[str, Any]
    splits: tuple[Count, ...]
    groups: tuple[str, ...]  # whose rows of ours are judged
    trained_from: str | None  # whose runs of rows that train are read; itself: they run here


@dataclass(frozen=True)
class Row:
    """A row of the table: a model, what is fixed, and the grid that is searched.

    'a,b': [[1, 2], [3, 4]] sets two settings together; 'a': {low: 1e-4, high: .1, log: true} is a
    range, for a sampler that learns.
    """

    name: str
    model: str
    fixed: dict[str, Any]
    grid: dict[str, Any]
    seeds: tuple[Count, ...]  # that it is judged with, if it trains: the mean of each user

    def trials(self, number: int) -> list[Settings]:
        """At most ``number`` different settings, drawn once and for all without replacement."""
        names = list(self.grid)
        points = list(itertools.product(*self.grid.values()))
        if len(points) > number:
            chosen = np.random.default_rng(0).choice(len(points), number, replace=False)
            points = [points[i] for i in sorted(chosen)]
        return [self.at(dict(zip(names, point, strict=True))) for point in points]

    def at(self, point: Mapping[str, Any]) -> Settings:
        """The settings at a point of the grid."""
        settings = dict(self.fixed)
        for name, value in point.items():
            together = name.split(",")
            settings |= dict(zip(together, value if len(together) > 1 else [value], strict=True))
        return settings

    def has_more_than(self, number: int) -> bool:
        """Whether the grid has more points than this; a range has."""
        options = list(self.grid.values())
        return bool(self.ranges()) or math.prod(map(len, options)) > number

    def ranges(self) -> list[str]:
        """The settings that are searched between two ends."""
        return [name for name, options in self.grid.items() if isinstance(options, dict)]

    def ends(self) -> "Row":
        """The row with the ends of its ranges in their place."""
        lists = {
            name: [options["low"], options["high"]] if isinstance(options, dict) else options
            for name, options in self.grid.items()
        }
        return replace(self, grid=lists)


@dataclass(frozen=True)
class Search:
    """Where rows that train are searched; an entry is judged with the search of its data set and
    order.
    """

    setting: str
    split: Count
    shots: Count
    trials: Size
    sampler: Literal["drawn", "tpe"]  # points of the grid without replacement; by Optuna

    def learns(self, row: Row) -> bool:
        """Whether the row's trials depend on those before; not where the grid is tried whole."""
        return self.sampler == "tpe" and row.has_more_than(self.trials)


@dataclass(frozen=True)
class Range:
    """A range of a grid."""

    low: int | float
    high: int | float
    log: bool


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file."""

    name: str
    seed: int
    trials: int
    settings: tuple[Judging, ...]
    rows: tuple[Row, ...]
    searches: tuple[Search, ...]
    trained_shots: tuple[int, ...]
    trained_rows: tuple[Row, ...]

    def judging(self, name: str) -> Judging:
        """The entry of this name."""
        return next(judging for judging in self.settings if judging.name == name)

    def search_of(self, judging: Judging) -> Search:
        """The search whose rows have this entry's data set and order."""
        wanted = judging.dataset, _order(judging)
        for search in self.searches:
            other = self.judging(search.setting)
            if (other.dataset, _order(other)) == wanted:
                return search
        raise SettingError(
            f"Benchmark '{self.name}' has no search for {wanted[0]}, order '{wanted[1]}'."
        )


def _order(judging: Judging) -> str:
    return read_protocol(judging.protocol, **judging.changed).order


def read_benchmark(name: str) -> Benchmark:
    """A file of ``properties/benchmark`` or a path, checked: models, settings and grids exist."""
    name, values = benchmark_page(name)
    where = f"Benchmark '{name}'"
    page = read_settings(_Page, values, where)
    filled = {"seeds": [page.seed], **page.trained}
    theirs = read_settings(_TrainedPage, filled, f"{where}, trained")
    benchmark = Benchmark(
        name, page.seed, page.trials,
        tuple(_judging(entry, page.dataset, where) for entry in page.settings),
        tuple(read_row(entry, f"{where}, rows", seeds=(page.seed,)) for entry in page.rows),
        tuple(_search(entry, f"{where}, searches") for entry in theirs.searches),
        theirs.shots,
        tuple(read_row(e, f"{where}, trained rows", seeds=theirs.seeds) for e in theirs.rows),
    )  # fmt: skip
    _check(benchmark)
    return benchmark


def _judging(entry: Mapping[str, Any], dataset: str, where: str) -> Judging:
    filled = {"changed": {}, "groups": list(GROUPS), "trained_from": entry.get("name")}
    filled |= {"dataset": dataset, **entry}
    return read_settings(Judging, filled, f"{where}, settings")


def _search(entry: Mapping[str, Any], where: str) -> Search:
    return read_settings(Search, {"sampler": "drawn", **entry}, where)


def read_row(
    entry: Mapping[str, Any], where: str, kind: type[R] = Row, *, seeds: tuple[int, ...]
) -> R:
    """A row whose grid can be searched."""
    row = read_settings(kind, {"fixed": {}, "grid": {}, "seeds": seeds, **entry}, where)
    if len(set(row.seeds)) < len(row.seeds):
        raise SettingError(
            f"{where}: 'seeds' of '{row.name}' must be different and at least one, found "
            f"{list(row.seeds)}."
        )
    grid = {
        name: _options(name, options, f"{where}: '{name}' of '{row.name}'")
        for name, options in row.grid.items()
    }
    return replace(row, grid=grid)


def _options(name: str, options: Any, where: str) -> Any:
    """A list of values, or the ends of a range."""
    together = len(name.split(","))
    if isinstance(options, dict) and together == 1:
        return _range(options, where)
    if not isinstance(options, list) or not options:
        wanted = "a list of values to try"
    elif together > 1 and not all(isinstance(o, list) and len(o) == together for o in options):
        wanted = f"a list of lists of {together} values"
    else:
        return options
    raise SettingError(f"{where} must be {wanted}, found {options}.")


def _range(options: dict[str, Any], where: str) -> dict[str, Any]:
    found = read_settings(Range, {"log": False, **options}, where)
    if type(found.low) is not type(found.high):
        found = replace(found, low=float(found.low), high=float(found.high))
    if found.low >= found.high or (found.log and found.low <= 0):
        least = "0 < low < high" if found.log else "low < high"
        raise SettingError(f"{where} must have {least}, found {options}.")
    return asdict(found)


def _check(b: Benchmark) -> None:
    """Refuse what would stop a unit in the middle of the work: names, settings, shots."""
    where = f"Benchmark '{b.name}'"
    if b.seed >= 2**32:
        raise SettingError(f"{where}: 'seed' must be below {2**32}, found {b.seed}.")
    for row in (*b.rows, *b.trained_rows):
        _check_seeds(row, f"{where}: 'seeds' of '{row.name}'")
    if not b.settings:
        raise SettingError(f"{where}: 'settings' is empty, so nothing is judged.")
    entries = [judging.name for judging in b.settings]
    for names in (entries, [row.name for row in (*b.rows, *b.trained_rows)]):
        check_names(names, where)
    sources = [j.trained_from for j in b.settings if j.trained_from is not None]
    for name in (*sources, *(search.setting for search in b.searches)):
        if name not in entries:
            raise SettingError(f"{where} has no entry '{name}'. {nearest(name, entries)}")
    for judging in b.settings:
        if judging.trained_from is not None:
            source = b.judging(judging.trained_from).dataset
            if source != judging.dataset:
                raise SettingError(
                    f"{where}: '{judging.name}' is of {judging.dataset}, and 'trained_from' names "
                    f"'{judging.trained_from}', which is of {source}."
                )
    drawn = [(row, b.trials) for row in b.rows]
    for row, search in itertools.product(b.trained_rows, b.searches):
        if search.learns(row):
            check_optuna()
            _check_options(row)
        else:
            drawn.append((row, search.trials))
    for row, number in drawn:
        if row.ranges():
            raise SettingError(
                f"{where}: '{row.ranges()[0]}' of '{row.name}' is a range, which only a search of "
                "'sampler: tpe' takes: list the values to try."
            )
        for trial in row.trials(number):
            check_settings(choose_model(row.model), trial)
    for row in b.rows:
        choice = choose_model(row.model)
        if not all(is_closed_form(choice, trial) for trial in row.trials(b.trials)):
            raise SettingError(f"{where}: '{row.name}' trains, so it belongs under 'trained'.")
    for search in b.searches:
        judging = b.judging(search.setting)
        _check_shots(where, judging, (search.shots,))
        read_protocol(judging.protocol, **(judging.changed | {"split": search.split}))
    for judging in b.settings:
        _check_entry(b, judging)


def _check_options(row: Row) -> None:
    """Every option of a grid whose points are not known beforehand, and the ends of its ranges."""
    grid = row.ends().grid
    first = {name: options[0] for name, options in grid.items()}
    for name, options in grid.items():
        for option in options:
            check_settings(choose_model(row.model), row.at(first | {name: option}))


def _check_seeds(row: Row, where: str) -> None:
    if not row.seeds:
        raise SettingError(f"{where} must be different and at least one, found {list(row.seeds)}.")
    if max(row.seeds) >= 2**32:
        raise SettingError(f"{where} must be below {2**32}, found {max(row.seeds)}.")
    choice, epochs = choose_model(row.model), {k: v for k, v in row.fixed.items() if k == "epochs"}
    if len(row.seeds) > 1 and is_closed_form(choice, epochs):
        raise SettingError(
            f"{where} must be one, found {list(row.seeds)}: {row.model} is a closed form."
        )


def _check_entry(b: Benchmark, judging: Judging) -> None:
    where = f"Benchmark '{b.name}'"
    if not judging.splits:
        raise SettingError(f"{where}: '{judging.name}' has no splits.")
    for group in judging.groups:
        if group not in GROUPS:
            raise SettingError(f"{where}: unknown group '{group}'. {nearest(group, GROUPS)}")
    rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
    if judging.trained_from == judging.name and b.trained_rows:
        rows += b.trained_rows
        b.search_of(judging)
        if not all(choose_model(row.model).ours for row in b.trained_rows):
            _check_shots(where, judging, b.trained_shots)
    for split in judging.splits:
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        for row in rows:
            check_feedback(choose_model(row.model), protocol.feedback, protocol.task)


def _check_shots(where: str, judging: Judging, shots: tuple[int, ...]) -> None:
    known = read_protocol(judging.protocol, **judging.changed).support_sizes
    for k in shots:
        if k not in known:
            raise SettingError(
                f"{where}: '{judging.name}' is not judged at {k} shots, only at "
                f"{', '.join(map(str, known))}."
            )
