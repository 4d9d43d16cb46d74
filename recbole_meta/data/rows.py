"""A data set's rows as a protocol takes them: without repeats, with keys and given states."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_meta.data.atomic import AtomicFile
from recbole_meta.data.history import Floats, Ints, Rows
from recbole_meta.data.protocol import ColdStart
from recbole_meta.data.source import DataFields, check_tokens
from recbole_meta.data.states import FourStates
from recbole_meta.errors import DataError, nearest

LABEL = "label"


def read_rows(
    path: Path, protocol: ColdStart, fields: DataFields
) -> tuple[AtomicFile, Rows, dict[str, list[str]]]:
    """The file cut to the protocol's input rows, their codes, and the tokens of users and items."""
    file = AtomicFile(path)
    columns = file.read([fields.user, fields.item])
    keep = np.ones(len(file.lines), dtype=bool)
    for side in (fields.user, fields.item):
        check_tokens(columns[side], side, path)
    for column, least in protocol.threshold.items():
        keep &= file.numbers(column) >= least
    if not keep.any():
        raise DataError(
            f"{path.name}: no row passes threshold {protocol.threshold}."
            if len(keep)
            else f"{path.name} has no rows."
        )
    if protocol.feedback == "rating":
        if fields.rating is None:
            raise DataError(
                "feedback 'rating' needs a rating field, and the data set names none: write "
                f"'rating: <field>' into {path.with_suffix('.yaml')}."
            )
        file.numbers(fields.rating)
    for column, least in protocol.label.items():
        label = file.numbers(column) >= least
        if label[keep].all() or not label[keep].any():
            raise DataError(f"label {column} >= {least} has one class only in {path.name}.")
        if LABEL in file.columns:
            raise DataError(f"{path.name} has a column '{LABEL}' already: give it another name.")
        file.header += f"\t{LABEL}:float"
        file.lines = [f"{line}\t{int(y)}" for line, y in zip(file.lines, label, strict=True)]
    has_time = fields.time is not None and fields.time in file.columns
    if protocol.order == "time" and not has_time:
        raise DataError(
            f"order 'time' needs the field '{fields.time or 'time'}', and {path.name} has none. "
            f"{nearest(fields.time or 'time', file.columns)} Without times: --order random."
        )
    time = file.numbers(str(fields.time)) if has_time else None
    pairs = pd.DataFrame({"user": columns[fields.user], "item": columns[fields.item]})
    keep[_repeats(pairs[keep], time, file, protocol)] = False
    chosen = np.flatnonzero(keep)
    file.lines = [file.lines[row] for row in chosen.tolist()]
    user, users = pd.factorize(columns[fields.user].to_numpy()[chosen], sort=True)
    item, items = pd.factorize(columns[fields.item].to_numpy()[chosen], sort=True)
    tokens = {"user": [str(u) for u in users], "item": [str(i) for i in items]}
    rows = Rows(
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        time=None if time is None else time[chosen],
        user_key=_keys(tokens["user"]),
        item_key=_keys(tokens["item"]),
    )
    return file, rows, tokens


def _repeats(
    pairs: pd.DataFrame, time: Floats | None, file: AtomicFile, protocol: ColdStart
) -> Ints:
    """The rows that leave because their (user, item) pair stands in another one.

    First and last are meant in time, ties by the line's text; without times, in the file.
    """
    repeated = pairs[pairs.duplicated(keep=False)]
    if repeated.empty:
        return np.empty(0, dtype=np.int64)
    if protocol.duplicates == "error":
        later = repeated[repeated.duplicated()]
        raise DataError(
            f"{file.path.name}, line {later.index[0] + 2}: user '{later['user'].iloc[0]}' and item "
            f"'{later['item'].iloc[0]}' stand there twice ({len(later)} duplicate rows). "
            "Set 'duplicates' of the protocol: --duplicates=first or --duplicates=last."
        )
    if time is not None:
        rows = repeated.index.to_numpy()
        lines = [file.lines[row] for row in rows.tolist()]
        repeated = repeated.assign(time=time[rows], line=lines).sort_values(["time", "line"])
    leaves = repeated.duplicated(["user", "item"], keep=protocol.duplicates)
    return repeated.index[leaves].to_numpy(dtype=np.int64)


def _keys(tokens: list[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Eight bytes of BLAKE2 for each token."""
    digests = [hashlib.blake2b(token.encode(), digest_size=8).digest() for token in tokens]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def with_states(
    rows: Rows,
    protocol: FourStates,
    fields: DataFields,
    files: dict[str, Path],
    tokens: dict[str, list[str]],
) -> Rows:
    """What tells who is cold: given files, and the item's field where none names the item."""
    given = {
        side: _given_states(files[f"{side}_split"], field, tokens[side])
        for side, field in (("user", fields.user), ("item", fields.item))
        if f"{side}_split" in files
    }
    item, user = given.get("item"), given.get("user")
    if user is not None and user.isna().any():
        name, token = files["user_split"].name, user.index[user.isna()][0]
        raise DataError(f"{name} does not say what '{fields.user}' {token!r} is.")
    cold_user = None if user is None else (user == "cold").to_numpy(dtype=bool)
    cold_item = None if item is None else (item == "cold").to_numpy(dtype=bool)
    rows = replace(rows, cold_user=cold_user, cold_item=cold_item)
    if item is None or item.isna().any() or protocol.state[1] == "c":
        file = AtomicFile(files["item"])
        values = file.values_of(protocol.item_field, fields.item, tokens["item"])
        rows = replace(rows, item_value=values)
        if item is not None and cold_item is not None:
            late = item.isna().to_numpy() & (values > protocol.item_last)
            rows = replace(rows, cold_item=cold_item | late)
    return rows


def _given_states(path: Path, field: str, tokens: list[str]) -> "pd.Series[str]":
    """'existing' or 'cold' of each token by a file of two columns, the field and 'state'; NaN where
    it does not name the token.
    """
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read the split file {path}: {error}") from error
    for column in (field, "state"):
        if column not in frame:
            raise DataError(
                f"{path.name} has no column '{column}'. {nearest(column, list(frame.columns))}"
            )
    wrong = frame[~frame["state"].isin(["existing", "cold"])]
    if len(wrong):
        raise DataError(
            f"{path.name}, line {wrong.index[0] + 2}: 'state' is {wrong['state'].iloc[0]!r}. "
            "Allowed: cold, existing."
        )
    frame = frame.drop_duplicates([field, "state"])
    twice = frame[frame.duplicated(field)]
    if len(twice):
        raise DataError(
            f"{path.name} says both states of '{field}' {twice[field].iloc[0]!r}: existing and "
            "cold."
        )
    states = frame.set_index(field)["state"].reindex(tokens)
    if states.isna().all():
        raise DataError(f"{path.name} names no '{field}' of the data set, e.g. {tokens[0]!r}.")
    return states
