r"""
ObjectivePop
################################################
The floor of popularity, per objective.
"""

import torch
from torch import Tensor

from recbole_meta.model.objective_recommender import ObjectiveRecommender


class ObjectivePop(ObjectiveRecommender):
    """How many users have the item under the objective's own behaviour in train."""

    group = "floor"

    def rank(self, users: Tensor, objective: str) -> Tensor:
        count = torch.from_numpy(self.history[objective].sum(axis=0)).flatten()  # [I]
        return count.to(users.device).float().repeat(len(users), 1)
