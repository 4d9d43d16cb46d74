"""A protocol and atomic files become a prepared folder: made once, addressed by content, written
whole or not at all.

The folder's name ends with eight digits of a hash over the sources' bytes and all settings: the
same inputs and settings give the same bytes, and no work is done twice, by two processes at once
neither. Rows are copied verbatim from the source; a user's rows stand in the protocol's order.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole_meta.data.folders import FORMAT, made_once, sha256, write_recbole, write_side
from recbole_meta.data.items import BothCold, ItemCold
from recbole_meta.data.protocol import (
    ColdStart,
    Split,
    UserColdCurve,
    UserColdGlobal,
    UserColdK,
    UserColdRange,
)
from recbole_meta.data.rows import LABEL, read_rows, with_states
from recbole_meta.data.source import DataFields, find_dataset, read_fields
from recbole_meta.data.states import FourStates
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.settings import load_properties, read_settings

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


def read_protocol(name: str, **settings: Any) -> ColdStart:
    """The protocol of ``properties/protocol/<name>.yaml`` with some settings changed."""
    values = load_properties("protocol", name) | settings
    kind = str(values.pop("kind", None))
    if kind not in PROTOCOLS:
        raise SettingError(f"Protocol '{name}': unknown kind '{kind}'. {nearest(kind, PROTOCOLS)}")
    return read_settings(PROTOCOLS[kind], values, f"Protocol '{name}'")


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


def content_key(
    dataset: str, protocol: ColdStart, fields: DataFields, inputs: dict[str, str]
) -> str:
    """Eight hex digits over everything that the folder's bytes depend on."""
    settings = [FORMAT, dataset, protocol.kind, asdict(protocol), asdict(fields), inputs]
    return sha256(json.dumps(settings, sort_keys=True).encode())[:8]


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
        rows = with_states(rows, protocol, fields, files, tokens)
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
