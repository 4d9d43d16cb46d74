"""Splits with several behaviours become a prepared folder, and are read from it.

A split is a wide file with one column of 0 and 1 per objective (`objectives`):

- ``behaviours_given``: the source has ``<dataset>.<train | valid | test>.inter``, which are copied
  line by line.
- ``behaviours_time``: ``<dataset>.inter`` is cut by the times of its events (`behaviour_cuts`).
- ``behaviours_random``: rows of ``<dataset>.inter`` are drawn, labels may be expressions
  (`behaviour_rows`).

Beside each stands what has one objective alone, ``train_purchase`` for example, so that any RecBole
model, unmodified, learns and ranks one behaviour; the wide file without its labels is the union.

A pair may be a click in train and a purchase in test. What may not be: a pair of one behaviour in
two splits (`Behaviours.check_leaks`).

A distribution that is ``given`` a behaviour is over the categories of the items that a user has
under it in the split: their field stands in ``.item``.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_meta.data.atomic import AtomicFile, Ints
from recbole_meta.data.behaviour_cuts import cut_behaviours
from recbole_meta.data.behaviour_rows import by_column, draw_behaviours
from recbole_meta.data.folders import FORMAT, made_once, sha256, write_recbole, write_side
from recbole_meta.data.label_times import described_times, read_label_times
from recbole_meta.data.objectives import (
    Objectives,
    by_kind,
    described,
    objectives_of,
    read_behaviours,
)
from recbole_meta.data.prepared import PreparedFolder, pairs_of
from recbole_meta.data.source import DataFields, check_tokens, find_dataset, read_fields
from recbole_meta.errors import DataError, LeakError, SettingError, nearest
from recbole_meta.settings import load_yaml

PROTOCOLS = ("behaviours_given", "behaviours_time", "behaviours_random")
SPLITS = ("train", "valid", "test")


def find_splits(dataset: str, data_path: str | Path) -> dict[str, Path]:
    """The three files of a data set below ``data_path``."""
    files = {name: Path(data_path) / dataset / f"{dataset}.{name}.inter" for name in SPLITS}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        known = [path.parent.name for path in Path(data_path).glob("*/*.train.inter")]
        raise DataError(
            f"No file {missing[0].name} in {missing[0].parent}: given splits are "
            f"{dataset}.train.inter, .valid.inter and .test.inter. {nearest(dataset, known)} "
            "'data_path' says where the data sets are."
        )
    return files


def prepare_behaviours(
    dataset: str,
    data_path: str | Path = "dataset",
    prepared_path: str | Path = "dataset/prepared",
    protocol: str = "behaviours_given",
    seed: int = 0,
) -> Path:
    """The prepared folder of a data set's splits, made if it is not there yet; ``seed``: of the
    rows' order, where they are drawn.
    """
    if protocol not in PROTOCOLS:
        raise SettingError(
            f"Protocol '{protocol}' splits no behaviours. {nearest(protocol, PROTOCOLS)}"
        )
    drawn, times = protocol == "behaviours_random", None
    if protocol == "behaviours_given":
        files = find_splits(dataset, data_path)
        source = files["train"].parent
    else:
        source = find_dataset(dataset, data_path)
        files = {"inter": source / f"{dataset}.inter"}
    if protocol == "behaviours_time":
        times = read_label_times(dataset, source)
        if times is None:
            raise SettingError(
                f"behaviours_time: the page of '{dataset}' does not say when behaviours happened: "
                "write 'times: {file: .., columns: {<column>: <column of times>}}' into it."
            )
        files["times"] = source / times.file
    fields, objectives = read_fields(dataset, source), read_behaviours(dataset, source, drawn)
    files |= {side: source / f"{dataset}.{side}" for side in ("user", "item")}
    inputs = {path.name: sha256(path.read_bytes()) for path in files.values() if path.is_file()}
    named = described(objectives)
    about = [FORMAT, dataset, protocol, named, asdict(fields), inputs]
    about += [described_times(times)] if times is not None else []
    about += [seed] if drawn else []
    key = sha256(json.dumps(about).encode())[:8]

    def fill(name: str, temporary: Path) -> dict[str, Any]:
        more: dict[str, Any] = {}
        columns = by_column(objectives) if drawn else objectives
        ranked, distributions = by_kind(columns)
        if drawn:
            whole = AtomicFile(files["inter"])
            splits, more = draw_behaviours(whole, fields, objectives, seed)
        elif times is None:
            splits = {split: AtomicFile(files[split]) for split in SPLITS}
        else:
            whole = AtomicFile(files["inter"])
            _checked(whole, fields, ranked)
            splits, more = cut_behaviours(whole, times, fields, ranked)
        _check_categories(files["item"], distributions)
        counts = _write_files(temporary / name, splits, files, fields, ranked)
        write_recbole(temporary, _recbole_settings(name, fields))
        return {
            "format": FORMAT, "dataset": dataset, "protocol": protocol, "kind": protocol,
            "objectives": described(columns), "fields": asdict(fields), "counts": counts | more,
            "inputs": inputs, **described_times(times),
            **({"labels": named, "seed": seed} if drawn else {}),
        }  # fmt: skip

    return made_once(Path(prepared_path) / f"{dataset}-{protocol}-{key}", source, fill)


def _write_files(
    stem: Path, splits: Mapping[str, AtomicFile], files: Mapping[str, Path], fields: DataFields,
    objectives: Objectives,
) -> dict[str, Any]:  # fmt: skip
    """Every split, whole and per objective, users and items; how many there are of all."""
    tokens: dict[str, set[str]] = {"user": set(), "item": set()}
    rows_of: dict[str, int] = {}
    for split, file in splits.items():
        columns = _checked(file, fields, objectives)
        tokens["user"] |= set(columns[fields.user])
        tokens["item"] |= set(columns[fields.item])
        file.write(stem.with_name(f"{stem.name}.{split}.inter"))
        rows_of[split] = len(columns)
        for name in objectives:
            chosen = np.flatnonzero(columns[f"objective {name}"] == 1)
            if not len(chosen):
                raise DataError(
                    f"{file.path.name}: no row of {split} has '{objectives[name].label}' 1."
                )
            part = f"{split}_{name}"
            file.write(stem.with_name(f"{stem.name}.{part}.inter"), chosen.tolist())
            rows_of[part] = len(chosen)
    for side, field, features in (
        ("user", fields.user, fields.user_features),
        ("item", fields.item, fields.item_features),
    ):
        target = stem.with_name(f"{stem.name}.{side}")
        write_side(files[side], target, field, features, sorted(tokens[side]))
    return {"users": len(tokens["user"]), "items": len(tokens["item"]), "rows_of": rows_of}


def _check_categories(path: Path, distributions: Objectives) -> None:
    """The items say their categories, as tokens."""
    for name, objective in distributions.items():
        about, label = f"Objective '{name}' is over the field '{objective.label}'", objective.label
        if not path.is_file():
            raise DataError(f"{about} of items, and there is no file {path.name}.")
        file = AtomicFile(path)
        file.require(label)
        if not file.types[label].startswith("token"):
            raise DataError(
                f"{about}, whose type in {path.name} is '{file.types[label]}', no token."
            )


def _checked(file: AtomicFile, fields: DataFields, objectives: Objectives) -> pd.DataFrame:
    """Users, items and each objective's label, 0 or 1; a pair stands in one line."""
    columns = file.read([fields.user, fields.item])
    for side in (fields.user, fields.item):
        check_tokens(columns[side], side, file.path)
    frame = pd.DataFrame(columns)
    for name, objective in objectives.items():
        label = file.numbers(objective.label)
        wrong = np.flatnonzero((label != 0) & (label != 1))
        if len(wrong):
            raise DataError(
                f"{file.path.name}, line {wrong[0] + 2}: '{objective.label}' is {label[wrong[0]]:g}"
                f", and the label of objective '{name}' must be 0 or 1."
            )
        frame[f"objective {name}"] = label
    twice = frame[frame.duplicated([fields.user, fields.item])]
    if len(twice):
        row = twice.iloc[0]
        raise DataError(
            f"{file.path.name}, line {twice.index[0] + 2}: user '{row[fields.user]}' and item "
            f"'{row[fields.item]}' stand there twice ({len(twice)} duplicate rows)."
        )
    return frame


def _recbole_settings(name: str, fields: DataFields) -> dict[str, Any]:
    """What makes plain RecBole rank the union; no label is loaded, so none becomes an input."""
    return {
        "dataset": name,
        "benchmark_filename": list(SPLITS),
        "field_separator": "\t",
        "seq_separator": " ",
        "USER_ID_FIELD": fields.user,
        "ITEM_ID_FIELD": fields.item,
        "load_col": {
            "inter": [fields.user, fields.item],
            "user": [fields.user],
            "item": [fields.item],
        },
        "normalize_all": False,
        "threshold": None,
        "metrics": ["NDCG", "Recall", "MRR", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "eval_args": {"group_by": "user", "order": "RO", "mode": {"valid": "full", "test": "full"}},
    }


class Behaviours(PreparedFolder):
    """The folder of splits; ``open_behaviours`` caches it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        if self.description.get("kind") not in PROTOCOLS:
            raise DataError(f"{self.path} is no folder of splits with several behaviours.")
        where = str(self.path / "protocol.json")
        found = objectives_of(self.description["objectives"], where)
        self.objectives, self.distributions = by_kind(found)  # by name: ranked; of categories

    @cache  # noqa: B019 - a folder is read once and kept
    def rows(self, split: str) -> pd.DataFrame:
        """The columns user, item (tokens), and one per objective by its name, True or False."""
        file = AtomicFile(self.path / f"{self.name}.{split}.inter")
        wanted = file.read([self.fields.user, self.fields.item])
        frame = pd.DataFrame(
            {"user": wanted[self.fields.user], "item": wanted[self.fields.item]}, dtype=str
        )
        for name, objective in self.objectives.items():
            frame[name] = file.numbers(objective.label) == 1
        return frame

    def positives(self, split: str, objective: str) -> pd.DataFrame:
        """The pairs of a split that have the behaviour: user, item."""
        rows = self.rows(split)
        return rows.loc[rows[objective], ["user", "item"]]

    def known(self, split: str) -> pd.DataFrame:
        """The pairs of a split that have any behaviour: user, item."""
        rows = self.rows(split)
        return rows.loc[rows[list(self.objectives)].any(axis=1), ["user", "item"]]

    def novel(self, split: str, objective: str) -> pd.DataFrame:
        """The positives whose pair has no behaviour in train."""
        rows = self.positives(split, objective)
        return rows[~pairs_of(rows).isin(pairs_of(self.known("train")))]

    def tasks(self, split: str, objective: str) -> list[str]:
        """The users with a positive there, tokens ascending: who is judged."""
        return sorted(set(self.positives(split, objective)["user"]))

    def check_leaks(self) -> None:
        """Raise where a behaviour's pair stands in two splits, or a label would be an input."""
        for name in self.objectives:
            for one, other in combinations(SPLITS, 2):
                there = pairs_of(self.positives(one, name))
                known = there[there.isin(pairs_of(self.positives(other, name)))]
                if len(known):
                    raise LeakError(
                        f"{self.name}: {len(known)} pairs of objective '{name}' are in '{one}' and "
                        f"in '{other}', e.g. {known[0]!r}."
                    )
        self._check_inputs()

    def _check_inputs(self) -> None:
        loaded = load_yaml(self.path / "recbole.yaml")["load_col"]["inter"]
        labels = {objective.label: name for name, objective in self.objectives.items()}
        for field in loaded:
            if field in labels:
                raise LeakError(
                    f"{self.name}: '{field}', the label of objective '{labels[field]}', is loaded "
                    "from .inter and would become an input."
                )


def codes(
    rows: pd.DataFrame, users: Mapping[str, int], items: Mapping[str, int]
) -> tuple[Ints, Ints]:
    """The ids of users and items of each row."""
    user: Ints = np.asarray(rows["user"].map(users), dtype=np.int64)
    item: Ints = np.asarray(rows["item"].map(items), dtype=np.int64)
    return user, item


def open_behaviours(path: str | Path) -> Behaviours:
    """The folder, read, checked against its digests and for leaks, once in a process."""
    return _open(Path(path).resolve())


@cache
def _open(path: Path) -> Behaviours:
    behaviours = Behaviours(path)
    behaviours.check_leaks()
    return behaviours
