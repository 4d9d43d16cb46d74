"""Queries of a phase: the primary one first, then its slices.

``rows_11_20``: the horizon after the reserve. ``after``: everything after it, and by its length
``after_10_19`` ... ``later``: rows more than 24 hours after the user's first row, users with at
least 10 of them. ``held_out``: random rows, where the protocol holds out such. ``cold``: rows of
cold items, ranked among those of the phase; ``all``: the same, ranked among all items, where items
are tasks.
"""

import numpy as np
import pandas as pd

from recbole_meta.data.prepared import Prepared

_LENGTHS = ((10, 19), (20, 49), (50, 99), (100, 199), (200, None))
WIDE = "all"  # the query and the ranking over the whole catalogue where only cold items are judged
_DAY = 86_400.0  # seconds
_LATER_ROWS = 10


def queries(prepared: Prepared, phase: str) -> dict[str, pd.DataFrame]:
    """Name -> query rows (user, item tokens, ..) of the tasks in the slice.

    Left out are slices without a row, and with labels those where no task has both a 0 and a 1.
    """
    rows = prepared.rows(phase)
    if prepared.held_out:
        return {"held_out": rows}
    if prepared.description["candidates"] == "cold":
        wide = prepared.side == "item" and prepared.feedback == "implicit"
        return {"cold": rows, WIDE: rows} if wide else {"cold": rows}
    found: dict[str, pd.DataFrame] = {}
    if prepared.horizon is not None:
        start, stop = prepared.query_start, prepared.query_start + prepared.horizon
        found[f"rows_{start + 1}_{stop}"] = rows[rows["position"] < prepared.horizon]
    found["after"] = rows
    length = rows.groupby("user")["item"].transform("size")
    for least, most in _LENGTHS:
        name = f"after_{least}_{most}" if most else f"after_{least}_up"
        found[name] = rows[(length >= least) & (length <= (most or np.inf))]
    if "time" in rows:
        early = prepared.early_rows(phase)
        first = pd.concat([early, rows]).groupby("user")["time"].min()
        late = rows[rows["time"] > rows["user"].map(first) + _DAY]
        found["later"] = late[late.groupby("user")["item"].transform("size") >= _LATER_ROWS]
    primary = next(iter(found))
    return {
        name: query
        for name, query in found.items()
        if name == primary or _is_judged(query, prepared.feedback)
    }


def list_of(prepared: Prepared, query: str) -> str:
    """The prefix of the stored ranking that a query is judged by: '' or the wide one."""
    return WIDE if query == WIDE and prepared.description["candidates"] == "cold" else ""


def _is_judged(query: pd.DataFrame, feedback: str) -> bool:
    if feedback == "label":
        return bool((query.groupby("user")["target"].nunique() > 1).any())
    return len(query) > 0
