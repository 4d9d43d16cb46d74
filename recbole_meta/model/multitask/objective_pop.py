r"""
ObjectivePop
################################################
The floor of popularity, per objective.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_meta.model.objective_recommender import ObjectiveRecommender, ObjectiveSettings
from recbole_meta.model.shrinkage import shrunk_shares
from recbole_meta.settings import Weight


@dataclass(frozen=True)
class ObjectivePopSettings(ObjectiveSettings):
    reg_user: Weight  # items of the mean that stand beside a user's, in a distribution


class ObjectivePop(ObjectiveRecommender):
    """How many users have the item under the objective's own behaviour in train.

    A distribution over categories is the mean of the user's items in train, shrunk by ``reg_user``
    items of the mean (``shrunk_shares``), as in ObjectiveRate.
    """

    group = "floor"
    distributes = True
    settings: ObjectivePopSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for name in self.distributions:
            total, count = self.interests(name)
            share = shrunk_shares(total, count, self.settings.reg_user)
            share = torch.as_tensor(share, dtype=torch.get_default_dtype())
            self.register_buffer(f"share_{name}", share)

    def rank(self, users: Tensor, objective: str) -> Tensor:
        if objective in self.distributions:
            return self.expected_share(users, objective)
        count = torch.from_numpy(self.history[objective].sum(axis=0)).flatten()  # [I]
        return count.to(users.device).float().repeat(len(users), 1)

    def distribution(self, users: Tensor, objective: str) -> Tensor:
        return self.get_buffer(f"share_{objective}")[users]
