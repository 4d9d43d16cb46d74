r"""
ObjectiveRate
################################################
The floor of models of rows: no learning, shrunk rates of users and items, and counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_meta.model.row_recommender import RowRecommender, RowSettings
from recbole_meta.model.shrinkage import shrunk_shares
from recbole_meta.settings import Weight


@dataclass(frozen=True)
class ObjectiveRateSettings(RowSettings):
    reg_item: Weight  # rows of the mean that stand beside an item's
    reg_user: Weight  # beside a user's


class ObjectiveRate(RowRecommender):
    r"""Means of train, shrunk; rankings by counts.

    .. math::
        \hat y_{ui} = \mu + b_i + b_u, \qquad b_i = \frac{\sum_u (y_{ui} - \mu)}{n_i + \lambda_i},
        \qquad b_u = \frac{\sum_i (y_{ui} - \mu - b_i)}{n_u + \lambda_u}

    A probability is kept within [0.001, 0.999]. A distribution is the user's mean, shrunk by
    :math:`\lambda_u` rows of the mean. A binary objective ranks by the number of an item's
    positives, the same list for all.
    """

    group = "floor"
    settings: ObjectiveRateSettings

    def prepare(self, train_data) -> None:
        rows, s = train_data.rows, self.settings
        for name, objective in self.objectives.items():
            label = rows.labels[name].double().numpy()
            there = ~np.isnan(label if label.ndim == 1 else label[:, 0])
            user, item, label = rows.user[there], rows.item[there], label[there]
            if objective.type == "distribution":
                total = np.stack([np.bincount(user, c, self.n_users) for c in label.T], 1)
                count = np.bincount(user, minlength=self.n_users)
                self._keep(f"share_{name}", shrunk_shares(total, count, s.reg_user))
                continue
            mean = label.mean()
            of_item = _shrunk(item, label - mean, self.n_items, s.reg_item)
            of_user = _shrunk(user, label - mean - of_item[item], self.n_users, s.reg_user)
            self._keep(f"item_{name}", mean + of_item)
            self._keep(f"user_{name}", of_user)
            if objective.type == "binary":
                self._keep(f"count_{name}", np.bincount(item[label == 1], minlength=self.n_items))

    def _keep(self, name: str, value) -> None:
        self.register_buffer(name, torch.as_tensor(value, dtype=torch.get_default_dtype()))

    def outputs(self, users: Tensor, items: Tensor, names=None) -> dict[str, Tensor]:
        found = {}
        for name in self.objectives if names is None else names:
            objective = self.objectives[name]
            if objective.type == "distribution":
                found[name] = self.get_buffer(f"share_{name}")[users].clamp(min=1e-6).log()
                continue
            value = self.get_buffer(f"item_{name}")[items] + self.get_buffer(f"user_{name}")[users]
            binary = objective.type == "binary"
            found[name] = torch.logit(value.clamp(0.001, 0.999)) if binary else value
        return found

    def rank_all(self, users: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        counted = [name for name in names if self.objectives[name].type == "binary"]
        others = [name for name in names if name not in counted]
        found = super().rank_all(users, others) if others else {}
        size = len(users), -1
        return found | {n: self.get_buffer(f"count_{n}").expand(size) for n in counted}


def _shrunk(number: np.ndarray, value: np.ndarray, most: int, weight: float) -> np.ndarray:
    count = np.bincount(number, minlength=most) + weight
    return np.bincount(number, value, most) / np.where(count > 0, count, 1)
