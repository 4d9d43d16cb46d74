"""Rows of an ordinary data set split at random, as splits of several behaviours.

The splits are those of ``rows_random`` (`row_splits`): a row is in one of them with all that it
says. A behaviour's label may be an expression of columns, such as ``rating >= 4``; the files have
one column of 0 and 1 per behaviour, by its name, and no other label. A row without any behaviour is
left out, and counted.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from recbole_meta.data.atomic import AtomicFile
from recbole_meta.data.objectives import Objectives, by_kind
from recbole_meta.data.row_splits import by_user, check_labels, numbered, row_labels
from recbole_meta.data.source import DataFields
from recbole_meta.errors import DataError, SettingError


def draw_behaviours(
    file: AtomicFile, fields: DataFields, objectives: Objectives, seed: int
) -> tuple[dict[str, AtomicFile], dict[str, Any]]:
    """The rows of each split, and how many are left out."""
    behaviours = by_kind(objectives)[0]
    for name in behaviours:
        if name in (fields.user, fields.item):
            raise SettingError(f"Objective '{name}' has the name of a field of {file.path.name}.")
    rows = numbered(file, fields)[0]
    check_labels(file, objectives)
    labels = {name: values == 1 for name, values in row_labels(file, behaviours).items()}
    some = np.any(list(labels.values()), axis=0)
    wide = file.with_labels([fields.user, fields.item], labels)
    splits = {}
    for split, chosen in by_user(rows, seed).items():
        kept = np.sort(chosen[some[chosen]])
        if not len(kept):
            raise DataError(f"{file.path.name} has too few rows: '{split}' would be empty.")
        splits[split] = wide.part(kept.tolist())
    return splits, {"left_out": int((~some).sum())}


def by_column(objectives: Objectives) -> Objectives:
    """The same, as the files have them: a behaviour's label is the column of its name."""
    behaviours = by_kind(objectives)[0]
    return {
        name: replace(each, label=name) if name in behaviours else each
        for name, each in objectives.items()
    }
