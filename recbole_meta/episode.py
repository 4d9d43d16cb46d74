"""What a task is made of: a padded set of examples."""

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

_SLACK = 800  # padded rows that cost as much as one more vmapped call
_GRAIN = 8  # rows between two possible lengths of a bucket


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
    """Tasks [T, N] of similar length together, shortest first, so that little is padding.

    The cuts, by multiples of 8 rows, are those of the least cost: padded rows, and 800 for every
    bucket, which is what one more vmapped call costs.
    """
    lengths, order = _lengths(mask).sort(stable=True)
    steps = (lengths + _GRAIN - 1).div(_GRAIN, rounding_mode="floor").tolist()
    levels = sorted(set(steps))
    until = [bisect_right(steps, level) for level in levels]  # tasks up to a level
    best: list[tuple[int, list[int]]] = [(0, [])]  # cost and cuts up to a level
    for i, level in enumerate(levels):
        costs = [
            (cost + _SLACK + _GRAIN * level * (until[i] - (cuts[-1] if cuts else 0)), cuts)
            for cost, cuts in best
        ]
        cost, cuts = min(costs)
        best.append((cost, [*cuts, until[i]]))
    return list(order.tensor_split(best[-1][1][:-1]))


def _lengths(mask: Tensor) -> Tensor:
    """The place after each task's last example, [T]."""
    return ((mask > 0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
