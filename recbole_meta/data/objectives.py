"""Objectives: the labels that a multi-task model is judged on, named on the page of a data set.

``properties/dataset/<name>.yaml`` says

    objectives: {<name>: {label: <column>, type: binary}, ..}

A label is a column of numbers in the rows, 1 where the behaviour was observed and 0 where not.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.data.prepare import read_page
from recbole_meta.errors import SettingError, nearest
from recbole_meta.settings import read_settings

_TYPES = ("binary",)
_PLANNED = ("regression", "distribution")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("mean", "worst", "fused", "all", "novel")  # parts of the names of metrics


@dataclass(frozen=True)
class Objective:
    """One of the K labels of a multi-task model."""

    label: str  # the column of .inter; of a distribution the field of items with its categories
    type: str  # binary: observed or not | regression | distribution
    given: str | None = None  # another one, binary: only rows whose label there is 1 are judged
    weight: float = 1.0  # of its loss
    metrics: tuple[str, ...] | None = None  # None: by type


Objectives = dict[str, Objective]


def read_objectives(dataset: str, source: Path | None = None) -> Objectives:
    """The objectives of ``<dataset>.yaml`` beside the data, else of the page of ``properties``."""
    values, where = read_page(dataset, source)
    return objectives_of(values.get("objectives"), where)


def objectives_of(values: Any, where: str) -> Objectives:
    """Checked: names that can stand in a metric's name, labels that are columns, one each."""
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
        usual = {"given": None, "weight": 1.0, "metrics": None}
        found[name] = objective = read_settings(Objective, usual | entry, about)
        _check(objective, about)
    labels = [objective.label for objective in found.values()]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise SettingError(f"{where}: two objectives have the label '{twice[0]}'.")
    return found


def _check_name(name: Any, about: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingError(f"{about}: a name has small letters, digits and '_' only.")
    if name in _RESERVED:
        raise SettingError(f"{about}: '{name}' is a part of the names of metrics already.")


def _check(objective: Objective, about: str) -> None:
    if objective.type in _PLANNED:
        raise SettingError(
            f"{about}: 'type' is {objective.type}, which a full ranking cannot judge: binary only."
        )
    if objective.type not in _TYPES:
        raise SettingError(f"{about}: 'type' is {objective.type!r}. "
                           f"{nearest(objective.type, _TYPES)}")  # fmt: skip
    if not re.fullmatch(r"\w+", objective.label):
        raise SettingError(
            f"{about}: 'label' is '{objective.label}', which is no name of a column. Expressions "
            "are not read: write the column of 0 and 1 into the file."
        )
