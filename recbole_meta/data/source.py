"""A data set as it was given: where its files are, and what their columns are."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_meta.data.atomic import MISSING, PADDING
from recbole_meta.errors import DataError, nearest
from recbole_meta.settings import load_properties, load_yaml, names, read_settings

_OTHER_KEYS = ("objectives", "behaviours", "times")  # of a page, read elsewhere


@dataclass(frozen=True)
class DataFields:
    """What the columns of a data set are; ``properties/dataset/<name>.yaml``."""

    user: str
    item: str
    rating: str | None
    time: str | None
    user_features: tuple[str, ...]
    item_features: tuple[str, ...]


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


def check_tokens(tokens: "pd.Series[str]", field: str, path: Path) -> None:
    """Every token must be one for RecBole, too."""
    bad = tokens.isin({*MISSING, PADDING}) | tokens.str.startswith('"')
    if bad.any():
        line = int(np.flatnonzero(bad.to_numpy())[0])
        token = tokens.iloc[line]
        why = f"is {token!r}, which RecBole cannot read as a token" if token else "is empty"
        raise DataError(f"{path.name}, line {line + 2}: '{field}' {why}.")
