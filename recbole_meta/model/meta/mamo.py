r"""
MAMO
################################################
Reference:
    Dong et al. "MAMO: Memory-Augmented Meta-Optimization for Cold-start Recommendation." KDD 2020.
    arXiv:2007.03183
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Params, sgd_steps
from recbole_meta.model.meta.maml import MAML, MAMLSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import deeper
from recbole_meta.settings import Share, Size, Weight

_TAKEN = ("user", "of_user", "of_item", "weight_0", "bias_0")  # parameters that a state has taken


@dataclass(frozen=True)
class MAMOSettings(MAMLSettings):
    vector_size: Size  # E, of what stands for a user, and for an item
    memory_size: Size  # K, rows of each memory
    profile_rate: Share  # alpha, how far a batch moves the memory of profiles
    user_rate: Share  # beta, the same of the memory of gradients
    task_rate: Share  # gamma, the same of the memory of interactions
    start_rate: Weight  # tau, of the remembered gradient in a task's start


class MAMO(MAML):
    r"""MAML whose start is a task's own: memories say how tasks with such a profile went.

    A profile p [P] attends to K remembered ones. What it finds biases the start of the user's layer
    :math:`\theta_u` [E, P + 1], and is the start of the layer M [E, 2E] between user and item:

    .. math::
        a = softmax_k \cos(p, M_P^k), \qquad
        \theta_u = \phi_u - \tau \sum_k a_k M_U^k, \qquad M = \sum_k a_k M_{UI}^k

    .. math::
        e_u = ReLU(\theta_u [p; 1]), \quad e_i = ReLU(W_i x + b_i), \qquad
        score = f_{\theta_r}(M [e_u; e_i])

    All of them take steps of rate :math:`\rho` on the support. M_P [K, P], M_U [K, E, P + 1] and
    M_UI [K, E, 2E] are buffers, written by a training batch once its loss is taken, read else:

    .. math::
        M_P \leftarrow (1 - \alpha) M_P + \alpha \, mean \, a \otimes p, \qquad
        M_U \leftarrow (1 - \beta) M_U + \beta \, mean \, a \otimes \nabla_{\theta_u} L_{support}

    .. math:: M_{UI}^k \leftarrow M_{UI}^k + \gamma \, mean \, a_k (M' - M_{UI}^k)

    by means over the batch's tasks, M' after the steps. The profile is the task's fields. Without
    any it is the mean of what is liked in the support (a rating is above the mean), which the paper
    has not; an empty support's is 0, which attends to all alike. The paper writes task after task,
    and weighs the old :math:`M_{UI}` by :math:`1 - \gamma`: read and written so, it would shrink by
    :math:`1 - \gamma (1 - \sum_k a_k^2)` each time, to nothing. M_U starts at 0, and of several
    steps it gets the sum of gradients.

    The authors' code writes the query's gradient, attends through a layer that is drawn anew for
    every task, writes at test, too, and there steps from :math:`\phi_u` without the bias. As in it,
    no gradient is taken through the attention. Where profiles have much in common the rows of M_P
    come to point the same way, and all tasks attend alike.
    """

    settings: MAMOSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        k, vector, profile = self.settings.memory_size, self.settings.vector_size, self.profile_size
        self.user_layer = nn.Linear(profile + 1, vector, bias=False)
        self.item_layer = nn.Linear(self.other_embedding.size, vector)
        drawn = torch.empty(k, vector, 2 * vector).uniform_(-1, 1) / math.sqrt(2 * vector)
        self.register_buffer("profile_memory", torch.randn(k, profile))
        self.register_buffer("user_memory", torch.zeros(k, vector, profile + 1))
        self.register_buffer("task_memory", drawn)  # as a linear layer is drawn

    @property
    def profile_size(self) -> int:
        """P, the numbers of a profile."""
        return self.task_embedding.size or self.other_embedding.size

    @property
    def shared_size(self) -> int:
        return 0

    @property
    def row_size(self) -> int:
        return self.settings.vector_size

    def adapt(self, support: Examples) -> State:
        profile = self.profile(support)
        _, start = self.start(profile)
        return self.state(self.moved(start, profile, support), profile)

    def score(self, state: State, x: Tensor) -> Tensor:
        e = torch.relu(x @ state["item_weight"].T + state["item_bias"])  # [N, E]
        return deeper(state, e @ state["mixed"] + state["offset"])

    def profile(self, support: Examples) -> Tensor:
        """What the memories are asked by, p [P]."""
        if self.task_embedding.size:
            return support.task
        return self.liked(support)

    def start(self, profile: Tensor) -> tuple[Tensor, Params]:
        """The attention a [K], and from where a task with this profile takes its steps."""
        alike = cosine_similarity(profile.detach(), self.profile_memory, dim=-1)
        a = torch.softmax(alike, dim=0)
        prior = {name: value for name, value in self.prior.items() if name != "task_weight"}
        user, task = (torch.tensordot(a, m, 1) for m in (self.user_memory, self.task_memory))
        of_user, of_item = task.chunk(2, dim=1)  # here: an export takes no gradient through it
        return a, {
            "user": self.user_layer.weight - self.settings.start_rate * user,
            "item_weight": self.item_layer.weight,
            "item_bias": self.item_layer.bias,
            "of_user": of_user,
            "of_item": of_item,
            **prior,
        }

    def moved(self, start: Params, profile: Tensor, support: Examples) -> Params:
        """The parameters after the steps on the support."""

        def loss(params: Params) -> Tensor:
            score = self.score(self.state(params, profile), support.x)
            return self.inner_loss(score, support.label, support.mask)

        s = self.settings
        return sgd_steps(loss, start, s.inner_lr, s.inner_steps, s.meta_order)

    def state(self, params: Params, profile: Tensor) -> State:
        """What scores items: M and the first layer of f as one product, the user's part taken."""
        state = dict(params)
        user, of_user, of_item, weight, bias = map(state.pop, _TAKEN)
        e = torch.relu(user @ pad(profile, (0, 1), value=1.0))  # [E]
        return {"mixed": of_item.T @ weight, "offset": (of_user @ e) @ weight + bias, **state}

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        support = self.complete(self._examples(interaction, "support"))
        loss = self.episode_loss(support, *self.query(interaction))
        if self.training:
            with torch.no_grad():
                self.write(self._encoded(support))
        return loss

    def write(self, support: Examples) -> None:
        """Move the memories by what T tasks leave; new tensors, the loss still holds the old."""
        s, tasks = self.settings, len(support.mask)
        a, profile, gradient, task = self._lift(self.left, (0,))(support)
        mean = partial(torch.einsum, "tk,t...->k...", a / tasks)
        self.profile_memory = self.profile_memory.lerp(mean(profile), s.profile_rate)
        self.user_memory = self.user_memory.lerp(mean(gradient), s.user_rate)
        kept = a.mean(0)[:, None, None] * self.task_memory
        self.task_memory = self.task_memory + s.task_rate * (mean(task) - kept)

    def left(self, support: Examples) -> tuple[Tensor, ...]:
        """What a task leaves: a [K], its profile, the gradient of theta_u, M after the steps."""
        profile = self.profile(support)
        a, start = self.start(profile)
        end = self.moved(start, profile, support)
        gradient = (start["user"] - end["user"]) / self.settings.inner_lr
        return a, profile, gradient, torch.cat([end["of_user"], end["of_item"]], dim=1)
