r"""
Random
################################################
The floor of chance. Metrics are expectations over ties, so equal scores give what random orders
give in the mean.
"""

import torch
from torch import Tensor

from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, State


class Random(MetaRecommender):
    """Every item scores zero: the exact expectation of a random order."""

    group = "floor"

    def adapt(self, support: Examples) -> State:
        return {"shots": support.mask.sum()}

    def score(self, state: State, x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=state["shots"].dtype)
