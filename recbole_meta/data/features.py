r"""Fields of users and items as tensors, and their embedding into one vector per user or item.

Types of RecBole's fields: token (a category), token_seq (a set of categories: their mean), float
(standardised, times a vector) and float_seq (a linear map). What no warm user or item carries, the
ids of newcomers among it, is unknown: a zero vector, never an untrained one. A missing float reads
as the mean and a missing float_seq as zeros: so RecBole fills them.
"""

from typing import NamedTuple

import torch
from recbole.data.dataset import Dataset
from torch import Tensor, nn
from torch.nn.functional import embedding


class Field(NamedTuple):
    """One field of all n users or items (row 0: padding)."""

    name: str
    kind: str  # token | token_seq | float | float_seq
    values: Tensor  # [n] or [n, L]; categories that are unknown or padding are 0
    size: int  # categories, 0 included; length of a float_seq


def read_fields(
    dataset: Dataset, id_field: str, known: Tensor, with_id: bool, with_fields: bool
) -> list[Field]:
    """The fields of the user or item side, whose id is ``id_field``.

    ``known`` [n]: who is met in training; a category is known through one of them.
    """
    table = dataset.user_feat if id_field == dataset.uid_field else dataset.item_feat
    names = [id_field] if with_id else []
    if with_fields and table is not None:
        names += [name for name in table.columns if name != id_field]
    fields = []
    for name in names:
        kind = dataset.field2type[name].value
        if name == id_field:
            values = torch.arange(dataset.num(name))
        else:
            assert table is not None
            values = table[name]
        if kind.startswith("token"):
            met = torch.zeros(dataset.num(name), dtype=torch.bool)
            met[values[known]] = True
            met[0] = False
            values = torch.where(met[values], values, 0)
            fields.append(Field(name, kind, values, dataset.num(name)))
        else:
            values = _standardised(values.double(), known).to(torch.get_default_dtype())
            width = values.shape[1] if kind == "float_seq" else 1
            fields.append(Field(name, kind, values, width))
    return fields


def _standardised(values: Tensor, known: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the known; row 0 is 0.

    In double precision the mean of equal singles is exact: a constant has deviation 0.
    """
    mean, deviation = values[known].mean(0), values[known].std(0, correction=0)
    scaled = (values - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return torch.cat([torch.zeros_like(scaled[:1]), scaled[1:]])


class FieldEmbedding(nn.Module):
    """[.., F d]: the embeddings of F fields side by side; nothing, [.., 0], without a field."""

    def __init__(self, fields: list[Field], embedding_size: int, std: float) -> None:
        super().__init__()
        self.kinds = [field.kind for field in fields]
        self.size = len(fields) * embedding_size
        self.weights = nn.ParameterList()  # by place: a field may have any name
        for place, field in enumerate(fields):
            self.register_buffer(f"values_{place}", field.values)
            weight = torch.randn(field.size, embedding_size) * std
            if field.kind.startswith("token"):
                weight[0] = 0
            self.weights.append(nn.Parameter(weight))

    def forward(self, ids: Tensor) -> Tensor:
        """What is known of these users or items [..]."""
        parts = [
            _embed(kind, self.get_buffer(f"values_{place}")[ids], self.weights[place])
            for place, kind in enumerate(self.kinds)
        ]
        return torch.cat(parts, dim=-1) if parts else torch.zeros(*ids.shape, 0, device=ids.device)


def _embed(kind: str, values: Tensor, weight: Tensor) -> Tensor:
    if kind.startswith("token"):
        vectors: Tensor = embedding(values, weight, padding_idx=0)
        if kind == "token":
            return vectors
        return vectors.sum(-2) / (values > 0).sum(-1, keepdim=True).clamp(min=1)
    return (values.unsqueeze(-1) if kind == "float" else values) @ weight
