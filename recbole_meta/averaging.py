"""The moving average of a model's parameters: what is judged instead of the last step's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 5  # steps: the average of few steps follows them closely


class MovingAverage:
    r"""An exponential average of parameters over the steps of a training.

    .. math::
        \bar\theta_n = a_n \bar\theta_{n-1} + (1 - a_n) \theta_n, \qquad
        a_n = \min(a, n / (n + 5))
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = [each.detach() for each in parameters]
        self.decay, self.steps = decay, 0
        self.means = [each.clone() for each in self.parameters]

    def update(self) -> None:
        """After a step."""
        self.steps += 1
        kept = min(self.decay, self.steps / (self.steps + _WARM_UP))
        torch._foreach_lerp_(self.means, self.parameters, 1 - kept)

    def exchange(self) -> None:
        """The parameters become the average, and the other way round."""
        for parameter, mean in zip(self.parameters, self.means):
            last = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(last)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, the model has the average."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {"steps": self.steps, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps = state["steps"]
        for mean, found in zip(self.means, state["means"], strict=True):
            mean.copy_(found)
