"""Several behaviours split by time, each event by its own.

Two cuts in time, after 80 and 90 % of all events; an event is a pair and a behaviour, one at a cut
is later. train has what happened before the first cut, valid the events between the cuts, test
those after: in its file a pair has 1 for the behaviours that happened there alone. So a pair that
was viewed in train may be bought in test. Events of users or items that train has not are left out
of valid and test, and counted.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recbole_meta.data.atomic import AtomicFile
from recbole_meta.data.label_times import LabelTimes, behaviour_times, known_at
from recbole_meta.data.objectives import Objectives
from recbole_meta.data.source import DataFields
from recbole_meta.errors import DataError, SettingError, nearest

_SHARE = 0.1  # of the events, for valid and for test


def cut_behaviours(
    file: AtomicFile, times: LabelTimes, fields: DataFields, objectives: Objectives
) -> tuple[dict[str, AtomicFile], dict[str, Any]]:
    """The rows of each split, and the counts of what is where."""
    labels = [objective.label for objective in objectives.values()]
    for label in labels:
        if label not in times.columns:
            raise SettingError(
                f"behaviours_time: 'times' of the page has no column for '{label}'. "
                f"{nearest(label, times.columns)}"
            )
    happened = behaviour_times(times, file, fields)
    event = np.stack([happened[label] for label in labels])  # [K, N], inf: none
    there = np.isfinite(event)
    if not there.any():
        raise DataError(f"{file.path.name} has no behaviour at all.")
    shares = [1 - 2 * _SHARE, 1 - _SHARE]
    first, second = np.quantile(event[there], shares, method="lower")
    columns = file.read([fields.user, fields.item])
    user, item = (np.asarray(columns[each], dtype=str) for each in (fields.user, fields.item))
    train = (event < first).any(0)
    of_user, of_item = np.isin(user, user[train]), np.isin(item, item[train])
    known = of_user & of_item
    spans = {"train": (-np.inf, first), "valid": (first, second), "test": (second, np.inf)}
    splits, counts = {}, {}
    for name, (start, end) in spans.items():
        inside = there & (event >= start) & (event < end)
        chosen = np.flatnonzero(inside.any(0) & known)
        if not len(chosen):
            raise DataError(f"{file.path.name} has too few events: '{name}' would be empty.")
        splits[name] = known_at(file, happened, end, start)[0].part(chosen.tolist())
        counts[name] = _counts(inside, known, of_user, of_item)
    return splits, {"events": counts, "cuts": [float(first), float(second)]}


def _counts(
    inside: "np.ndarray[Any, Any]", known: "np.ndarray[Any, Any]", of_user: "np.ndarray[Any, Any]",
    of_item: "np.ndarray[Any, Any]",
) -> Mapping[str, int]:  # fmt: skip
    """The events of a split that stay, and those that are left out."""
    return {
        "kept": int((inside & known).sum()),
        "unknown_user": int((inside & ~of_user).sum()),
        "unknown_item": int((inside & of_user & ~of_item).sum()),
    }
