"""What every balancer is to the trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Scale = Callable[[Tensor], Tensor]


class Balancer:
    """What the trainer does with the losses of a batch; a subclass defines ``backward``
    and its state."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.names = list(model.objectives)

    def parameters(self) -> list[nn.Parameter]:
        """What the trainer's optimiser learns beside the model."""
        return []

    def losses(self, interaction: Any, held_out: Any = None) -> dict[str, Tensor]:
        """The losses of a batch; ``held_out``: labelled rows that the model is not trained on."""
        return self.model.losses(interaction)

    def vector(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K], each with its objective's weight."""
        weights = [self.model.objectives[name].weight for name in self.names]
        return torch.stack([w * losses[name] for w, name in zip(weights, self.names)])

    def backward(self, losses: Tensor, scale: Scale) -> None:
        """Add to the gradients of all parameters from losses [K]; ``scale``: of half precision."""
        raise NotImplementedError(f"{type(self).__name__} must define backward(losses, scale).")

    def after_step(self, interaction: Any) -> None:
        """The parameters have moved by the batch's step."""

    def end_epoch(self) -> None:
        """An epoch's last step is done."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        raise NotImplementedError(f"{type(self).__name__} must define state_dict().")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define load_state_dict(state).")
