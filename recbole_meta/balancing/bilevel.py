r"""Weights w of the losses that are learned by what they do to the loss of held-out rows.

After a step of SGD with the rate alpha on the weighted losses,
:math:`\theta' = \theta - \alpha \sum_k w_k \nabla L_k`,

.. math:: \frac{d L^{val}(\theta')}{d w_k} = -\alpha \, \nabla L^{val}(\theta') \cdot \nabla L_k

which is exact (Liu et al., Auto-Lambda, TMLR 2022, approximates it by finite differences). The
weights are a softmax times K, of one vector or of a linear map of the user's embedding.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recbole_meta.balancing.balancer import Balancer, Scale
from recbole_meta.errors import DataError, SettingError
from recbole_meta.settings import Positive, Size


@dataclass(frozen=True)
class BiLevelSettings:
    inner_lr: Positive  # alpha, of the step of SGD that the weights are judged by
    meta_lr: Positive  # of Adam on what makes the weights
    conditioned: Literal["none", "user"]  # none: one vector of weights | user: of his embedding
    rows: Size  # held-out rows that are drawn for a step


class BiLevel(Balancer):
    """Weights that are learned by the loss of held-out rows."""

    def __init__(self, settings: BiLevelSettings, model: Any) -> None:
        super().__init__(model)
        self.settings = settings
        width = self._user(torch.tensor([0], device=model.device)).shape[1]
        self.core = nn.Linear(width, len(self.names)).to(model.device)
        nn.init.zeros_(self.core.weight)
        nn.init.zeros_(self.core.bias)
        self.optimizer = torch.optim.Adam(self.core.parameters(), lr=settings.meta_lr)

    def _user(self, users: Tensor) -> Tensor:
        """What the weights of a user are made of, [B, W]; nothing, where they are all the same."""
        if self.settings.conditioned == "none":
            return next(self.model.parameters()).new_zeros(len(users), 0)
        table = getattr(self.model, "embed", None)
        if table is None:
            raise SettingError(
                f"Balancer 'BiLevel': 'conditioned' is user, but {type(self.model).__name__} has "
                "no table of users that all objectives share. Set it to none."
            )
        return table.user(users).detach()

    def weights(self, users: Tensor) -> Tensor:
        """[B, K] positive, with the sum K."""
        return len(self.names) * self.core(self._user(users)).softmax(-1)

    def weighted(self, interaction: Any) -> dict[str, Tensor]:
        """The losses, each row by the weights of its user."""
        users = interaction[self.model.USER_ID].to(self.model.device)
        return self._means(self.weights(users), self.model.row_losses(interaction))

    def _means(self, w: Tensor, found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {
            name: (w[:, place] * found[name][0]).sum() / found[name][1].sum().clamp(min=1)
            for place, name in enumerate(self.names)
        }

    def meta_gradient(self, interaction: Any, held_out: Any) -> list[Tensor]:
        """The gradient of the held-out loss after the step, by what makes the weights."""
        return self._meta_gradient(self.weighted(interaction), held_out)

    def _meta_gradient(self, weighted: Mapping[str, Tensor], held_out: Any) -> list[Tensor]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        loss = self.vector(weighted).sum()
        inner = torch.autograd.grad(
            loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        rate = self.settings.inner_lr
        with _moved(parameters, [-rate * each.detach() for each in inner]):
            outer = torch.autograd.grad(
                self.model.calculate_loss(held_out), parameters,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        product = sum((g * v).sum() for g, v in zip(inner, outer))
        # The graph stays: the step is taken by the same losses of rows.
        learned = list(self.core.parameters())
        return list(torch.autograd.grad(-rate * product, learned, retain_graph=True))

    def losses(self, interaction: Any, held_out: Any = None) -> dict[str, Tensor]:
        if held_out is None:
            raise DataError("Balancer 'BiLevel' learns from held-out rows, and none were given.")
        drawn = held_out[torch.randint(len(held_out), (self.settings.rows,))]
        users = interaction[self.model.USER_ID].to(self.model.device)
        found = self.model.row_losses(interaction)
        weighted = self._means(self.weights(users), found)
        gradients = self._meta_gradient(weighted, drawn.to(self.model.device))
        for parameter, gradient in zip(self.core.parameters(), gradients):
            parameter.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            w = self.weights(users)
        return self._means(w, found)

    def backward(self, losses: Tensor, scale: Scale) -> None:
        scale(losses.sum()).backward()

    def state_dict(self) -> dict[str, Any]:
        return {"core": self.core.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.core.load_state_dict(state["core"])
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _moved(parameters: list[nn.Parameter], steps: list[Tensor]) -> Any:
    """Parameters after these steps; the same bits as before when it is over."""
    kept = [each.data for each in parameters]
    try:
        for parameter, old, step in zip(parameters, kept, steps):
            parameter.data = old + step
        yield
    finally:
        for parameter, old in zip(parameters, kept):
            parameter.data = old
