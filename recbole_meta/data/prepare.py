"""A protocol and atomic files become a prepared folder: made once, addressed by content, written
whole or not at all.

The folder's name ends with eight digits of a hash over the sources' bytes and all settings: the
same inputs and settings give the same bytes, and no work is done twice, by two processes at once
neither. Rows are copied verbatim from the source; a user's rows stand in the protocol's order.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock

from recbole_meta.data.atomic import MISSING, PADDING, AtomicFile, write_file
from recbole_meta.data.items import BothCold, ItemCold
from recbole_meta.data.protocol import (
    ColdStart,
    Floats,
    Ints,
    Rows,
    Split,
    UserColdCurve,
    UserColdGlobal,
    UserColdK,
    UserColdRange,
)
from recbole_meta.data.states import FourStates
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.settings import load_properties, load_yaml, names, read_settings

_log = logging.getLogger(__name__)

FORMAT = 1
PROTOCOLS: dict[str, type[ColdStart]] = {
    cls.kind: cls
    for cls in (
        UserColdK,
        UserColdRange,
        UserColdCurve,
        UserColdGlobal,
        FourStates,
        ItemCold,
        BothCold,
    )
}
LABEL = "label"
_COMMENT = "# Plain RecBole: config_file_list [this file], data_path: the parent of this folder.\n"


@dataclass(frozen=True)
class DataFields:
    """What the columns of a data set are; ``properties/dataset/<name>.yaml``."""

    user: str
    item: str
    rating: str | None
    time: str | None
    user_features: tuple[str, ...]
    item_features: tuple[str, ...]


def read_protocol(name: str, **settings: Any) -> ColdStart:
    """The protocol of ``properties/protocol/<name>.yaml`` with some settings changed."""
    values = load_properties("protocol", name) | settings
    kind = str(values.pop("kind", None))
    if kind not in PROTOCOLS:
        raise SettingError(f"Protocol '{name}': unknown kind '{kind}'. {nearest(kind, PROTOCOLS)}")
    return read_settings(PROTOCOLS[kind], values, f"Protocol '{name}'")


_OTHER_KEYS = ("objectives", "behaviours", "times")  # of a page, read elsewhere


def read_fields(dataset: str, source: Path | None = None) -> DataFields:
    """``<dataset>.yaml`` beside the data, else the page of ``properties``, else ``default.yaml``;
    what a page does not say is as in ``default.yaml``.
    """
    values, where = read_page(dataset, source)
    values = {key: value for key, value in values.items() if key not in _OTHER_KEYS}
    return read_settings(DataFields, load_properties("dataset", "default") | values, where)


def read_page(dataset: str, source: Path | None = None) -> tuple[dict[str, Any], str]:
    """What the page of a data set says, and which one that is, as an error names it."""
    beside = source / f"{dataset}.yaml" if source else None
    if beside is not None and beside.is_file():
        return load_yaml(beside), str(beside)
    page = dataset if dataset in names("dataset") else "default"
    return load_properties("dataset", page), f"Data set page '{page}'"


def find_dataset(dataset: str, data_path: str | Path) -> Path:
    """The folder with ``<dataset>.inter``: below ``data_path``, or RecBole's own ml-100k."""
    for root in _roots(data_path):
        if (root / dataset / f"{dataset}.inter").is_file():
            return root / dataset
    raise DataError(
        f"No file {dataset}.inter in {Path(data_path) / dataset}. "
        f"{nearest(dataset, dataset_names(data_path))} 'data_path' says where the data sets are."
    )


def dataset_names(data_path: str | Path) -> list[str]:
    """What `find_dataset` finds, sorted."""
    files = [path for root in _roots(data_path) for path in root.glob("*/*.inter")]
    return sorted({path.stem for path in files if path.stem == path.parent.name})


def _roots(data_path: str | Path) -> list[Path]:
    spec = find_spec("recbole")
    shipped = spec.submodule_search_locations if spec else None
    return [Path(data_path), *(Path(folder) / "dataset_example" for folder in shipped or ())]


def prepare(
    dataset: str,
    protocol: ColdStart,
    protocol_name: str,
    data_path: str | Path = "dataset",
    prepared_path: str | Path = "dataset/prepared",
) -> Path:
    """The prepared folder of (data set, protocol), made if it is not there yet."""
    source = find_dataset(dataset, data_path)
    fields = read_fields(dataset, source)
    named = {side: f"{dataset}.{side}" for side in ("inter", "user", "item")}
    if isinstance(protocol, FourStates):
        given = {"user_split": protocol.user_split, "item_split": protocol.item_split}
        named |= {side: name for side, name in given.items() if name is not None}
    files = {side: source / name for side, name in named.items()}
    try:
        inputs = {
            name: sha256(files[side].read_bytes())
            for side, name in named.items()
            if files[side].is_file()
        }
    except OSError as error:
        raise DataError(f"Cannot read the data set {source}: {error}") from error
    key = content_key(dataset, protocol, fields, inputs)
    folder = Path(prepared_path) / f"{dataset}-{protocol_name}-{key}"

    def fill(name: str, temporary: Path) -> dict[str, Any]:
        return _fill(temporary / name, dataset, protocol_name, protocol, fields, files, inputs)

    return made_once(folder, source, fill)


Fill = Callable[[str, Path], dict[str, Any]]


def made_once(folder: Path, source: Path, fill: Fill) -> Path:
    """The folder, made by ``fill`` if it is not there yet; one process at a time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            there = (folder / "protocol.json").is_file()
            if not there:
                _write_whole(folder, fill)
            _log.info("%s: prepared folder %s %s", source, folder, "found" if there else "made")
    except OSError as error:
        raise DataError(f"Cannot write the prepared folder {folder}: {error}") from error
    return folder


def content_key(
    dataset: str, protocol: ColdStart, fields: DataFields, inputs: dict[str, str]
) -> str:
    """Eight hex digits over everything that the folder's bytes depend on."""
    settings = [FORMAT, dataset, protocol.kind, asdict(protocol), asdict(fields), inputs]
    return sha256(json.dumps(settings, sort_keys=True).encode())[:8]


def sha256(content: bytes) -> str:
    """The hex digest."""
    return hashlib.sha256(content).hexdigest()


def digest(description: dict[str, Any]) -> str:
    """The digest of ``protocol.json`` without its own entry 'sha256'."""
    body = {key: value for key, value in description.items() if key != "sha256"}
    return sha256(json.dumps(body, sort_keys=True).encode())


def _write_whole(folder: Path, fill: Fill) -> None:
    """Everything in a temporary folder beside, then one rename; nothing stays after an error.

    ``fill(name, temporary)`` writes the files and returns what ``protocol.json`` says of them.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        description = fill(folder.name, temporary)
        outputs = {p.name.removeprefix(folder.name): p for p in sorted(temporary.iterdir())}
        description["outputs"] = {name: sha256(p.read_bytes()) for name, p in outputs.items()}
        description["sha256"] = digest(description)
        write_file(temporary / "protocol.json", json.dumps(description, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # a folder without protocol.json is no folder
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    stem: Path,
    dataset: str,
    protocol_name: str,
    protocol: ColdStart,
    fields: DataFields,
    files: dict[str, Path],
    inputs: dict[str, str],
) -> dict[str, Any]:
    """The files of a protocol; what ``protocol.json`` says of them."""
    inter, rows, tokens = read_rows(files["inter"], protocol, fields)
    if isinstance(protocol, FourStates):
        rows = _with_states(rows, protocol, fields, files, tokens)
    split = protocol.apply(rows)
    for name, chosen in split.files.items():
        inter.write(stem.with_name(f"{stem.name}.{name}.inter"), chosen.tolist())
    for side, field, features in (
        ("user", fields.user, fields.user_features),
        ("item", fields.item, fields.item_features),
    ):
        target = stem.with_name(f"{stem.name}.{side}")
        write_side(files[side], target, field, features, tokens[side])
    write_recbole(stem.parent, recbole_settings(stem.name, protocol, fields, files))
    return _describe(
        dataset, protocol_name, protocol, fields, split, tokens, inputs, len(rows.user)
    )


def write_recbole(folder: Path, settings: dict[str, Any]) -> None:
    """``recbole.yaml``, which makes plain RecBole read the folder."""
    write_file(folder / "recbole.yaml", _COMMENT + yaml.safe_dump(settings, sort_keys=False))


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


def _with_states(
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


def check_tokens(tokens: "pd.Series[str]", field: str, path: Path) -> None:
    """Every token must be one for RecBole, too."""
    bad = tokens.isin({*MISSING, PADDING}) | tokens.str.startswith('"')
    if bad.any():
        line = int(np.flatnonzero(bad.to_numpy())[0])
        token = tokens.iloc[line]
        why = f"is {token!r}, which RecBole cannot read as a token" if token else "is empty"
        raise DataError(f"{path.name}, line {line + 2}: '{field}' {why}.")


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


def write_side(
    source: Path, target: Path, field: str, features: Sequence[str], tokens: list[str]
) -> None:
    """The lines of these users or items by token; a line of blanks where none is known."""
    if not source.is_file():
        write_file(target, "\n".join([f"{field}:token", *tokens]) + "\n")
        return
    file = AtomicFile(source)
    known: dict[str, int] = {}
    for row, token in enumerate(file.read([field])[field]):
        first = known.setdefault(token, row)
        if file.lines[first] != file.lines[row]:
            raise DataError(
                f"{source.name}: '{field}' is '{token}' in line {first + 2} and in line {row + 2}, "
                "and they differ."
            )
    for feature in features:
        file.check_feature(feature)
    place = file.columns.index(field)
    blanks = ["" for _ in file.columns]
    lines = []
    for token in tokens:
        if token in known:
            lines.append(file.lines[known[token]])
        else:
            lines.append("\t".join(blanks[:place] + [token] + blanks[place + 1 :]))
    file.lines = lines
    file.write(target)


def recbole_settings(
    name: str, protocol: ColdStart, fields: DataFields, files: dict[str, Path]
) -> dict[str, Any]:
    """What makes plain RecBole read the folder: columns, files, no filter, no normalisation."""
    k = protocol.support_sizes[-1]
    train = "train" if isinstance(protocol, UserColdK) else f"train_{k}"
    target = {"implicit": None, "rating": fields.rating, "label": LABEL}[protocol.feedback]
    load_col = {"inter": [fields.user, fields.item, *([target] if target else [])]}
    for side, field, features in (
        ("user", fields.user, fields.user_features),
        ("item", fields.item, fields.item_features),
    ):
        load_col[side] = [field]
        if files[side].is_file():
            load_col[side] += features
    settings: dict[str, Any] = {
        "dataset": name,
        "benchmark_filename": [train, "valid", "test"],
        "field_separator": "\t",
        "seq_separator": " ",
        "USER_ID_FIELD": fields.user,
        "ITEM_ID_FIELD": fields.item,
        "RATING_FIELD": fields.rating or "rating",
        "TIME_FIELD": fields.time or "timestamp",
        "load_col": load_col,
        "normalize_all": False,
        "threshold": None,
        "metrics": ["NDCG", "Recall", "MRR", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "eval_args": {"group_by": "user", "order": "RO", "mode": {"valid": "full", "test": "full"}},
    }
    if protocol.feedback != "implicit":
        value = {"rating": ["MAE", "RMSE"], "label": ["AUC", "LogLoss"]}[protocol.feedback]
        mode = {"valid": "labeled", "test": "labeled"}
        settings |= {
            "LABEL_FIELD": target,
            "train_neg_sample_args": None,
            "metrics": value,
            "valid_metric": value[0],
            "eval_args": {"group_by": "user", "order": "RO", "mode": mode},
        }
    return settings


def _describe(
    dataset: str,
    protocol_name: str,
    protocol: ColdStart,
    fields: DataFields,
    split: Split,
    tokens: dict[str, list[str]],
    inputs: dict[str, str],
    n_rows: int,
) -> dict[str, Any]:
    """``protocol.json`` without its digests: what was made of what, and who is cold."""
    described: dict[str, Any] = {
        "format": FORMAT,
        "dataset": dataset,
        "protocol": protocol_name,
        "kind": protocol.kind,
        "settings": asdict(protocol),
        "fields": asdict(fields),
        "task": protocol.task,
        "shots": list(protocol.support_sizes),
        "query_start": protocol.query_start,
        "horizon": protocol.query_horizon,
        "held_out": protocol.held_out,
        "candidates": protocol.candidates,
        "train": split.train,
        "cut": split.cut,
        "counts": {
            "rows": n_rows,
            "users": len(tokens["user"]),
            "items": len(tokens["item"]),
            f"eligible_{protocol.task}s": split.eligible,
            "rows_of": {name: len(rows) for name, rows in split.files.items()},
        },
        "tasks": {
            phase: [tokens[protocol.task][task] for task in tasks]
            for phase, tasks in split.tasks.items()
        },
        "inputs": inputs,
    }
    if split.cold_items:
        described["cold_items"] = {
            phase: [tokens["item"][item] for item in items]
            for phase, items in split.cold_items.items()
        }
    return described
