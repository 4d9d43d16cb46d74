"""What is said of a newcomer in external tokens: lists, pairs and ratings of any Python make, read
as plain ones or refused by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from recbole_meta.episode import Examples
from recbole_meta.errors import DataError


def token_list(name: str, given: Iterable[Any]) -> list[str]:
    """Items or users by token, one string not being a list of them; ``name``: of the argument."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(f"'{name}' must be a list of tokens, found {given!r}.")
    return [str(token) for token in given]


def named_values(name: str, given: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Ratings or features by name, each a plain value; ``name``: how errors begin."""
    if given is not None and not isinstance(given, Mapping):
        raise DataError(f"{name} must be 'name: value' pairs, found {given!r}.")
    return {str(key): _plain(value) for key, value in (given or {}).items()}


def _plain(value: Any) -> Any:
    """A copy of Python's own types, where it is one value or a list of values."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, bool | int):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    return value


def support_of(said: Sequence[Mapping[int, float]]) -> Examples:
    """What T newcomers said as one padded set, each one's by item, so that the order is nothing."""
    shape = len(said), max(1, *map(len, said))
    x, label, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    for row, labels in enumerate(said):
        ids = sorted(labels)
        x[row, : len(ids)], label[row, : len(ids)] = ids, [labels[place] for place in ids]
        mask[row, : len(ids)] = 1
    kind = torch.get_default_dtype()
    return Examples(
        torch.from_numpy(x), torch.from_numpy(label).to(kind), torch.from_numpy(mask).to(kind),
        torch.zeros(len(said), dtype=torch.int64),
    )  # fmt: skip
