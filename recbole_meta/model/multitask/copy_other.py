r"""
CopyOther
################################################
The floor of several behaviours: whoever clicked an item may buy it.
"""

import torch
from torch import Tensor

from recbole_meta.model.objective_recommender import ObjectiveRecommender, dense_rows, union


class CopyOther(ObjectiveRecommender):
    r"""Items that the user met under any behaviour first, then the others, each by popularity.

    .. math:: score_{ui} = p_i + (\max_j p_j + 1) \, [\, i \in \textstyle\bigcup_b X_{ub} \,]

    p: counts of the objective's own behaviour in train, as in ObjectivePop.
    """

    group = "floor"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.seen = union(self.history.values())

    def rank(self, users: Tensor, objective: str) -> Tensor:
        self.check_ranked(objective)
        count = torch.from_numpy(self.history[objective].sum(axis=0)).flatten()  # [I]
        count = count.to(users.device).float()
        return count + (count.max() + 1) * dense_rows(self.seen, users)
