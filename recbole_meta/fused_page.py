"""A page of ``properties/fusion``, read and checked before any work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_meta.benchmark import Row
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.entries import check_names
from recbole_meta.evaluation.graded import check_gains
from recbole_meta.fused_recommender import FusedSettings, check_fusion
from recbole_meta.fusion import weight_trials
from recbole_meta.objective_fitting import check_objective_settings
from recbole_meta.reading import read_row
from recbole_meta.settings import Count, Size, Weight, load_properties, named_page, read_settings


@dataclass(frozen=True)
class Page:
    """A page of ``properties/fusion``."""

    dataset: str
    protocol: str  # behaviours_given | behaviours_time
    seeds: tuple[Count, ...]  # of models that train; the first one searches
    trials: Size
    gains: dict[str, dict[str, Weight]]  # setting -> objective -> v; 0 where one is not named
    sources: tuple[dict[str, Any], ...]
    fusions: tuple[dict[str, Any], ...]
    baseline: str  # the way to fuse that stands, with equal weights, for all simple ones
    graded: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class HeadOf:
    """A trained model of which one objective is read."""

    model: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Heads that are fused: objective -> model."""

    name: str
    heads: dict[str, HeadOf]


@dataclass(frozen=True)
class FusedPage:
    """The same, checked."""

    name: str
    dataset: str
    seeds: tuple[int, ...]
    trials: int
    gains: dict[str, dict[str, float]]
    sources: tuple[Source, ...]
    fusions: dict[str, FusedSettings]
    baseline: str
    graded: tuple[Row, ...]


def fused_page(name: str) -> tuple[str, Page]:
    """The name and the content of a page: of ``properties/fusion``, or a path."""
    name, values = named_page("fusion", name)
    return name, read_settings(Page, values, f"Page '{name}'")


def read_fused(name: str, objectives: tuple[str, ...]) -> FusedPage:
    """A page, refused where a unit would stop in the middle of the work."""
    name, page = fused_page(name)
    where = f"Page '{name}'"
    for setting, gains in page.gains.items():
        check_gains(gains, objectives, f"{where}, gains '{setting}'")
        if setting in objectives:
            raise SettingError(f"{where}: gains '{setting}' has the name of an objective.")
    sources = tuple(_source(entry, objectives, where) for entry in page.sources)
    fusions = _fusions(page.fusions, objectives, where)
    graded = tuple(read_row(entry, f"{where}, graded", seeds=page.seeds) for entry in page.graded)
    for row in graded:
        for trial in row.trials(page.trials):
            settings = trial | {"gains": next(iter(page.gains.values()))}
            check_objective_settings(row.model, settings, objectives)
    if page.baseline not in fusions:
        raise SettingError(f"{where}: 'baseline' is '{page.baseline}'. "
                           f"{nearest(page.baseline, fusions)}")  # fmt: skip
    check_names([each.name for each in (*sources, *graded)], where)
    if len(set(page.seeds)) < len(page.seeds):
        raise SettingError(f"{where}: 'seeds' must be different, found {list(page.seeds)}.")
    if not sources or not page.seeds or not page.gains:
        raise SettingError(f"{where} has no sources, no gains or no seeds.")
    weight_trials(len(objectives), page.trials, 0)
    return FusedPage(name, page.dataset, page.seeds, page.trials, page.gains, sources, fusions,
                     page.baseline, graded)  # fmt: skip


def _source(entry: Mapping[str, Any], objectives: tuple[str, ...], where: str) -> Source:
    found = read_settings(_SourceEntry, entry, f"{where}, sources")
    about = f"{where}, source '{found.name}'"
    for objective in objectives:
        if objective not in found.heads:
            raise SettingError(f"{about} has no head of the objective '{objective}'.")
    for objective in found.heads:
        if objective not in objectives:
            raise SettingError(
                f"{about} has a head '{objective}', which is no objective. "
                f"{nearest(objective, objectives)}"
            )
    heads = {name: read_settings(HeadOf, found.heads[name], about) for name in objectives}
    for head in heads.values():
        check_objective_settings(head.model, head.settings, objectives)
    return Source(found.name, heads)


@dataclass(frozen=True)
class _SourceEntry:
    name: str
    heads: dict[str, dict[str, Any]]


def _fusions(
    entries: Iterable[Mapping[str, Any]], objectives: tuple[str, ...], where: str
) -> dict[str, FusedSettings]:
    found: dict[str, FusedSettings] = {}
    for entry in entries:
        name = entry.get("name")
        if not isinstance(name, str) or name in found:
            raise SettingError(f"{where}, fusions: each needs a 'name' of its own, found {name!r}.")
        for setting in ("weights", "hide_known"):
            if setting in entry:
                raise SettingError(
                    f"{where}, fusions: '{setting}' of '{name}' is not for a page to set: weights "
                    "are searched, and items of train are hidden."
                )
        changed = {key: value for key, value in entry.items() if key != "name"}
        values = load_properties("model", "FusedRecommender") | changed
        found[name] = read_settings(FusedSettings, values, f"{where}, fusion '{name}'")
        check_fusion(found[name], objectives)
    return found
