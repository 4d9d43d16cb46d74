r"""
InContext
################################################
Reference:
    Garg et al. "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes."
    NeurIPS 2022. arXiv:2208.01066; Müller et al. "Transformers Can Do Bayesian Inference." ICLR
    2022. arXiv:2112.10510; attention of the query to the support: Kim et al. "Attentive Neural
    Processes." ICLR 2019. arXiv:1901.05761
"""

from dataclasses import dataclass
from typing import Literal

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import pad

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import SettingError
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State, joined
from recbole_meta.model.transformer import Norm, SelfAttention, attention
from recbole_meta.settings import Count, Positive, Share, Size, Weight


@dataclass(frozen=True)
class InContextSettings(LearnerSettings):
    start: Literal["directions", "random"]  # of the ids' embeddings
    base: Literal["pop", "query_pop"]  # where the items' means start, of a ranking
    closed_form: bool  # whether the transformer is added to a ridge, or stands alone
    noise: Positive  # where s2 starts, the variance of an entry around the user's mean
    temperature: Positive  # where t starts, of a ranking
    anchor: Weight  # g, on how far the items are from their start
    token_size: Size  # M, of a token
    heads: Size
    layers: Count  # of self-attention over the support
    forward_size: Size  # of a layer's perceptron
    support_dropout: Share  # of a training support's rows that are hidden

    def __post_init__(self) -> None:
        if self.token_size % self.heads:
            raise SettingError(
                f"InContext: 'token_size' must be a multiple of 'heads', found {self.token_size} "
                f"and {self.heads}."
            )


class InContext(FeatureRecommender):
    r"""A transformer reads the support, and each item attends to what it made of it.

    .. math::
        h_0 = e + W_u u, \qquad h_s = W [z_s; q_s; y_s] + c, \qquad
        h \leftarrow layers(h_0, h_1, .., h_S)

    .. math::
        score_i = c_0 + \frac{1}{t} (b_i + z'_i (w + \sum_m \sum_{s=1}^{S} a^m_{is}
            V^m h_s / \sqrt{M})), \qquad
        a^m_i = softmax_{s=0..S}((Q [z'_i; b_i])^m \cdot (K h_s)^m / \sqrt{e}), \; e = M / heads

    z = x P, z' = x P': an item's vector as it is read and as it is scored; x: the embeddings of its
    id and its fields. That of the id starts where PriorRidge takes its vectors (``directions``),
    and P and P' start as 1 there. q, b: an item's means, which start at popularity and at base. u:
    the user's fields; y, less its mean: the feedback. No token has a place, and no user an id.

    Every head finds weights of items, as w are. The token 0 is what is attended to where the
    support says nothing of an item; it is there without a support, and says nothing itself. So the
    prior is b and the prior's mean of w.

    .. math::
        w = \mu_u + D Z' (Z D Z' + s^2 I)^{-1} (y - q - Z \mu_u), \qquad \mu_u = \mu + U u

    is MetaRidge's closed form; without ``closed_form`` w is :math:`\mu_u`. V, U and :math:`\mu`
    start at 0, D at 1: before training the order of items is PriorRidge's with a base weight of 1,
    or alone the base's. ``anchor`` times :math:`\|\theta - \theta_0\|^2 / max(1,
    \|\theta_0\|^2)` of the ids' embeddings, q and b is added to the loss.

    Not as in a PFN, queries do not pass through the layers, once per item and task: the catalogue
    attends to their output alone, by queries that are the same for all tasks.
    """

    settings: InContextSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, size, d = self.settings, self.other_embedding.size, self.settings.embedding_size
        self.has_id = self.other_fields[0].name == self.OTHER_ID
        start = torch.eye(size, d) if self.has_id else torch.randn(size, d) / size**0.5
        self.reading, self.scoring = (nn.Parameter(start.clone()) for _ in range(2))
        self.read_mean, self.item_mean = (nn.Parameter(torch.zeros(self.n_others)) for _ in "qb")
        self.register_buffer("spread", torch.tensor(s.embedding_std))
        self.prior_mean = nn.Parameter(torch.zeros(d))
        self.prior_of_task = nn.Parameter(torch.zeros(self.task_embedding.size, d))
        if s.closed_form:
            self.log_prior = nn.Parameter(torch.zeros(d))
            self.log_noise = nn.Parameter(torch.tensor(s.noise).log())
        temperature = 1.0 if self.judged == "rating" else s.temperature
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.offset = nn.Parameter(self.label_mean.clone())
        self._build_transformer()

    def _build_transformer(self) -> None:
        s, m, d = self.settings, self.settings.token_size, self.settings.embedding_size
        self.empty = nn.Parameter(torch.randn(m))
        self.of_task = nn.Parameter(0.1 * torch.randn(self.task_embedding.size, m))
        self.token = nn.Linear(d + 2, m)
        self.layers = nn.ModuleList(
            SelfAttention(m, s.heads, s.forward_size) for _ in range(s.layers)
        )
        self.norm = Norm(m)
        self.to_query, self.to_key = nn.Linear(d + 1, m), nn.Linear(m, m, bias=False)
        self.to_weights = nn.Linear(m, s.heads * d, bias=False)
        nn.init.zeros_(self.to_weights.weight)

    def prepare(self, train_data) -> None:
        warm = warm_users(train_data._dataset)
        with torch.no_grad():
            if self.judged == "implicit":
                base = warm.pop if self.settings.base == "pop" else warm.query_pop
                self.read_mean.copy_(torch.from_numpy(warm.pop))
                self.item_mean.copy_(torch.from_numpy(base))
            if self.has_id and self.settings.start == "directions":
                v = torch.from_numpy(warm.directions[:, : self.settings.embedding_size].copy())
                weight = self.other_embedding.weights[0].zero_()
                weight[:, : v.shape[1]] = v
                self.spread.copy_(weight[self.pool].square().mean().sqrt().clamp(min=1e-6))
        self._start = [items.detach().clone() for items in self._items()]

    def _items(self) -> list[nn.Parameter]:
        ids = [self.other_embedding.weights[0]] if self.has_id else []
        return [*ids, self.read_mean, self.item_mean]

    def encode(self, items: Tensor) -> Tensor:
        """[.., D + 2]: the fields' embeddings, q and b."""
        means = torch.stack([self.read_mean[items], self.item_mean[items]], dim=-1)
        return torch.cat([super().encode(items), means], dim=-1)

    def encode_new_others(self, features) -> Tensor:
        x = super().encode_new_others(features)
        return torch.cat([x, x.new_zeros(*x.shape[:-1], 2)], dim=-1) if x.ndim else x

    def thinned(self, support: Examples) -> Examples:
        """The support of a training batch without some of its rows."""
        kept = torch.rand(support.mask.shape).to(self.device) >= self.settings.support_dropout
        return support._replace(mask=support.mask * kept)

    def adapt(self, support: Examples) -> State:
        z, q = support.x[:, :-2] @ self.reading, support.x[:, -2]  # [S, d], [S]
        label = (support.label - self.label_mean) * support.mask
        w = self.prior_mean + support.task @ self.prior_of_task  # [d]
        if self.settings.closed_form:
            w = self._posterior(w, z, label - q, support.mask)
        rows = joined(z / self.spread, torch.stack([q, label], dim=-1))  # [S, d + 2]
        first = self.empty + support.task @ self.of_task
        h = joined(first.unsqueeze(-1), self.token(rows).T).T  # [S + 1, M]
        said, present = (pad(support.mask, (1, 0), value=value) for value in (0.0, 1.0))  # [S + 1]
        for layer in self.layers:
            h = layer(h, present)
        h = self.norm(h)
        weights = self.to_weights(h) * said.unsqueeze(-1) / h.shape[1] ** 0.5  # [S + 1, m d]
        return {"w": w, "key": self.to_key(h), "weights": weights, "present": present}

    def _posterior(self, mean: Tensor, z: Tensor, residual: Tensor, mask: Tensor) -> Tensor:
        """The mean of the user's weights [d], given their prior's and residuals [S] of rows z."""
        z = z * mask.unsqueeze(-1)
        residual = residual * mask - z @ mean
        spread = z * self.log_prior.exp()
        noise = self.log_noise.exp() * torch.eye(z.shape[0], dtype=z.dtype, device=z.device)
        factors = torch.linalg.lu_factor(spread @ z.T + noise)  # `solve` in two: can be exported
        solved = torch.linalg.lu_solve(*factors, residual.unsqueeze(-1)).squeeze(-1)
        return mean + spread.T @ solved

    def score(self, state: State, x: Tensor) -> Tensor:
        z, b = x[:, :-2] @ self.scoring, x[:, -1]  # [N, d], [N]
        scores = b + z @ state["w"] + self._attended(state, z, b)
        return self.offset + scores / self.log_temperature.exp()

    def _attended(self, state: State, z: Tensor, b: Tensor) -> Tensor:
        """What the support says of items [N] that attend to it."""
        rows, heads = joined(z / self.spread, b.unsqueeze(-1)), self.settings.heads
        parts = (self.to_query(rows), state["key"], state["weights"])
        said = z.new_zeros(len(z))
        for query, key, weights in zip(*(part.chunk(heads, 1) for part in parts), strict=True):
            said = said + (attention(query, key, state["present"]) * (weights @ z.T)).sum(0)
        return said  # [N]

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        support = self.thinned(self.complete(self._examples(interaction, "support")))
        loss = self.episode_loss(support, *self.query(interaction))
        far = [
            (items - start).square().sum() / start.square().sum().clamp(min=1)
            for items, start in zip(self._items(), self._start, strict=True)
        ]
        return loss + self.settings.anchor * torch.stack(far).sum()
