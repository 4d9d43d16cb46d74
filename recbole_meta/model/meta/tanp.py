r"""
TaNP
################################################
Reference:
    Lin et al. "Task-adaptive Neural Process for User Cold-Start Recommendation." WWW 2021.
    arXiv:2103.06137
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_meta.episode import Examples
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State, joined
from recbole_meta.model.mlp import body, make_body, make_mlp, task_part
from recbole_meta.settings import Least, Positive, Size, Weight


@dataclass(frozen=True)
class TaNPSettings(LearnerSettings):
    hidden_size: Annotated[tuple[Size, ...], Least(1)]  # of the encoders, and of the decoder
    latent_size: Size  # of z
    task_size: Size  # of the task's embedding, and of those in the pool
    pool_size: Size  # embeddings in the pool, k
    freedom: Positive  # nu, of Student's t over the pool
    modulation: Literal["film", "gated"]  # how the task's embedding changes the decoder
    kl_weight: Weight  # of the latent's divergence
    cluster_weight: Weight  # lambda, of the assignments' divergence


class Gaussian(NamedTuple):
    mean: Tensor  # [Z]
    log_std: Tensor  # [Z]


class TaNP(FeatureRecommender):
    r"""A neural process: a latent of the support, and a task embedding that modulates the decoder.

    .. math::
        q_S = N(\mu, \sigma^2), \; (\mu, \log \sigma) = h(mean_S \, e([u; x; y])), \qquad
        t = mean_S \, g([u; x; y]), \qquad
        C_j \propto (1 + \|t - A_j\|^2 / \nu)^{-(\nu + 1) / 2}, \; o = t + \sum_j C_j A_j

    .. math::
        h_l = ReLU(\gamma_l \odot (W_l h_{l-1} + b_l) + \beta_l), \; h_0 = [u; z; x], \qquad
        film: \gamma = \tanh(G o), \beta = \tanh(B o)

    .. math::
        gated: \delta = \sigma(D o), \eta = \tanh(E o), \;
        \gamma \leftarrow \gamma \delta + \eta (1 - \delta), \;
        \beta \leftarrow \beta \delta + \eta (1 - \delta)

    .. math::
        L = L_{query}(z), \; z \sim q_{S \cup Q}, \; + a \, KL(q_{S \cup Q} \| q_S)
            + \lambda \, KL(D \| C), \qquad D_{ij} \propto C_{ij}^2 / \sum_i C_{ij}

    over the tasks i of a batch; D is held constant. A task is judged with :math:`z = \mu` of its
    support, not with a draw. The user's vector u is of fields only: no id that a newcomer has not.
    The paper sums the loss over support and query, and its code has the distance, not its square,
    in C. Ratings enter less their mean.
    """

    group = "published"
    settings: TaNPSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, task, size = self.settings, self.task_embedding.size, self.other_embedding.size
        last, width = s.hidden_size[-1], sum(s.hidden_size)
        self.latent_encoder = make_body(task, size + 1, s.hidden_size)
        self.to_latent = nn.Sequential(
            nn.Linear(last, s.latent_size), nn.ReLU(), nn.Linear(s.latent_size, 2 * s.latent_size)
        )
        self.task_encoder = make_body(task, size + 1, s.hidden_size)
        self.to_task = nn.Linear(last, s.task_size)
        self.clusters = nn.Parameter(nn.init.xavier_uniform_(torch.empty(s.pool_size, s.task_size)))
        names = ["scale", "shift", *(["mix", "gate"] if s.modulation == "gated" else [])]
        self.modulate = nn.ModuleDict({n: nn.Linear(s.task_size, width, bias=False) for n in names})
        self.decoder = make_mlp(task + s.latent_size, size, s.hidden_size, self.label_mean)

    def latent(self, task: Tensor, examples: Examples) -> Gaussian:
        """Of z, from these examples."""
        mean, log_std = self.to_latent(self._mean(self.latent_encoder, task, examples)).chunk(2)
        return Gaussian(mean, log_std)

    def assigned(self, support: Examples) -> tuple[Tensor, Tensor]:
        """The task's embedding o, and C [k], how it is assigned to the pool."""
        task = self.to_task(self._mean(self.task_encoder, support.task, support))
        nu = self.settings.freedom
        log_c = -(nu + 1) / 2 * torch.log1p((task - self.clusters).square().sum(1) / nu)
        assignment = torch.softmax(log_c, dim=0)
        return task + assignment @ self.clusters, assignment

    def adapt(self, support: Examples) -> State:
        embedding, _ = self.assigned(support)
        return self._state(support.task, self.latent(support.task, support).mean, embedding)

    def score(self, state: State, x: Tensor) -> Tensor:
        decoder, last = self.decoder, len(self.settings.hidden_size)
        z = x @ decoder["weight_0"] + state["offset"]
        for layer in range(last):
            h = torch.relu(z * state[f"scale_{layer}"] + state[f"shift_{layer}"])
            z = h @ decoder[f"weight_{layer + 1}"] + decoder[f"bias_{layer + 1}"]
        return z.squeeze(-1)

    def noise(self, tasks: int) -> Tensor:
        """What z is drawn with, [T, Z]."""
        return torch.randn(tasks, self.settings.latent_size).to(self.device)

    def lifted_loss(self, support: Examples, query: Examples, shared: bool = False) -> Tensor:
        dims = Examples(None if shared else 0, 0, 0, 0)
        drawn = self.noise(len(support.mask))
        return self._lift(self._bound, (0, dims, 0))(support, query, drawn)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        support = self.complete(self._examples(interaction, "support"))
        loss = self.episode_loss(support, *self.query(interaction))
        _, assignment = self._lift(self.assigned, (0,))(self._encoded(support))  # [T, k]
        return loss + self.settings.cluster_weight * sharpened(assignment)

    def _bound(self, support: Examples, query: Examples, drawn: Tensor) -> Tensor:
        fields = zip(support[:3], query[:3], strict=True)
        both = Examples(*(torch.cat(pair) for pair in fields), support.task)
        prior, posterior = (self.latent(support.task, part) for part in (support, both))
        z = posterior.mean + posterior.log_std.exp() * drawn
        embedding, _ = self.assigned(support)
        loss = self.loss(self._state(support.task, z, embedding), query)
        return loss + self.settings.kl_weight * divergence(posterior, prior)

    def _state(self, task: Tensor, z: Tensor, embedding: Tensor) -> State:
        found = {name: change(embedding) for name, change in self.modulate.items()}
        scale, shift = found["scale"].tanh(), found["shift"].tanh()
        if "gate" in found:
            gate, mix = found["gate"].sigmoid(), found["mix"].tanh()
            scale, shift = (part * gate + mix * (1 - gate) for part in (scale, shift))
        state = {"offset": task_part(self.decoder, joined(task, z))}
        for name, parts in (("scale", scale), ("shift", shift)):
            for layer, part in enumerate(parts.split(list(self.settings.hidden_size))):
                state[f"{name}_{layer}"] = part
        return state

    def _mean(self, encoder: Mapping[str, Tensor], task: Tensor, examples: Examples) -> Tensor:
        """The mean of the encoded examples [H]; 0 without any."""
        rows = joined(examples.x, (examples.label - self.label_mean).unsqueeze(-1))
        mask = examples.mask.unsqueeze(-1)
        encoded = body(encoder, rows @ encoder["weight_0"] + task_part(encoder, task))
        return (encoded * mask).sum(0) / mask.sum().clamp(min=1)


def divergence(left: Gaussian, right: Gaussian) -> Tensor:
    """KL(left || right), summed over the dimensions."""
    ratio = (2 * (left.log_std - right.log_std)).exp()
    far = (left.mean - right.mean).square() * (-2 * right.log_std).exp()
    return (ratio + far - 1).sum() / 2 - (left.log_std - right.log_std).sum()


def sharpened(assignment: Tensor) -> Tensor:
    """KL(D || C) of assignments C [T, k], the mean over tasks; D, sharper than C, is constant."""
    target = assignment.square() / assignment.sum(0)
    target = (target / target.sum(1, keepdim=True)).detach()
    return (target * (target.log() - assignment.log())).sum(1).mean()
