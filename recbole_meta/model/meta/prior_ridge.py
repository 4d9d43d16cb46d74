r"""
PriorRidge
################################################
Reference:
    Tipping and Bishop. "Probabilistic Principal Component Analysis." JRSS B 1999.
    Closed-form adaptation: Bertinetto et al. "Meta-learning with differentiable closed-form
    solvers." ICLR 2019. arXiv:1805.08136
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State
from recbole_meta.settings import Positive, Size, Weight


@dataclass(frozen=True)
class PriorRidgeSettings(MetaSettings):
    base: Literal["pop", "query_pop"]  # what a newcomer without support gets
    base_weight: Weight  # b, on the base in the score
    embedding_size: Size  # d, directions kept
    noise: Positive  # s2, the variance of an entry around the user's mean


class PriorRidge(MetaRecommender):
    r"""Gaussian weights of a user over warm users' principal directions, given the support.

    .. math::
        X - p = U S V', \qquad V_i = (V S)_i / \sqrt{n}, \qquad
        w = V_s' (V_s V_s' + s^2 I)^{-1} (1 - p_s), \qquad score_i = b \, base_i + V_i w

    X: warm users' 0/1 rows, p their mean. The dual solve is of the size of the support; padded rows
    are zero rows of V and of the residual, so they change nothing.
    """

    settings: PriorRidgeSettings

    def prepare(self, train_data) -> None:
        warm = warm_users(train_data._dataset)
        self.keep("pop", warm.pop)
        self.keep("base", warm.pop if self.settings.base == "pop" else warm.query_pop)
        self.keep("item_vector", warm.directions[:, : self.settings.embedding_size].copy())

    def adapt(self, support: Examples) -> State:
        v = self.item_vector[support.x] * support.mask.unsqueeze(-1)  # [S, d]
        residual = (1 - self.pop[support.x]) * support.mask  # [S]
        noise = self.settings.noise * torch.eye(v.shape[0], dtype=v.dtype, device=v.device)
        factors = torch.linalg.lu_factor(v @ v.T + noise)  # `solve` in two, which can be exported
        return {"w": v.T @ torch.linalg.lu_solve(*factors, residual.unsqueeze(-1)).squeeze(-1)}

    def score(self, state: State, x: Tensor) -> Tensor:
        scores = self.settings.base_weight * self.base + self.item_vector @ state["w"]  # [I]
        return self.of_all(scores, x)
