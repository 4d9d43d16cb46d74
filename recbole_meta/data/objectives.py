"""Objectives: the labels that a multi-task model is judged on, named on the page of a data set.

``properties/dataset/<name>.yaml`` says

    objectives: {<name>: {label: <column>, type: binary}, ..}

A label is a column of numbers in the rows, or an expression of such (`expressions`): of a binary
objective 1 where the behaviour was observed and 0 where not, of a regression any number. That of a
distribution is a field of items whose tokens are categories: a row says the item's own. NaN is
unobserved. An objective that is ``given`` a binary one has labels only where that one is 1. One
that is not, and whose label is 1 in all rows, is implicit feedback: drawn rows are its 0.

``behaviours``, with entries of the same form, are those of full rankings of several behaviours
(`behaviours`) where they are others than the objectives of rows: binary ones, which are ranked, and
distributions that are ``given`` one of them, over the categories of its items.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.data.expressions import parse
from recbole_meta.data.source import read_page
from recbole_meta.errors import SettingError, nearest
from recbole_meta.settings import read_settings

TYPES = ("binary", "regression", "distribution")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("mean", "worst", "fused", "all", "novel")  # parts of the names of metrics


@dataclass(frozen=True)
class Objective:
    """One of the K labels of a multi-task model."""

    label: str  # the column of .inter; of a distribution the field of items with its categories
    type: str  # binary: observed or not | regression | distribution
    given: str | None = None  # another one, binary: only rows whose label there is 1 are judged
    weight: float = 1.0  # of its loss
    metrics: tuple[str, ...] = ()  # that a table of rows shows of it, where its page names none


Objectives = dict[str, Objective]


def read_objectives(dataset: str, source: Path | None = None) -> Objectives:
    """The objectives of ``<dataset>.yaml`` beside the data, else of the page of ``properties``."""
    values, where = read_page(dataset, source)
    return objectives_of(values.get("objectives"), where)


def read_behaviours(
    dataset: str, source: Path | None = None, expressions: bool = False
) -> Objectives:
    """Those of full rankings: ``behaviours`` of the page, else its objectives; ``expressions``:
    labels need be no columns.
    """
    values, where = read_page(dataset, source)
    found = objectives_of(values.get("behaviours", values.get("objectives")), where)
    return only_behaviours(found, where, expressions)


def objectives_of(values: Any, where: str) -> Objectives:
    """Checked: names that can stand in a metric's name, one label each, a space that there is."""
    if not isinstance(values, dict) or not values:
        raise SettingError(
            f"{where} names no objectives: write 'objectives: {{purchase: {{label: purchase, type: "
            "binary}}' into it, one entry per behaviour."
        )
    found: Objectives = {}
    for name, entry in values.items():
        about = f"{where}, objective '{name}'"
        _check_name(name, about)
        if not isinstance(entry, dict):
            raise SettingError(f"{about} must be 'label' and 'type', found {entry!r}.")
        default: dict[str, Any] = {"given": None, "weight": 1.0, "metrics": []}
        found[name] = objective = read_settings(Objective, {**default, **entry}, about)
        _check(objective, about)
    labels = [objective.label for objective in found.values()]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise SettingError(f"{where}: two objectives have the label '{twice[0]}'.")
    for name in found:
        _check_given(name, found, where)
    return found


def only_behaviours(objectives: Objectives, where: str, expressions: bool = False) -> Objectives:
    """Refuse what splits with one column per behaviour cannot hold."""
    for name, objective in objectives.items():
        about = f"{where}, objective '{name}'"
        if objective.metrics:
            raise SettingError(f"{about}: 'metrics' are of rows; full rankings have their own.")
        if objective.type == "distribution":
            if objective.given is None:
                raise SettingError(
                    f"{about}: a distribution of full rankings must be 'given' a behaviour, whose "
                    "items it is over."
                )
            continue
        if objective.type != "binary" or objective.given is not None:
            raise SettingError(
                f"{about}: full rankings have behaviours, binary and not 'given' one another; "
                "objectives of rows have the protocols rows_random and rows_time. 'behaviours' of "
                "the page names others."
            )
        if not expressions and not re.fullmatch(r"\w+", objective.label):
            raise SettingError(
                f"{about}: 'label' is '{objective.label}', which is no name of a column. "
                "Splits of behaviours have a column of 0 and 1 for each; 'behaviours' of the page "
                "may name others than its objectives of rows."
            )
    if not by_kind(objectives)[0]:
        raise SettingError(f"{where}: full rankings have at least one binary behaviour.")
    return objectives


def by_kind(objectives: Objectives) -> tuple[Objectives, Objectives]:
    """Of full rankings: the behaviours, which are ranked, and the distributions over categories."""
    said = {name: each for name, each in objectives.items() if each.type == "distribution"}
    return {name: each for name, each in objectives.items() if name not in said}, said


def described(objectives: Objectives) -> dict[str, dict[str, Any]]:
    """As a page says what it is: not what is left at its default, nor what is shown of it."""
    found: dict[str, dict[str, Any]] = {}
    for name, objective in objectives.items():
        found[name] = {"label": objective.label, "type": objective.type}
        if objective.given is not None:
            found[name]["given"] = objective.given
        if objective.weight != 1.0:
            found[name]["weight"] = objective.weight
    return found


def chain(name: str, objectives: Objectives) -> list[str]:
    """What an objective is given, the outermost first, and itself last."""
    found = [name]
    while (given := objectives[found[0]].given) is not None:
        found.insert(0, given)
    return found


def _check_name(name: Any, about: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingError(f"{about}: a name has small letters, digits and '_' only.")
    if name in _RESERVED:
        raise SettingError(f"{about}: '{name}' is a part of the names of metrics already.")


def _check(objective: Objective, about: str) -> None:
    if objective.type not in TYPES:
        raise SettingError(f"{about}: 'type' is {objective.type!r}. "
                           f"{nearest(objective.type, TYPES)}")  # fmt: skip
    if objective.weight < 0:
        raise SettingError(f"{about}: 'weight' is {objective.weight}, must be at least 0.")
    if objective.type != "distribution":
        parse(objective.label, f"{about}, 'label'")
    elif not re.fullmatch(r"\w+", objective.label):
        raise SettingError(f"{about}: 'label' is '{objective.label}', must be a field of items.")


def _check_given(name: str, objectives: Objectives, where: str) -> None:
    """The chain of what it is given ends, and is of binary objectives."""
    passed, given = [name], objectives[name].given
    while given is not None:
        about = f"{where}, objective '{passed[-1]}': 'given' is '{given}'"
        if given not in objectives:
            raise SettingError(f"{about}. {nearest(given, objectives)}")
        if given in passed:
            raise SettingError(f"{about}, which leads back to itself.")
        if objectives[given].type != "binary":
            raise SettingError(f"{about}, whose type is {objectives[given].type}, not binary.")
        passed, given = [*passed, given], objectives[given].given
