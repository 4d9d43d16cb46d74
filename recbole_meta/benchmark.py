"""A benchmark file: what is judged, which rows stand in the table, and what each row may try."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_meta.choice import check_feedback, check_settings, choose_model
from recbole_meta.data.prepare import read_protocol
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import GROUPS, benchmark_page
from recbole_meta.settings import read_settings

Settings = dict[str, Any]


@dataclass(frozen=True)
class Judging:
    """One entry of ``settings``: a protocol with changes, and its splits."""

    name: str
    protocol: str
    changed: dict[str, Any]
    splits: tuple[int, ...]
    groups: tuple[str, ...]  # whose rows of ours are judged
    recbole_from: str | None  # whose runs of RecBole's models are read; itself: they run here


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
    _check(benchmark)
    return benchmark


def _check(b: Benchmark) -> None:
    """Refuse what would stop a unit in the middle of the work: names, settings, shots."""
    where = f"Benchmark '{b.name}'"
    entries = [judging.name for judging in b.settings]
    for names in (entries, [row.name for row in (*b.rows, *b.recbole_rows)]):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise SettingError(f"{where} has '{twice[0]}' twice.")
    sources = [j.recbole_from for j in b.settings if j.recbole_from is not None]
    for name in (*sources, *(search.setting for search in b.searches)):
        if name not in entries:
            raise SettingError(f"{where} has no entry '{name}'. {nearest(name, entries)}")
    searched = [(row, search.trials) for row in b.recbole_rows for search in b.searches]
    for row, number in (*((row, b.trials) for row in b.rows), *searched):
        for trial in row.trials(number):
            check_settings(choose_model(row.model), trial)
    for search in b.searches:
        _check_shots(where, b.judging(search.setting), (search.shots,))
    for judging in b.settings:
        _check_entry(b, judging)


def _check_entry(b: Benchmark, judging: Judging) -> None:
    rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
    if judging.recbole_from == judging.name and b.recbole_rows:
        rows += b.recbole_rows
        b.search_of(judging)
        _check_shots(f"Benchmark '{b.name}'", judging, b.recbole_shots)
    for split in judging.splits:
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        for row in rows:
            check_feedback(choose_model(row.model), protocol.feedback)


def _check_shots(where: str, judging: Judging, shots: tuple[int, ...]) -> None:
    known = read_protocol(judging.protocol, **judging.changed).support_sizes
    for k in shots:
        if k not in known:
            raise SettingError(
                f"{where}: '{judging.name}' is not judged at {k} shots, only at "
                f"{', '.join(map(str, known))}."
            )


def _row(entry: Mapping[str, Any], name: str) -> Row:
    return read_settings(Row, {"fixed": {}, "grid": {}, **entry}, f"Benchmark '{name}', rows")
