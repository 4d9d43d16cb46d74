r"""Fields of users and items as tensors, and their embedding into one vector per user or item.

Types of RecBole's fields: token (a category), token_seq (a set of categories: their mean), float
(standardised, times a vector) and float_seq (a linear map). What no warm user or item carries, the
ids of newcomers among it, is unknown: a zero vector, never an untrained one. A missing float reads
as the mean and a missing float_seq as zeros: so RecBole fills them.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from recbole.data.dataset import Dataset
from torch import Tensor, nn
from torch.nn.functional import embedding

from recbole_meta.errors import DataError, nearest


class Field(NamedTuple):
    """One field of all n users or items (row 0: padding), and how a newcomer's is read."""

    name: str
    kind: str  # token | token_seq | float | float_seq
    values: Tensor  # [n] or [n, L]; categories that are unknown or padding are 0
    size: int  # categories, 0 included; length of a float_seq
    tokens: tuple[str, ...] = ()  # of the categories, "" where it is unknown or padding
    mean: tuple[float, ...] = ()  # of a float, or of each entry of a float_seq, over the known
    deviation: tuple[float, ...] = ()  # 1 where it is none

    def unknown(self) -> Tensor:
        """What is said of who does not say it."""
        if self.kind == "token":
            return torch.tensor(0)
        if self.kind == "token_seq":
            return torch.zeros(1, dtype=torch.int64)
        return torch.tensor(0.0) if self.kind == "float" else torch.zeros(self.size)

    def read(self, value: Any) -> Tensor:
        """What a newcomer says of himself as a value of the field, [] or [L]."""
        if self.kind.startswith("token"):
            several = self.kind == "token_seq"
            if isinstance(value, list | tuple | set) != several:
                wanted = "a list of tokens" if several else "one token"
                raise DataError(f"Feature '{self.name}' must be {wanted}, found {value!r}.")
            named = [str(token) for token in value] if several else [str(value)]
            unknown = [token for token in named if token not in self.tokens or not token]
            if unknown:
                raise DataError(
                    f"Feature '{self.name}' is {unknown[0]!r}, which nobody had in training. "
                    f"{nearest(unknown[0], [token for token in self.tokens if token])}"
                )
            places = [self.tokens.index(token) for token in named]
            return torch.tensor(places or [0]) if several else torch.tensor(places[0])
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        if isinstance(value, list | tuple) != (self.kind == "float_seq"):
            numbers = []
        if len(numbers) != len(self.mean) or not all(_is_number(number) for number in numbers):
            wanted = f"{len(self.mean)} numbers" if self.kind == "float_seq" else "a number"
            raise DataError(f"Feature '{self.name}' must be {wanted}, found {value!r}.")
        scaled = [(x - m) / d for x, m, d in zip(numbers, self.mean, self.deviation, strict=True)]
        return torch.tensor(scaled if self.kind == "float_seq" else scaled[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


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
            tokens = zip(dataset.field2id_token[name], met.tolist(), strict=True)
            named = tuple(str(token) if there else "" for token, there in tokens)
            fields.append(Field(name, kind, values, dataset.num(name), named))
        else:
            fields.append(_standardised(name, kind, values.double(), known))
    return fields


def _standardised(name: str, kind: str, values: Tensor, known: Tensor) -> Field:
    """Mean 0 and deviation 1 over the known; row 0 is 0.

    In double precision the mean of equal singles is exact: a constant has deviation 0.
    """
    mean, deviation = values[known].mean(0), values[known].std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    scaled = (values - mean) / deviation
    scaled = torch.cat([torch.zeros_like(scaled[:1]), scaled[1:]]).to(torch.get_default_dtype())
    width = values.shape[1] if kind == "float_seq" else 1
    numbers = (tuple(part.reshape(-1).tolist()) for part in (mean, deviation))
    return Field(name, kind, scaled, width, (), *numbers)


def read_features(
    fields: Sequence[Field], features: Mapping[str, Any], side: str, id_field: str | None = None
) -> list[Tensor]:
    """The values of a newcomer, one of each field; what he does not say is unknown."""
    allowed = [field.name for field in fields if field.name != id_field]
    for name in features:
        if name not in allowed:
            raise DataError(f"No feature '{name}' of {side}s. {nearest(name, allowed)}")
    return [
        field.read(features[field.name]) if field.name in features else field.unknown()
        for field in fields
    ]


def indicators(fields: Sequence[Field], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[.., D]: 0/1 of each category (shares of a set) and the numbers, side by side; and [.., D]:
    1 where something is said, 0 where it is unknown.
    """
    pairs = [_indicators(*each) for each in zip(fields, values, strict=True)]
    found, known = zip(*pairs, strict=True)
    return torch.cat(found, dim=-1), torch.cat(known, dim=-1)


def _indicators(field: Field, values: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.get_default_dtype()
    if not field.kind.startswith("token"):
        numbers = values.unsqueeze(-1) if field.kind == "float" else values
        return numbers.to(kind), torch.ones_like(numbers, dtype=kind)
    categories = torch.arange(1, field.size, device=values.device)
    found = (values.unsqueeze(-1) == categories).to(kind)
    known = (values > 0).to(kind).unsqueeze(-1)  # [.., 1], or of a set [.., L, 1]
    if field.kind == "token_seq":
        number = known.sum(-2)
        found, known = found.sum(-2) / number.clamp(min=1), number.clamp(max=1)
    return found, known.expand(found.shape)


class FieldEmbedding(nn.Module):
    """[.., F d]: the embeddings of F fields side by side; nothing, [.., 0], without a field."""

    def __init__(
        self, fields: list[Field], embedding_size: int, std: float, keep: bool = True
    ) -> None:
        """``keep``: whether the values of all users or items are part of the state."""
        super().__init__()
        self.kinds = [field.kind for field in fields]
        self.size = len(fields) * embedding_size
        self.weights = nn.ParameterList()  # by place: a field may have any name
        for place, field in enumerate(fields):
            self.register_buffer(f"values_{place}", field.values, persistent=keep)
            weight = torch.randn(field.size, embedding_size) * std
            if field.kind.startswith("token"):
                weight[0] = 0
            self.weights.append(nn.Parameter(weight))

    def forward(self, ids: Tensor) -> Tensor:
        """What is known of these users or items [..]."""
        if not self.kinds:
            return torch.zeros(*ids.shape, 0, device=ids.device)
        return self.of([self.get_buffer(f"values_{n}")[ids] for n in range(len(self.kinds))])

    def of(self, values: Sequence[Tensor]) -> Tensor:
        """The same of users or items with these values, one of each field; there is a field."""
        return torch.cat([_embed(*each) for each in zip(self.kinds, values, self.weights)], dim=-1)


def _embed(kind: str, values: Tensor, weight: Tensor) -> Tensor:
    if kind.startswith("token"):
        vectors: Tensor = embedding(values, weight, padding_idx=0)
        if kind == "token":
            return vectors
        return vectors.sum(-2) / (values > 0).sum(-1, keepdim=True).clamp(min=1)
    return (values.unsqueeze(-1) if kind == "float" else values) @ weight
