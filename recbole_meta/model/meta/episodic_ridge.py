r"""
EpisodicRidge
################################################
A ridge regression across warm users, from what a prefix of their history says to what they did in
the query's position.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State
from recbole_meta.settings import Positive, Size


@dataclass(frozen=True)
class EpisodicRidgeSettings(MetaSettings):
    embedding_size: Size  # d, directions kept
    reg_weight: Positive  # lambda, of the ridge over warm users


class EpisodicRidge(MetaRecommender):
    r"""Episodes of warm users copy the deployment: first k rows -> rows in the query's position.

    .. math::
        z = (s - \bar s_k) V, \qquad
        B_k = (Z'Z + \lambda I)^{-1} Z'(Y - m), \qquad
        score = m + z B_k

    s: 0/1 of the first k rows, :math:`\bar s_k` its mean over warm users, V as in PriorRidge,
    Y: 0/1 of the query's position, m its mean (QueryPop). One B per k; a support of another size
    takes the nearest k. The state is z placed in the block of its k, so that all k are one product
    with the stacked B_k.
    """

    settings: EpisodicRidgeSettings

    def prepare(self, train_data) -> None:
        warm = warm_users(train_data._dataset)
        shots = [k for k in open_prepared(train_data._dataset.config["prepared"]).shots if k > 0]
        v = warm.directions[:, : self.settings.embedding_size]  # [I, d]
        fits = [self._fit(warm, v, k) for k in shots]
        means, maps = [mean for mean, _ in fits], [b for _, b in fits]
        d = v.shape[1]
        self.keep("item_vector", v.copy())
        self.keep("query_pop", warm.query_pop)
        self.keep("shots", np.array(shots, dtype=np.int64))
        self.keep("support_mean", np.array(means).reshape(-1, d))  # [K, d], already times V
        self.keep("map", np.concatenate([*maps, np.zeros((0, len(v)))]))  # [K d, I]

    def _fit(self, warm: WarmUsers, v: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        z = warm.window(0, k) @ v  # [U, d]
        mean = z.mean(axis=0)
        z = z - mean
        target = z.T @ warm.query - np.outer(z.sum(axis=0), warm.query_pop)  # [d, I]
        regularised = z.T @ z + self.settings.reg_weight * np.eye(v.shape[1])
        return mean, np.linalg.solve(regularised, target)

    def adapt(self, support: Examples) -> State:
        k = support.mask.sum()
        if not len(self.shots):
            return {"z": self.item_vector.new_zeros(0) * k}
        nearest = (self.shots - k).abs().argmin()
        block = (torch.arange(len(self.shots), device=k.device) == nearest) & (k > 0)  # [K]
        z = support.mask @ self.item_vector[support.x] - self.support_mean  # [K, d]
        return {"z": (block.unsqueeze(-1) * z).reshape(-1)}  # [K d]

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.of_all(self.query_pop + state["z"] @ self.map, x)
