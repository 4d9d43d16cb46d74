r"""What the fields of items (or users) say of them as plain vectors.

A category is a column of 0 and 1, several at once where a field is a set; floats are standardised.
"""

from collections.abc import Sequence

import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_meta.data.facts import Facts, Read, StoredDataset, read_facts
from recbole_meta.data.features import Field
from recbole_meta.errors import DataError


def content_facts(dataset: Dataset | StoredDataset) -> Facts:
    """The facts of a rule that reads all fields of items, of which there must be one."""
    facts = read_facts(dataset, Read(item_fields=True))
    if not facts.item_fields:
        raise DataError(
            "The data set has no feature of items: name some in 'item_features' of its page."
        )
    return facts


def columns(fields: Sequence[Field], values: Sequence[Tensor]) -> Tensor:
    """C [.., D] of items with these values of each field, [..] or [.., L]; nothing said is 0."""
    return torch.cat([_columns(*each) for each in zip(fields, values, strict=True)], dim=-1)


def _columns(field: Field, values: Tensor) -> Tensor:
    rows = values if field.kind.endswith("_seq") else values.unsqueeze(-1)  # [.., L]
    if not field.kind.startswith("token"):
        return rows.to(torch.get_default_dtype())
    found = torch.zeros(*rows.shape[:-1], field.size, device=rows.device).scatter(-1, rows, 1.0)
    return found * (torch.arange(field.size, device=rows.device) > 0)  # 0: padding or unknown
