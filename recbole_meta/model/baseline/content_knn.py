r"""
ContentKNN
################################################
Reference:
    Item-item similarity of content: Pazzani and Billsus. "Content-Based Recommendation Systems."
    The Adaptive Web 2007.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_meta.data.content import columns, content_facts
from recbole_meta.data.warm import Floats, warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State
from recbole_meta.settings import Size


@dataclass(frozen=True)
class ContentKNNSettings(MetaSettings):
    neighbours: Size  # most similar warm items of each item


class ContentKNN(MetaRecommender):
    r"""What was liked by whom, carried over to items of like content.

    .. math::
        W_{ij} = \max(0, cos(c_i - \bar c, c_j - \bar c)), \qquad
        score_{ui} = \sum_{j \in N(i)} W_{ij} X_{uj} / \sum_{j \in N(i)} W_{ij}

    c: the item's fields as a vector, :math:`\bar c` its mean over warm items, N(i) the most similar
    warm items, X: 0/1 of the rows. Where items are tasks the sum is over all warm rows of a user,
    and an item's raters are not read; where users are tasks it is over the support.
    """

    group = "floor"
    reads = "ids +item fields"
    newcomers = ("user",)  # of items it would have to keep who rated which
    settings: ContentKNNSettings

    def prepare(self, train_data) -> None:
        dataset = train_data._dataset
        warm = warm_users(dataset)
        met = warm.ids if self.side == "item" else np.unique(warm.item)
        fields = content_facts(dataset).item_fields
        content = columns(fields, [field.values for field in fields]).double().numpy()
        content = content[:, content[met].any(axis=0)]  # [I, D]
        weight = _neighbours(content, met, self.settings.neighbours)  # [I, I]
        if self.side == "item":
            self.keep("column", weight[:, met] @ warm.matrix)  # [I, U]
        else:
            self.keep("weight", weight)

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        return self.column[tasks] if self.side == "item" else tasks

    def encode_new_others(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        raise DataError("ContentKNN ranks the items and users of its data only.")

    def adapt(self, support: Examples) -> State:
        if self.side == "item":
            return {"score": support.task}  # [U]
        return {"score": torch.einsum("s,is->i", support.mask, self.weight[:, support.x])}  # [I]

    def score(self, state: State, x: Tensor) -> Tensor:
        return state["score"][x]


def _neighbours(content: Floats, met: np.ndarray, size: int) -> Floats:
    """W [I, I], each row's sum 1 or 0; other columns than those of ``met`` are 0."""
    centred = content - content[met].mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    weight = np.zeros((len(content), len(content)))
    weight[:, met] = np.maximum(centred @ centred[met].T, 0)
    np.fill_diagonal(weight, 0)
    keep = min(size, len(met))
    least = np.partition(weight, -keep, axis=1)[:, -keep, None]
    weight = np.where(weight >= least - 1e-9, weight, 0)  # ties stay together
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
