r"""
UserItemBias
################################################
Reference:
    Koren. "Factor in the neighbors: scalable and accurate collaborative filtering." TKDD 2010.
    Section 2.1; solved exactly instead of in one pass.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg
from torch import Tensor

from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State
from recbole_meta.settings import Positive


@dataclass(frozen=True)
class UserItemBiasSettings(MetaSettings):
    reg_item: Positive  # added to the number of an item's labels
    reg_user: Positive  # added to the number of a user's labels


class UserItemBias(MetaRecommender):
    r"""What is usual, for the item and for the user.

    .. math::
        b_i = \frac{\sum_u (r_{ui} - \mu - b_u)}{n_i + reg_{item}}, \qquad
        b_u = \frac{\sum_i (r_{ui} - \mu - b_i)}{n_u + reg_{user}}, \qquad
        score = \mu + b_u + b_i

    On warm rows both are solved for together: the ridge regression on users and items. A newcomer's
    :math:`b_u` is that of the support. Predictions of labels are kept within [0, 1].
    """

    group = "floor"
    reads = "+ratings"
    feedback = ("rating", "label")
    reads_labels = True
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
        size = np.concatenate([warm.length + self.settings.reg_user, item_size])  # [U + I]
        x = warm.matrix
        normal = sparse.bmat([[None, x], [x.T, None]]) + sparse.diags(size)
        sums = np.concatenate([
            np.bincount(warm.user, residual, warm.n_users),
            np.bincount(warm.item, residual, warm.n_items),
        ])  # fmt: skip
        both, _ = cg(normal, sums, rtol=1e-8, M=sparse.diags(1 / size))
        return both[warm.n_users :]

    def adapt(self, support: Examples) -> State:
        residual = (support.label - self.usual[support.x]) * support.mask  # [S]
        return {"bias": residual.sum() / (support.mask.sum() + self.settings.reg_user)}

    def score(self, state: State, x: Tensor) -> Tensor:
        return torch.clamp(self.usual[x] + state["bias"], self.bounds[0], self.bounds[1])
