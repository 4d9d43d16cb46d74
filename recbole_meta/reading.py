"""A benchmark's page, read and checked before any work: models, settings, grids, shots exist."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from recbole_meta.benchmark import Benchmark, Judging, Row, Search
from recbole_meta.choice import check_feedback, check_settings, choose_model, is_closed_form
from recbole_meta.data.prepare import read_protocol
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import GROUPS, benchmark_page, check_names
from recbole_meta.settings import Count, Size, read_settings
from recbole_meta.study import check_optuna

R = TypeVar("R", bound=Row)
_SOME = 100  # settings of a grid that are asked whether the seed counts


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
class Range:
    """A range of a grid."""

    low: int | float
    high: int | float
    log: bool


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
    filled: dict[str, Any] = {"changed": {}, "groups": list(GROUPS), "dataset": dataset}
    filled |= {"trained_from": entry.get("name"), **entry}
    return read_settings(Judging, filled, f"{where}, settings")


def _search(entry: Mapping[str, Any], where: str) -> Search:
    return read_settings(Search, {"sampler": "drawn", **entry}, where)


def read_row(
    entry: Mapping[str, Any],
    where: str,
    kind: type[R] = Row,  # type: ignore[assignment]
    *,
    seeds: tuple[int, ...],
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
    for names in (entries, [row.name for row in (*b.rows, *b.trained_rows)], _units(b)):
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
    if b.trained_rows:
        _check_used(b, where)


def _units(b: Benchmark) -> list[str]:
    """The names of the units of an entry's split, RecBole's per k."""
    names = [row.unit(None, seed, b.seed) for row in b.rows for seed in row.seeds]
    for row in b.trained_rows:
        shots = (None,) if choose_model(row.model).ours else b.trained_shots
        names += [row.unit(k, seed, b.seed) for seed in row.seeds for k in shots]
    return names


def _check_used(b: Benchmark, where: str) -> None:
    """Every entry has one search at most, and every search an entry."""
    settings = [search.setting for search in b.searches]
    for name in settings:
        if settings.count(name) > 1:
            raise SettingError(f"{where}: '{name}' has {settings.count(name)} searches, not one.")
    used = [b.search_of(judging) for judging in b.settings if judging.trained_from == judging.name]
    for search in b.searches:
        if search not in used:
            raise SettingError(f"{where}: no entry uses the search of '{search.setting}'.")


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
    choice, trials = choose_model(row.model), row.ends().trials(_SOME)
    if len(row.seeds) > 1 and not any(choice.has_seed(trial) for trial in trials):
        raise SettingError(
            f"{where} must be one, found {list(row.seeds)}: {row.model} is a closed form that "
            "draws nothing."
        )


def _check_entry(b: Benchmark, judging: Judging) -> None:
    where = f"Benchmark '{b.name}'"
    if not judging.splits:
        raise SettingError(f"{where}: '{judging.name}' has no splits.")
    for group in judging.groups:
        if group not in GROUPS:
            raise SettingError(f"{where}: unknown group '{group}'. {nearest(group, GROUPS)}")
    rows = [row for row in b.rows if choose_model(row.model).group in judging.groups]
    if judging.order != "random":
        for row in rows:
            if len(row.seeds) > 1:
                raise SettingError(
                    f"{where}: '{row.name}' has {len(row.seeds)} seeds, and closed forms draw "
                    f"under order random alone, not for '{judging.name}'."
                )
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
