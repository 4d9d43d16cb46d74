r"""
ContentRidge
################################################
Reference:
    Gantner et al. "Learning Attribute-to-Feature Mappings for Cold-Start Recommendations."
    ICDM 2010. The posterior given raters: as in PriorRidge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from recbole_meta.data.content import columns, content_facts
from recbole_meta.data.features import Field
from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State
from recbole_meta.settings import Positive, Size


@dataclass(frozen=True)
class ContentRidgeSettings(MetaSettings):
    embedding_size: Size  # d, directions kept
    reg_weight: Positive  # lambda, of the ridge from content, in items
    noise: Positive  # s2, the variance of a rater around what content says


class ContentRidge(MetaRecommender):
    r"""Content says what an item's factors are before anybody rated it; raters correct it.

    .. math::
        X - p = U S V', \qquad V_u = (V S)_u / \sqrt{n}, \qquad
        W = \sqrt{n} \, U, \qquad B = (C'C + \lambda I)^{-1} C'W

    .. math::
        w = c B + D V_s' (V_s D V_s' + s^2 I)^{-1} (1 - p_s - V_s B' c'), \qquad
        score_u = p_u + V_u w

    X: 0/1 rows of the n warm items over users, p their mean, c: the item's fields as a vector and a
    1, D: the mean square of what is left of each column of W, diagonal; s: the raters.
    """

    group = "floor"
    reads = "ids +item fields"
    sides = ("item",)
    settings: ContentRidgeSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.facts = content_facts(dataset)
        values = [field.values for field in self.facts.item_fields]
        self.register_buffer("content", self._content(values), persistent=False)  # [I, D + 1]

    def prepare(self, train_data) -> None:
        dataset = train_data._dataset
        warm = warm_users(dataset)
        v = warm.directions[:, : self.settings.embedding_size]  # [U, d]
        square = np.maximum((v**2).sum(axis=0), 1e-12)
        factors = (warm.matrix @ v - warm.pop @ v) / square  # [n, d]
        c = self.content.cpu().double().numpy()[warm.ids]  # [n, D + 1]
        normal = c.T @ c + self.settings.reg_weight * np.eye(c.shape[1])
        weight = np.linalg.solve(normal, c.T @ factors)  # [D + 1, d]
        self.keep("pop", warm.pop)
        self.keep("user_vector", v.copy())
        self.keep("weight", weight)
        self.keep("open", ((factors - c @ weight) ** 2).mean(axis=0))  # [d]

    @property
    def task_fields(self) -> list[Field]:
        return self.facts.item_fields

    def _content(self, values: Sequence[Tensor]) -> Tensor:
        """c [.., D + 1]."""
        return pad(columns(self.task_fields, values), (0, 1), value=1.0)

    def encode_values(self, values: Sequence[Tensor]) -> Tensor:
        return self._content(values) @ self.weight  # c B, [.., d]

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        return (self.content @ self.weight)[tasks]

    def adapt(self, support: Examples) -> State:
        v = self.user_vector[support.x] * support.mask.unsqueeze(-1)  # [S, d]
        residual = (1 - self.pop[support.x]) * support.mask - v @ support.task  # [S]
        spread = v * self.open
        noise = self.settings.noise * torch.eye(v.shape[0], dtype=v.dtype, device=v.device)
        factors = torch.linalg.lu_factor(spread @ v.T + noise)  # in two: it can be exported
        correction = torch.linalg.lu_solve(*factors, residual.unsqueeze(-1)).squeeze(-1)
        return {"w": support.task + spread.T @ correction}  # [d]

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.of_all(self.pop + self.user_vector @ state["w"], x)
