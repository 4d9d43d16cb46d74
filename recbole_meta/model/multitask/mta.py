r"""
MTA
################################################
Reference:
    Rao, Liu, Pan, Ming. "BVAE: Behavior-aware Variational Autoencoder for Multi-Behavior
    Multi-Task Recommendation." RecSys 2023.
    Liang, Krishnan, Hoffman, Jebara. "Variational Autoencoders for Collaborative Filtering."
    WWW 2018. arXiv:1802.05814
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding_bag

from recbole_meta.errors import SettingError
from recbole_meta.model.conversion import conversion
from recbole_meta.model.objective_recommender import (
    ObjectiveRecommender,
    TrainedObjectiveSettings,
)
from recbole_meta.settings import Count, Positive, Share, Size, Weight


@dataclass(frozen=True)
class MTASettings(TrainedObjectiveSettings):
    latent: Literal["deterministic", "variational"]  # what a behaviour's posterior is
    embedding_size: Size  # d, of the latent space
    embedding_std: Positive  # deviation of all tables' start
    inputs: Literal["all", "own"]  # an objective reads every behaviour, or its own alone
    dropout: Share  # of the items that a user met, under every behaviour at once, in training
    targets: Literal["all", "dropped"]  # which items the loss is of; dropped: unseen by the encoder
    weights: dict[str, Weight]  # of the objectives in the loss; 1 where one is not named
    kl_weight: Weight  # beta, of a variational posterior
    kl_steps: Count  # batches over which beta rises to it
    sampled_items: Size | None  # drawn for the softmax beside a batch's targets; ~: all items
    copy: dict[str, Weight]  # c of an objective, on a user's own items; 0 where one is not named
    conversion: dict[str, Weight]  # a of an objective, on their odds; 0 where one is not named
    average: Share  # decay of the moving average of all weights, which is judged; 0: the last ones


class Entries(NamedTuple):
    """What the users of a batch met: N items, user after user."""

    item: Tensor  # [N]
    row: Tensor  # [N] the user's place in the batch
    start: Tensor  # [B] of each user
    has: Tensor  # [N, K] whether the item was met under the behaviour
    kept: Tensor  # [N] whether the encoder sees it


class MTA(ObjectiveRecommender):
    r"""The multi-task autoencoder: one latent space, a posterior per behaviour, a decoder per
    objective.

    .. math::
        \mu_b &= W_\cup' \tilde x_\cup + W_b' \tilde x_b, \qquad \log \sigma^2_b = V_b' \tilde x_b,
        \qquad \tilde x = dropout(x / \lVert x \rVert) \\
        z_b &\sim N(\mu_b, \sigma^2_b) \;\text{in training}, \qquad z_b = \mu_b \;\text{else} \\
        z^{(t)} &= \sum_b g_{tb} z_b, \qquad
        g_{t \cdot} = softmax_b(q_t' z_b / \sqrt d + a_{tb}) \\
        score^{(t)} &= D_t z^{(t)} + e_t + (c_t + a_t o^{(t)}) \odot x_\cup, \qquad
        p^{(t)} = softmax(D_t z^{(t)} + e_t) \text{ of a distribution} \\
        L &= \sum_t w_t \, CE_t + \beta \sum_b KL(N(\mu_b, \sigma^2_b) \,\Vert\, N(0, 1))

    CE_t is the multinomial's over the catalogue, the mean over the targets of the objective; the KL
    is per target of all. A distribution, *user interest*, has a decoder of C categories; its CE is
    the cross-entropy to the mean q of the targets of the behaviour that it is given, the mean over
    users; its ranking is by :math:`p_u \cdot q_i`.

    What differs from BVAE: :math:`W_b`, so that behaviours differ without noise; gates that are a
    softmax over behaviours; fixed weights; distributions; an item is dropped under all behaviours
    at once, and the loss may be of dropped ones alone, which the encoder cannot copy;
    :math:`c_t` and :math:`a_t`, read when ranking only, o the items' log-odds of the objective for
    who met them otherwise (``conversion``); what is judged may be a moving average of all weights
    over the steps (``MovingAverage``), since what the objectives need is learned at different
    times. ``inputs: own`` leaves each objective its own behaviour and space: K autoencoders of one
    behaviour each.
    """

    distributes = True
    settings: MTASettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s = self.settings
        self.check_objectives(s.weights, "weights", self.distributions)
        self.own = s.inputs == "own"
        for setting, given in (("copy", s.copy), ("conversion", s.conversion)):
            self.check_objectives(given, setting)
            if self.own and any(given.values()):
                raise SettingError(
                    f"MTA: '{setting}' reads other behaviours: with inputs 'own' it must be {{}}."
                )
        self.own_items = {name: self._own_items(name) for name in {*s.copy, *s.conversion}}
        if s.targets == "dropped" and not s.dropout:
            raise SettingError("MTA: with dropout 0 nothing is dropped: set targets to 'all'.")
        self.met = sum(2**b * matrix.astype(np.int64) for b, matrix in enumerate(self.matrices))
        self.met = self.met.tocsr()  # [U, I], bit b: met under behaviour b
        d, source = s.embedding_size, [*self.objectives, *self.distributions.values()]
        self.heads = (*self.objectives, *self.distributions)  # what is decoded
        self.own_behaviour = [self.objectives.index(name) for name in source]  # of each head
        self.shared = None if self.own else self._table()  # W of the union
        self.mean = nn.ParameterDict({name: self._table() for name in self.objectives})  # W_b
        noisy = self.objectives if s.latent == "variational" else ()
        self.variance = nn.ParameterDict({name: self._table() for name in noisy})  # V_b
        self.decoder = nn.ParameterDict({name: self._table() for name in self.objectives})  # D_t
        self.bias = nn.ParameterDict({name: self._log_pop(name) for name in self.objectives})
        for name in self.distributions:
            self.decoder[name] = self._table(self.categories(name).shape[1])
            self.bias[name] = self._log_share(name)
        self.query = nn.Parameter(torch.zeros(len(self.heads), d))  # q_t
        alone = torch.eye(len(self.objectives))[self.own_behaviour]
        self.gate_bias = nn.Parameter(alone)  # a_tb: its own behaviour counts most at first
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # batches so far

    @property
    def matrices(self) -> list:
        """The behaviours' matrices, in the order of the objectives."""
        return list(self.history.values())

    def _own_items(self, name: str) -> Tensor:
        """c_t + a_t o, what an item's score gets where the user met it, [I]."""
        odds = torch.from_numpy(conversion(self.history, name)).to(self.device)
        s = self.settings
        return s.copy.get(name, 0.0) + s.conversion.get(name, 0.0) * odds

    def _table(self, rows: int | None = None) -> nn.Parameter:
        """A row per item, or so many."""
        shape = rows or self.n_items, self.settings.embedding_size
        return nn.Parameter(self.settings.embedding_std * torch.randn(shape))

    def _log_pop(self, name: str) -> nn.Parameter:
        """Where e_t starts: the logarithm of the share of the objective's positives."""
        count = torch.from_numpy(np.asarray(self.history[name].sum(axis=0))).flatten() + 0.5
        return nn.Parameter((count / count.sum()).log().to(torch.get_default_dtype()))

    def _log_share(self, name: str) -> nn.Parameter:
        """The same of a distribution: of the shares of the categories in what all users did."""
        total = torch.from_numpy(self.interests(name)[0].sum(axis=0)) + 0.5
        return nn.Parameter((total / total.sum()).log().to(torch.get_default_dtype()))

    def entries(self, users: Tensor) -> Entries:
        """What these users met in train; in training some of it is hidden from the encoder."""
        rows = self.met[users.cpu().numpy()]
        length = torch.from_numpy(np.diff(rows.indptr).astype(np.int64))
        item, bits = (torch.from_numpy(x.astype(np.int64)) for x in (rows.indices, rows.data))
        has = (bits[:, None] >> torch.arange(len(self.objectives))) % 2 == 1
        dropout = self.settings.dropout if self.training else 0.0
        kept = torch.rand(len(item)) >= dropout
        row = torch.arange(len(length)).repeat_interleave(length)
        found = item, row, length.cumsum(0) - length, has, kept
        return Entries(*(tensor.to(users.device) for tensor in found))

    def _read(self, entries: Entries, chosen: Tensor, table: Tensor) -> Tensor:
        r"""The sum of the table's rows of the chosen entries, [B, d]: W' x~."""
        count = torch.zeros_like(entries.start, dtype=table.dtype)
        count = count.index_add(0, entries.row, chosen.to(table.dtype))
        weight = chosen * entries.kept * count.clamp(min=1).rsqrt()[entries.row]
        if self.training:
            weight = weight / (1 - self.settings.dropout)
        start = entries.start
        return embedding_bag(entries.item, table, start, mode="sum", per_sample_weights=weight)

    def posteriors(self, entries: Entries) -> tuple[Tensor, Tensor | None]:
        """Means and log variances of the behaviours' posteriors, [B, K, d]; none: no noise."""
        shared, of_each = 0, entries.has.T
        if self.shared is not None:
            shared = self._read(entries, torch.ones_like(entries.kept), self.shared)
        named = list(zip(self.objectives, of_each))  # a ParameterDict has an order of its own
        mean = torch.stack([shared + self._read(entries, has, self.mean[b]) for b, has in named], 1)
        if not self.variance:
            return mean, None
        return mean, torch.stack(
            [self._read(entries, has, self.variance[b]) for b, has in named], 1
        )

    def gates(self, z: Tensor, objective: str) -> Tensor:
        """Weights [B, K] of the behaviours for an objective; they sum to 1."""
        t = self.heads.index(objective)
        if self.own:
            alone = torch.eye(len(self.objectives), device=z.device)
            return alone[self.own_behaviour[t]].expand(len(z), -1)
        return (z @ self.query[t] / math.sqrt(z.shape[-1]) + self.gate_bias[t]).softmax(-1)

    def mixed(self, z: Tensor, objective: str) -> Tensor:
        """What an objective's decoder gets of the behaviours' z [B, K, d]: [B, d]."""
        return torch.einsum("bk,bkd->bd", self.gates(z, objective), z)

    def decode(self, mixed: Tensor, objective: str, items: Tensor | None = None) -> Tensor:
        """Scores [B, I] of all items, or of these [N]: [B, N]; of a distribution [B, C]."""
        decoder, bias = self.decoder[objective], self.bias[objective]
        if items is not None:
            decoder, bias = decoder[items], bias[items]
        return torch.addmm(bias, mixed, decoder.T)

    def distribution(self, users: Tensor, objective: str) -> Tensor:
        if objective not in self.distributions:
            return super().distribution(users, objective)  # refuses
        z, _ = self.posteriors(self.entries(users))
        return self.decode(self.mixed(z, objective), objective).softmax(-1)

    def rank(self, users: Tensor, objective: str) -> Tensor:
        if objective in self.distributions:
            return self.expected_share(users, objective)
        self.check_ranked(objective)
        entries = self.entries(users)
        z, _ = self.posteriors(entries)
        scores = self.decode(self.mixed(z, objective), objective)
        if objective in self.own_items:
            scores[entries.row, entries.item] += self.own_items[objective][entries.item]
        return scores

    def calculate_loss(self, interaction) -> Tensor:
        entries = self.entries(interaction[self.USER_ID])
        target = entries.has  # [N, K]
        if self.settings.targets == "dropped":
            target = target & ~entries.kept[:, None]
        mean, log_variance = self.posteriors(entries)
        z, loss = mean, 0 * mean.sum()  # a batch may be without targets
        if log_variance is not None:
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            loss = self._beta() * divergence(mean, log_variance).sum() / target.sum().clamp(min=1)
        return loss + self.reconstruction(z, entries, target)

    def reconstruction(self, z: Tensor, entries: Entries, target: Tensor) -> Tensor:
        """The weighted cross-entropies of the targets [N, K]."""
        loss = 0 * z.sum()
        for chosen, name in zip(target.T, self.objectives):
            weight = self.settings.weights.get(name, 1.0)
            if weight and chosen.any():
                loss = loss + weight * self._cross_entropy(z, entries, chosen, name)
        for name, given in self.distributions.items():
            about = self.categories(name)[entries.item]  # [N, C]
            chosen = target[:, self.objectives.index(given)] & (about.sum(1) > 0)
            weight = self.settings.weights.get(name, 1.0)
            if weight and chosen.any():
                loss = loss + weight * self._interest(z, entries.row[chosen], about[chosen], name)
        return loss

    def _beta(self) -> float:
        self.steps += 1
        share = self.steps.item() / max(1, self.settings.kl_steps)
        return self.settings.kl_weight * min(1.0, share)

    def _cross_entropy(
        self,
        z: Tensor,
        entries: Entries,
        chosen: Tensor,
        objective: str,
        worth: Tensor | None = None,
    ) -> Tensor:
        """The mean over the chosen entries, each an item that its user's softmax should name;
        weighted by what each is worth, where that is given.
        """
        users, row = entries.row[chosen].unique(return_inverse=True)
        items, place, more = self._softmax_items(entries.item[chosen])
        logits = self.decode(self.mixed(z[users], objective), objective, items)
        total = (logits + more).logsumexp(1)
        loss = total[row] - logits[row, place]
        return loss.mean() if worth is None else (worth * loss).sum() / worth.sum()

    def _interest(self, z: Tensor, row: Tensor, about: Tensor, objective: str) -> Tensor:
        """The mean over users of the cross-entropy to their own distribution, which is the mean of
        what these entries [N] are about [N, C].
        """
        users, place, count = row.unique(return_inverse=True, return_counts=True)
        total = torch.zeros(len(users), about.shape[1], dtype=about.dtype, device=about.device)
        share = total.index_add(0, place, about) / count[:, None]
        return cross_entropy(self.decode(self.mixed(z[users], objective), objective), share)

    def _softmax_items(self, target: Tensor) -> tuple[Tensor | None, Tensor, Tensor | float]:
        """The items of a batch's softmax (None: all), the places of the targets among them, and
        the logarithm of how many items each stands for: drawn ones stand for all that were not.
        """
        number = self.settings.sampled_items
        if number is None:
            return None, target, 0.0
        there, place = target.unique(return_inverse=True)
        absent = torch.ones(self.n_items, dtype=torch.bool, device=target.device)
        absent[there] = absent[0] = False
        others = absent.nonzero().flatten()
        drawn = others[torch.randperm(len(others), device=target.device)[:number]]
        more = torch.zeros(len(there) + len(drawn), device=target.device)
        more[len(there) :] = math.log(max(1, len(others)) / max(1, len(drawn)))
        return torch.cat([there, drawn]), place, more


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the latent space, [..]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
