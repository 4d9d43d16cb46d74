r"""
UserItemBias
################################################
Reference:
    Koren. "Factor in the neighbors: scalable and accurate collaborative filtering." TKDD 2010.
    Section 2.1, solved as the ridge regression instead of in one pass.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State

_SWEEPS = 30  # over items and warm users in turn


@dataclass(frozen=True)
class UserItemBiasSettings(MetaSettings):
    reg_item: float  # added to the number of an item's labels, > 0
    reg_user: float  # added to the number of a user's labels, > 0


class UserItemBias(MetaRecommender):
    r"""What is usual, for the item and for the user.

    .. math::
        b_i = \frac{\sum_u (r_{ui} - \mu - b_u)}{n_i + reg_{item}}, \qquad
        b_u = \frac{\sum_i (r_{ui} - \mu - b_i)}{n_u + reg_{user}}, \qquad
        score = \mu + b_u + b_i

    On warm rows both are solved for in turn: the ridge regression on users and items. A newcomer's
    :math:`b_u` is that of the support. Predictions of labels are kept within [0, 1].
    """

    group = "floor"
    reads = "+ratings"
    feedback = ("rating", "label")
    settings: UserItemBiasSettings

    def prepare(self, train_data) -> None:
        dataset = train_data._dataset
        warm = warm_users(dataset)
        labels = open_prepared(dataset.config["prepared"]).feedback == "label"
        self.keep("bounds", np.array([0, 1] if labels else [-np.inf, np.inf], dtype=np.float64))
        self.keep("usual", warm.target.mean() + self._item_bias(warm))  # [I]

    def _item_bias(self, warm: WarmUsers) -> np.ndarray:
        residual = warm.target - warm.target.mean()
        item_size = np.bincount(warm.item, minlength=warm.n_items) + self.settings.reg_item
        user_size = warm.length + self.settings.reg_user
        b_u = np.zeros(warm.n_users)
        for _ in range(_SWEEPS):
            b_i = np.bincount(warm.item, residual - b_u[warm.user], warm.n_items) / item_size
            b_u = np.bincount(warm.user, residual - b_i[warm.item], warm.n_users) / user_size
        return b_i

    def adapt(self, support: Examples) -> State:
        residual = (support.label - self.usual[support.x]) * support.mask  # [S]
        return {"bias": residual.sum() / (support.mask.sum() + self.settings.reg_user)}

    def score(self, state: State, x: Tensor) -> Tensor:
        return torch.clamp(self.usual[x] + state["bias"], self.bounds[0], self.bounds[1])
