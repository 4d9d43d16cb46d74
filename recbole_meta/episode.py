"""What a task is made of: a padded set of examples."""

from typing import NamedTuple

import torch
from torch import Tensor

_SLACK = 400  # padded rows that cost as much as one more vmapped call


class Examples(NamedTuple):
    """N examples of one task, or with a leading axis of T tasks; rows with mask 0 are padding.

    ``x`` and ``task`` hold ids, or what a learner made of them.
    """

    x: Tensor  # [.., N] item ids (int64), 0 in padding; or [.., N, D]
    label: Tensor  # [.., N] what the user said of them; 0 in padding
    mask: Tensor  # [.., N] 1 for an example, 0 for padding
    task: Tensor  # [..] the task's id; or [.., D_t] what is known of the task itself

    def of(self, tasks: Tensor) -> "Examples":
        """The examples of these tasks, [T, N] each."""
        return Examples(*(field[tasks] for field in self))

    def width(self) -> int:
        """The place after the last example of any task, at least 1."""
        return max(1, int(_lengths(self.mask).max()))

    def cut(self, width: int) -> "Examples":
        """The first ``width`` places of T tasks."""
        return Examples(self.x[:, :width], self.label[:, :width], self.mask[:, :width], self.task)


def buckets(mask: Tensor) -> list[Tensor]:
    """Tasks [T, N] of similar length together, longest first, so that little of a batch is padding.

    A bucket ends when its padding would cost more than another call.
    """
    lengths, order = _lengths(mask).sort(descending=True, stable=True)
    starts, waste, longest = [0], 0, int(lengths[0])
    for place, length in enumerate(lengths.tolist()):
        waste += longest - length
        if waste > _SLACK:
            starts.append(place)
            waste, longest = 0, length
    return list(order.tensor_split(starts[1:]))


def _lengths(mask: Tensor) -> Tensor:
    """The place after each task's last example, [T]."""
    return ((mask > 0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
