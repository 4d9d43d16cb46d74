r"""
MetaRidge
################################################
Reference:
    Adaptation in closed form, learned through: Bertinetto et al. "Meta-learning with
    differentiable closed-form solvers." ICLR 2019. arXiv:1805.08136
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_meta.data.negatives import among_all
from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.episode import Examples
from recbole_meta.inner_loop import softmax
from recbole_meta.model.meta_recommender import State, TrainedSettings
from recbole_meta.model.user_fields_recommender import UserFieldsRecommender
from recbole_meta.posterior import Posterior, observe, update, variance
from recbole_meta.settings import Positive, Size, Weight


@dataclass(frozen=True)
class MetaRidgeSettings(TrainedSettings):
    learn: Literal["head", "all"]  # the prior, the noise and the temperature | items, too
    base: Literal["pop", "query_pop"]  # where the items' means start
    embedding_size: Size  # d, directions kept
    noise: Positive  # where s2 starts, the variance of an entry around the user's mean
    temperature: Positive  # where t starts, of the softmax over all candidates
    anchor: Weight  # g, on how far the items are from their start
    user_fields: bool  # whether the prior's mean reads the data set's user features
    field_reg: Positive  # lambda of the ridge where it starts, in users


class MetaRidge(UserFieldsRecommender):
    r"""A newcomer is a Gaussian posterior over weights of items that were learned for it.

    .. math::
        w = \mu_u + D R_s' (R_s D R_s' + s^2 I)^{-1} (1 - q_s - R_s \mu_u), \qquad
        \mu_u = \mu + M' f_u, \qquad score_i = b_i + V_i w

    .. math::
        L = - mean_{i \in query} \log softmax(score / t)_i
            + g \sum_{\theta \in R, V, q, b} \|\theta - \theta_0\|^2 / \|\theta_0\|^2

    A support s is read by the vectors R and the means q [I], what is scored has vectors V and means
    b; the prior of a user's weights is N(\mu_u, D), D diagonal, f what his features say (none: M =
    0). All start where PriorRidge is (R = V = its vectors, q = p, b = base, \mu = 0, D = I) and are
    learned through the solve, from episodes that imitate the protocol. Without epochs and features
    it is PriorRidge with a base weight of 1. M starts at the ridge from F [U, D_f] of warm users to
    the weights that all they have says:

    .. math:: M_0 = (F'F + \lambda I)^{-1} F' (X - p) V (V'V + s^2 I)^{-1}

    A prior covariance A A' that is not diagonal says nothing new where items are learned, since
    R A and V A take its place; with ``learn: head`` it is diagonal in the directions of the start.
    """

    sides = ("user",)
    settings: MetaRidgeSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        n, d = self.n_others, self.settings.embedding_size
        self.read_vector, self.item_vector = (nn.Parameter(torch.zeros(n, d)) for _ in range(2))
        self.read_mean, self.item_mean = (nn.Parameter(torch.zeros(n)) for _ in range(2))
        self.prior_mean, self.log_prior = (nn.Parameter(torch.zeros(d)) for _ in range(2))
        start = torch.tensor([self.settings.noise, self.settings.temperature])
        self.log_noise, self.log_temperature = map(nn.Parameter, start.log())
        self.register_buffer("pool", torch.zeros(n, dtype=torch.bool))
        if self.settings.user_fields:
            size = self.read_users(dataset, "'user_fields'")
            self.field_map = nn.Parameter(torch.zeros(size, d))
        for items in self._items():
            items.requires_grad_(self.settings.learn == "all")

    @classmethod
    def reads_with(cls, settings: MetaRidgeSettings, feedback: str, side: str = "user") -> str:
        return "ids +user fields" if settings.user_fields else "ids"

    def _items(self) -> tuple[nn.Parameter, ...]:
        return self.read_vector, self.item_vector, self.read_mean, self.item_mean

    def prepare(self, train_data) -> None:
        warm = warm_users(train_data._dataset)
        v = torch.from_numpy(warm.directions[:, : self.settings.embedding_size].copy())
        base = warm.pop if self.settings.base == "pop" else warm.query_pop
        with torch.no_grad():
            for vectors in (self.read_vector, self.item_vector):
                vectors[:, : v.shape[1]] = v
            self.read_mean.copy_(torch.from_numpy(warm.pop))
            self.item_mean.copy_(torch.from_numpy(base))
            self.pool.copy_(torch.from_numpy(warm.pop > 0))
            if self.facts is not None:
                f = self.fit_users(warm)
                start = self._field_start(f.cpu().double().numpy(), warm)
                self.field_map.copy_(torch.from_numpy(start))
        self._start = [items.detach().clone() for items in self._items()]

    def _field_start(self, f: np.ndarray, warm: WarmUsers) -> np.ndarray:
        """M_0 [D_f, d]."""
        s, v = self.settings, self.item_vector.cpu().double().numpy()
        said = warm.matrix @ v - warm.pop @ v  # [U, d]
        weights = np.linalg.solve(v.T @ v + s.noise * np.eye(v.shape[1]), said.T).T
        return np.linalg.solve(f.T @ f + s.field_reg * np.eye(f.shape[1]), f.T @ weights)

    def expected(self, support: Examples) -> Tensor:
        """The mean of the prior of a user, [d]."""
        if self.facts is None:
            return self.prior_mean
        return self.prior_mean + support.task @ self.field_map

    def adapt(self, support: Examples) -> State:
        mean = self.expected(support)
        r = self.read_vector[support.x] * support.mask.unsqueeze(-1)  # [S, d]
        residual = (1 - self.read_mean[support.x]) * support.mask - r @ mean  # [S]
        spread = r * self.log_prior.exp()
        noise = self.log_noise.exp() * torch.eye(r.shape[0], dtype=r.dtype, device=r.device)
        factors = torch.linalg.lu_factor(spread @ r.T + noise)  # `solve` in two: can be exported
        solved = torch.linalg.lu_solve(*factors, residual.unsqueeze(-1)).squeeze(-1)
        return {"w": mean + spread.T @ solved}  # [d]

    def posterior(self, support: Examples) -> Posterior:
        """The whole posterior of a user's weights, whose mean is what ``adapt`` says."""
        prior = Posterior(self.expected(support), torch.diag(self.log_prior.exp()))
        r = self.read_vector[support.x] * support.mask.unsqueeze(-1)  # [S, d]
        values = (1 - self.read_mean[support.x]) * support.mask
        return observe(prior, r, values, self.log_noise.exp())

    def update(self, known: Posterior, item: Tensor) -> Posterior:
        """After one more item [] of the support."""
        value = 1 - self.read_mean[item]
        return update(known, self.read_vector[item], value, self.log_noise.exp())

    def variance(self, known: Posterior, x: Tensor) -> Tensor:
        """Of the scores of items x [N]: how little is known of them."""
        return variance(known, self.item_vector[x])

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.of_all(self.item_mean + self.item_vector @ state["w"], x)

    def loss(self, state: State, examples: Examples) -> Tensor:
        scores = self.score(state, examples.x) / self.log_temperature.exp()
        return softmax(scores, examples.label, examples.mask)

    def query(self, interaction: Interaction) -> tuple[Examples, bool]:
        query, _ = super().query(interaction)
        barred = interaction["barred_item"].to(self.device)
        return among_all(query, barred, self.pool, self.all_others), True

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        loss = super().calculate_loss(interaction)
        if self.settings.learn == "head":
            return loss
        far = [
            (items - start).square().sum() / start.square().sum()
            for items, start in zip(self._items(), self._start, strict=True)
        ]
        return loss + self.settings.anchor * torch.stack(far).sum()
