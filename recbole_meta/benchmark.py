"""A benchmark file: what is judged, which rows stand in the table, and what each row may try."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from recbole_meta.data.prepare import read_protocol
from recbole_meta.errors import SettingError
from recbole_meta.evaluation.entries import slug
from recbole_meta.settings import Count, Size

Settings = dict[str, Any]


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

    @property
    def order(self) -> str:
        """The order of its rows."""
        return read_protocol(self.protocol, **self.changed).order


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
    seeds: tuple[Count, ...]  # that it is judged with, if it trains or draws: the mean of each user

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

    def unit(self, k: int | None, seed: int, first: int) -> str:
        """The name of a unit's file; the benchmark's own seed, the ``first``, is not in it."""
        name = slug(self.name) if k is None else f"{slug(self.name)}-k{k}"
        return name if seed == first else f"{name}-seed{seed}"

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
    """Where rows that train are searched: ``Benchmark.search_of`` says which is whose."""

    setting: str
    split: Count
    shots: Count
    trials: Size
    sampler: Literal["drawn", "tpe"]  # points of the grid without replacement; by Optuna

    def learns(self, row: Row) -> bool:
        """Whether the row's trials depend on those before; not where the grid is tried whole."""
        return self.sampler == "tpe" and row.has_more_than(self.trials)


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
        """The entry's own search, else the first of its data set and order."""
        wanted = judging.dataset, judging.order
        for search in sorted(self.searches, key=lambda s: s.setting != judging.name):
            other = self.judging(search.setting)
            if (other.dataset, other.order) == wanted:
                return search
        raise SettingError(
            f"Benchmark '{self.name}' has no search for {wanted[0]}, order '{wanted[1]}'."
        )
