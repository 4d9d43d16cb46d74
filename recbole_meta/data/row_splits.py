"""Rows of an ordinary data set, split at random or by time, with the labels of several objectives.

- ``rows_random``: of every user's n rows, in the order of a seeded hash, the last round(n / 10) are
  test, as many before them valid, the others train.
- ``rows_time``: two cuts in time, after 80 and 90 % of all rows; a row at a cut is later. Rows of
  users or items that train has not are left out of valid and test, and counted.

A pair is in one split. By time, where the page of the data set has the ``times`` of its columns
(`label_times`), a row of train says what was known at the first cut and a row of valid what was
known at the second: a pair that was viewed before a cut and bought after it is not bought there,
and such labels are counted. What comes later of it is judged nowhere. Without ``times`` a row keeps
its whole line, so that only what it says at once, a rating, is an honest label.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_meta.data.atomic import AtomicFile, Floats, Ints
from recbole_meta.data.expressions import parse
from recbole_meta.data.folders import FORMAT, made_once, sha256, write_recbole, write_side
from recbole_meta.data.history import Rows, pair_hash
from recbole_meta.data.label_times import (
    LabelTimes,
    behaviour_times,
    described_times,
    known_at,
    read_label_times,
)
from recbole_meta.data.objectives import (
    Objectives,
    chain,
    described,
    objectives_of,
    read_objectives,
)
from recbole_meta.data.prepared import PreparedFolder, pairs_of
from recbole_meta.data.source import DataFields, check_tokens, find_dataset, read_fields
from recbole_meta.errors import DataError, LeakError, SettingError, nearest
from recbole_meta.settings import load_yaml

PROTOCOLS = ("rows_random", "rows_time")
SPLITS = ("train", "valid", "test")
_SHARE = 0.1  # of the rows, for valid and for test


def prepare_rows(
    dataset: str,
    protocol: str,
    data_path: str | Path = "dataset",
    prepared_path: str | Path = "dataset/prepared",
    seed: int = 0,
) -> Path:
    """The prepared folder, made if it is not there yet."""
    if protocol not in PROTOCOLS:
        raise SettingError(f"Protocol '{protocol}' splits no rows. {nearest(protocol, PROTOCOLS)}")
    source = find_dataset(dataset, data_path)
    fields, objectives = read_fields(dataset, source), read_objectives(dataset, source)
    for name, objective in objectives.items():
        known = fields.item_features
        if objective.type == "distribution" and objective.label not in known:
            raise SettingError(
                f"Objective '{name}': its label '{objective.label}' is none of the page's "
                f"'item_features'. {nearest(objective.label, known)}"
            )
    files = {side: source / f"{dataset}.{side}" for side in ("inter", "user", "item")}
    times = read_label_times(dataset, source) if protocol == "rows_time" else None
    if times is not None:
        files["times"] = source / times.file
    inputs = {path.name: sha256(path.read_bytes()) for path in files.values() if path.is_file()}
    named = described(objectives)
    about = [FORMAT, dataset, protocol, seed, named, asdict(fields), inputs]
    about += [described_times(times)] if times is not None else []
    key = sha256(json.dumps(about).encode())[:8]

    def fill(name: str, temporary: Path) -> dict[str, Any]:
        counts = _write(temporary / name, files, fields, objectives, protocol, seed, times)
        write_recbole(temporary, _recbole_settings(name, files, fields))
        return {
            "format": FORMAT, "dataset": dataset, "protocol": protocol, "kind": "rows",
            "seed": seed, "objectives": named, "fields": asdict(fields), "counts": counts,
            "inputs": inputs, **described_times(times),
        }  # fmt: skip

    return made_once(Path(prepared_path) / f"{dataset}-{protocol}-{key}", source, fill)


def _write(
    stem: Path, files: Mapping[str, Path], fields: DataFields, objectives: Objectives,
    protocol: str, seed: int, times: LabelTimes | None,
) -> dict[str, Any]:  # fmt: skip
    """The three files, users and items; how many there are of all."""
    file = AtomicFile(files["inter"])
    rows, users, items = numbered(file, fields)
    check_labels(file, objectives)
    time = None
    if protocol == "rows_time":
        if fields.time is None:
            raise DataError("rows_time needs a time field, and the data set names none.")
        time = file.numbers(fields.time)
    ends: dict[str, float] = {}
    if time is None:
        chosen, left = by_user(rows, seed), 0
    else:
        chosen, left, ends = _by_time(rows, time)
    happened = {} if times is None else behaviour_times(times, file, fields)
    undone: dict[str, dict[str, int]] = {}
    for name, numbers in chosen.items():
        if not len(numbers):
            raise DataError(f"{file.path.name} has too few rows: '{name}' would be empty.")
        written = file
        if happened and name in ends:
            inside = np.isin(np.arange(len(file.lines)), numbers)
            of = {column: np.where(inside, each, np.inf) for column, each in happened.items()}
            written, undone[name] = known_at(file, of, ends[name])
        written.write(stem.with_name(f"{stem.name}.{name}.inter"), np.sort(numbers).tolist())
    for side, field, features, tokens in (
        ("user", fields.user, fields.user_features, users),
        ("item", fields.item, fields.item_features, items),
    ):
        target = stem.with_name(f"{stem.name}.{side}")
        write_side(files[side], target, field, features, tokens)
    _check_categories(stem.with_name(f"{stem.name}.item"), files["item"].name, objectives)
    return {"users": len(users), "items": len(items), "left_out": left,
            "rows_of": {name: len(numbers) for name, numbers in chosen.items()},
            **({"undone": undone} if happened else {})}  # fmt: skip


def numbered(file: AtomicFile, fields: DataFields) -> tuple[Rows, list[str], list[str]]:
    """The rows by number, without times, and the tokens of users and items; a pair stands once."""
    columns = file.read([fields.user, fields.item])
    for side in (fields.user, fields.item):
        check_tokens(columns[side], side, file.path)
    user, users = pd.factorize(np.asarray(columns[fields.user], dtype=str), sort=True)
    item, items = pd.factorize(np.asarray(columns[fields.item], dtype=str), sort=True)
    twice = pd.Series(user.astype(np.int64) * len(items) + item).duplicated()
    if twice.any():
        raise DataError(
            f"{file.path.name}, line {int(np.argmax(twice)) + 2}: a pair of user and item stands "
            f"there twice ({int(twice.sum())} duplicate rows)."
        )
    tokens = [str(token) for token in users], [str(token) for token in items]
    keys = _keys(tokens[0]), _keys(tokens[1])
    return Rows(user.astype(np.int64), item.astype(np.int64), None, keys[0], keys[1]), *tokens


def _keys(tokens: Iterable[str]) -> npt.NDArray[np.uint64]:
    """A hash of each token."""
    return np.array([int(sha256(token.encode())[:16], 16) for token in tokens], dtype=np.uint64)


def by_user(rows: Rows, seed: int) -> dict[str, Ints]:
    """Of every user a tenth of the rows for test and for valid, in the order of a seeded hash."""
    order = np.lexsort((pair_hash(rows, seed), rows.user))
    user = rows.user[order]
    length = np.bincount(user)[user]
    from_end = length - 1 - (np.arange(len(user)) - np.searchsorted(user, user))
    held = np.round(_SHARE * length)
    test, valid = from_end < held, (from_end >= held) & (from_end < 2 * held)
    return {"train": order[~test & ~valid], "valid": order[valid], "test": order[test]}


def _by_time(rows: Rows, time: Floats) -> tuple[dict[str, Ints], int, dict[str, float]]:
    """The rows of each split, how many are left out, and when train and valid end."""
    first, second = np.quantile(time, [1 - 2 * _SHARE, 1 - _SHARE], method="lower")
    train = time < first
    known = np.isin(rows.user, rows.user[train]) & np.isin(rows.item, rows.item[train])
    valid, test = (time >= first) & (time < second), time >= second
    found = {"train": train, "valid": valid & known, "test": test & known}
    ends = {"train": float(first), "valid": float(second)}
    left = int((~train & ~known).sum())
    return {n: np.flatnonzero(mask) for n, mask in found.items()}, left, ends


def check_labels(file: AtomicFile, objectives: Objectives) -> None:
    """Every label can be made, and says something."""
    labels = row_labels(file, objectives)
    for name, values in labels.items():
        there = values[~np.isnan(values)]
        label = objectives[name].label
        if not len(there):
            raise DataError(
                f"{file.path.name}: objective '{name}': all labels of '{label}' are NaN."
            )
        if objectives[name].type != "binary":
            continue
        wrong = np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1))
        if len(wrong):
            raise DataError(
                f"{file.path.name}, line {wrong[0] + 2}: '{label}' is {values[wrong[0]]:g}, and "
                f"the label of objective '{name}' must be 0 or 1."
            )
        drawn = objectives[name].given is None and there[0] == 1  # drawn rows are the other class
        if there.min() == there.max() and not drawn:
            raise DataError(
                f"{file.path.name}: objective '{name}' has one class: '{label}' is "
                f"{there[0]:g} in all rows of its space."
            )


def _check_categories(items: Path, name: str, objectives: Objectives) -> None:
    """A distribution is over two categories or more, which are tokens."""
    labels = [each.label for each in objectives.values() if each.type == "distribution"]
    for label in labels:
        file = AtomicFile(items)
        if not file.types[label].startswith("token"):
            raise DataError(
                f"{name}: '{label}' is of type {file.types[label]}: the categories of a "
                "distribution are tokens (token, token_seq)."
            )
        place, several = file.columns.index(label), file.types[label] == "token_seq"
        texts = [line.split("\t")[place] for line in file.lines]
        found = {token for text in texts for token in (text.split() if several else [text])} - {""}
        if len(found) < 2:
            raise DataError(
                f"{name}: '{label}' has {len(found)} categories, and a distribution needs two."
            )


def row_labels(file: AtomicFile, objectives: Objectives) -> dict[str, Floats]:
    """Per objective the label of every line, NaN where unobserved or outside its space [N]; of a
    distribution 1 where a row's item speaks for the user's.
    """
    found: dict[str, Floats] = {}
    for name, objective in objectives.items():
        if objective.type == "distribution":
            found[name] = np.ones(len(file.lines))
            continue
        expression = parse(objective.label, f"objective '{name}'")
        columns = {}
        for column in expression.columns:
            if column not in file.columns:
                raise SettingError(
                    f"Objective '{name}': '{expression.text}' names '{column}', which "
                    f"{file.path.name} has not. {nearest(column, file.columns)}"
                )
            columns[column] = _numbers(file, column)
        found[name] = expression.of(columns)
    inside = {}
    for name in objectives:
        values = found[name]
        for given in chain(name, objectives)[:-1]:
            values = np.where(found[given] == 1, values, np.nan)
        inside[name] = values
    return inside


def _numbers(file: AtomicFile, column: str) -> Floats:
    """The numbers of a column; an empty entry is NaN."""
    place = file.columns.index(column)
    texts = [line.split("\t")[place] for line in file.lines]
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except ValueError as error:
        raise DataError(f"{file.path.name}: '{column}' has no number: {error}.") from error


def _recbole_settings(name: str, files: Mapping[str, Path], fields: DataFields) -> dict[str, Any]:
    """What makes plain RecBole rank all rows; no label is loaded, so none becomes an input."""
    load_col = {"inter": [fields.user, fields.item]}
    for side, field, features in (
        ("user", fields.user, fields.user_features),
        ("item", fields.item, fields.item_features),
    ):
        load_col[side] = [field, *(features if files[side].is_file() else ())]
    return {
        "dataset": name,
        "benchmark_filename": list(SPLITS),
        "field_separator": "\t",
        "seq_separator": " ",
        "USER_ID_FIELD": fields.user,
        "ITEM_ID_FIELD": fields.item,
        "load_col": load_col,
        "normalize_all": False,
        "threshold": None,
        "metrics": ["NDCG", "Recall", "MRR", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "eval_args": {"group_by": "user", "order": "RO", "mode": {"valid": "full", "test": "full"}},
    }


class RowSplits(PreparedFolder):
    """The folder of split rows; ``open_rows`` caches it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        if self.description.get("kind") != "rows":
            raise DataError(f"{self.path} is no folder of rows with several objectives.")
        where = str(self.path / "protocol.json")
        self.objectives: Objectives = objectives_of(self.description["objectives"], where)

    @cache  # noqa: B019 - a folder is read once and kept
    def rows(self, split: str) -> pd.DataFrame:
        """The columns user, item (tokens), and the label of each objective by its name."""
        file = AtomicFile(self.path / f"{self.name}.{split}.inter")
        columns = file.read([self.fields.user, self.fields.item])
        frame = pd.DataFrame(
            {"user": columns[self.fields.user], "item": columns[self.fields.item]}, dtype=str
        )
        for name, values in row_labels(file, self.objectives).items():
            frame[name] = values
        return frame

    def check_leaks(self) -> None:
        """Raise where a pair stands in two splits, or a label would be an input."""
        seen: npt.NDArray[Any] = np.array([], dtype=str)
        for split in SPLITS:
            pairs = pairs_of(self.rows(split))
            known = pairs[pairs.isin(seen)]
            if len(known):
                raise LeakError(
                    f"{self.name}: {len(known)} pairs of '{split}' are in an earlier split, e.g. "
                    f"{known[0]!r}."
                )
            seen = np.concatenate([seen, pairs.to_numpy(dtype=str)])
        loaded = load_yaml(self.path / "recbole.yaml")["load_col"]["inter"]
        for name, objective in self.objectives.items():
            if objective.type == "distribution":
                continue
            for column in parse(objective.label, f"objective '{name}'").columns:
                if column in loaded:
                    raise LeakError(
                        f"{self.name}: '{column}', of the label of objective '{name}', is loaded "
                        "from .inter and would become an input."
                    )


def open_rows(path: str | Path) -> RowSplits:
    """The folder, read, checked against its digests and for leaks, once in a process."""
    return _open(Path(path).resolve())


@cache
def _open(path: Path) -> RowSplits:
    rows = RowSplits(path)
    rows.check_leaks()
    return rows
