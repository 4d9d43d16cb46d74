r"""
SupportMedian
################################################
The floor of ratings that knows the user, where the absolute error is judged.
"""

import torch
from torch import Tensor

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, State


class SupportMedian(MetaRecommender):
    """The median of the support's labels for every item; an empty support gives the Constant.

    The median of an even number is the mean of the two in the middle.
    """

    group = "floor"
    reads = "+ratings"
    feedback = ("rating", "label")
    reads_labels = True

    def prepare(self, train_data) -> None:
        self.keep("constant", warm_users(train_data._dataset).middle)

    def adapt(self, support: Examples) -> State:
        count = support.mask.sum().long()
        padded_last = support.label.where(support.mask > 0, torch.inf).sort().values  # [S]
        middle = torch.stack([(count - 1) // 2, count // 2]).clamp(min=0)
        return {"level": padded_last[middle].mean().where(count > 0, self.constant)}

    def score(self, state: State, x: Tensor) -> Tensor:
        return state["level"].repeat(len(x))
