r"""What the fields of items (or users) say of them as plain vectors, one row each.

A category is a column of 0 and 1, several at once where a field is a set; floats are standardised.
What nobody in training carries is no column.
"""

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset

from recbole_meta.data.features import Field, read_fields
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import warm_users
from recbole_meta.errors import DataError

Floats = npt.NDArray[np.float64]


def item_content(dataset: Dataset) -> Floats:
    """C [n_items, D] of a training dataset; row 0, the padding, is 0."""
    prepared = open_prepared(dataset.config["prepared"])
    warm = warm_users(dataset)
    known = torch.zeros(dataset.item_num, dtype=torch.bool)
    known[torch.from_numpy(warm.ids if prepared.side == "item" else warm.item)] = True
    fields = read_fields(dataset, dataset.iid_field, known, with_id=False, with_fields=True)
    if not fields:
        raise DataError(
            f"{prepared.name} has no feature of items: name some in 'item_features' of the data "
            "set's page."
        )
    content = np.concatenate([_columns(field) for field in fields], axis=1)
    content[0] = 0
    return content[:, content[known.numpy()].any(axis=0)]


def _columns(field: Field) -> Floats:
    values = field.values.numpy()
    if not field.kind.startswith("token"):
        return values.reshape(len(values), -1).astype(np.float64)
    columns = np.zeros((len(values), field.size))
    np.put_along_axis(columns, values.reshape(len(values), -1), 1, axis=1)
    columns[:, 0] = 0  # padding, or a category that training never met
    return columns
