"""A benchmark file: what is judged, which rows stand in the table, and what each row may try."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from recbole_meta.choice import check_feedback, check_settings, choose_model, is_closed_form
from recbole_meta.data.prepare import read_protocol
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import GROUPS, benchmark_page
from recbole_meta.settings import Count, Size, read_settings

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
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Judging:
    """One entry of ``settings``: a protocol with changes, and its splits."""

    name: str
    protocol: str
    changed: dict[str, Any]
    splits: tuple[Count, ...]
    groups: tuple[str, ...]  # whose rows of ours are judged
    trained_from: str | None  # whose runs of rows that train are read; itself: they run here


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
    split: Count
    shots: Count
    trials: Size


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
    trained_shots: tuple[int, ...]
    trained_rows: tuple[Row, ...]

    def judging(self, name: str) -> Judging:
        """The entry of this name."""
        return next(judging for judging in self.settings if judging.name == name)

    def search_of(self, judging: Judging) -> Search:
        """The search whose rows have this entry's order."""
        order = _order(judging)
        for search in self.searches:
            if _order(self.judging(search.setting)) == order:
                return search
        raise SettingError(f"Benchmark '{self.name}' has no search for order '{order}'.")


def _order(judging: Judging) -> str:
    return read_protocol(judging.protocol, **judging.changed).order


def read_benchmark(name: str) -> Benchmark:
    """A file of ``properties/benchmark`` or a path, checked: models, settings and grids exist."""
    name, values = benchmark_page(name)
    where = f"Benchmark '{name}'"
    page = read_settings(_Page, values, where)
    theirs = read_settings(_TrainedPage, page.trained, f"{where}, trained")
    benchmark = Benchmark(
        name, page.dataset, page.seed, page.trials,
        tuple(_judging(entry, where) for entry in page.settings),
        tuple(read_row(entry, f"{where}, rows") for entry in page.rows),
        tuple(read_settings(Search, s, f"{where}, searches") for s in theirs.searches),
        theirs.shots,
        tuple(read_row(entry, f"{where}, trained rows") for entry in theirs.rows),
    )  # fmt: skip
    _check(benchmark)
    return benchmark


def _judging(entry: Mapping[str, Any], where: str) -> Judging:
    filled = {"changed": {}, "groups": list(GROUPS), "trained_from": entry.get("name"), **entry}
    return read_settings(Judging, filled, f"{where}, settings")


def read_row(entry: Mapping[str, Any], where: str, kind: type[R] = Row) -> R:
    """A row whose grid can be searched."""
    row = read_settings(kind, {"fixed": {}, "grid": {}, **entry}, where)
    for name, options in row.grid.items():
        together = len(name.split(","))
        if not isinstance(options, list) or not options:
            wanted = "a list of values to try"
        elif together > 1 and not all(isinstance(o, list) and len(o) == together for o in options):
            wanted = f"a list of lists of {together} values"
        else:
            continue
        raise SettingError(f"{where}: '{name}' of '{row.name}' must be {wanted}, found {options}.")
    return row


def _check(b: Benchmark) -> None:
    """Refuse what would stop a unit in the middle of the work: names, settings, shots."""
    where = f"Benchmark '{b.name}'"
    if b.seed >= 2**32:
        raise SettingError(f"{where}: 'seed' must be below {2**32}, found {b.seed}.")
    if not b.settings:
        raise SettingError(f"{where}: 'settings' is empty, so nothing is judged.")
    entries = [judging.name for judging in b.settings]
    for names in (entries, [row.name for row in (*b.rows, *b.trained_rows)]):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise SettingError(f"{where} has '{twice[0]}' twice.")
    sources = [j.trained_from for j in b.settings if j.trained_from is not None]
    for name in (*sources, *(search.setting for search in b.searches)):
        if name not in entries:
            raise SettingError(f"{where} has no entry '{name}'. {nearest(name, entries)}")
    searched = [(row, search.trials) for row in b.trained_rows for search in b.searches]
    for row, number in (*((row, b.trials) for row in b.rows), *searched):
        for trial in row.trials(number):
            check_settings(choose_model(row.model), trial)
    for row in b.rows:
        if not is_closed_form(choose_model(row.model)):
            raise SettingError(f"{where}: '{row.name}' trains, so it belongs under 'trained'.")
    for search in b.searches:
        judging = b.judging(search.setting)
        _check_shots(where, judging, (search.shots,))
        read_protocol(judging.protocol, **(judging.changed | {"split": search.split}))
    for judging in b.settings:
        _check_entry(b, judging)


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
