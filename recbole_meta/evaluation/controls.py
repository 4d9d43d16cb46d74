"""Controls: supports that say nothing of their task, or the wrong thing.

A learner that is not worse with them has not adapted. They act on what `MetaRecommender.observe`
made of the supports, [n_tasks, S]: with its negatives, where it draws any.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recbole_meta.episode import Examples

Control = Callable[[Examples, Tensor], Examples]  # of all supports, and the tasks that are judged


def shuffled(support: Examples, tasks: Tensor, seed: int = 0) -> Examples:
    """Each task's labels in a random order among its examples."""
    generator = torch.Generator().manual_seed(seed)
    key = torch.rand(support.mask.shape, generator=generator).to(support.mask.device)
    key = key + (support.mask == 0) * 2  # padding stays behind
    there = (support.mask == 0).long().argsort(dim=1, stable=True)  # places of the examples first
    drawn = support.label.gather(1, key.argsort(dim=1))
    return support._replace(label=torch.empty_like(drawn).scatter(1, there, drawn))


def swapped(support: Examples, tasks: Tensor, seed: int = 0) -> Examples:
    """Each of these tasks has another one's support: a random cycle through them."""
    order = tasks[torch.randperm(len(tasks), generator=torch.Generator().manual_seed(seed))]
    x, label, mask = support.x.clone(), support.label.clone(), support.mask.clone()
    other = order.roll(1)
    x[order], label[order], mask[order] = (
        support.x[other],
        support.label[other],
        support.mask[other],
    )
    return Examples(x, label, mask, support.task)


def empty(support: Examples, tasks: Tensor, seed: int = 0) -> Examples:
    """Nobody has a support."""
    return support._replace(mask=torch.zeros_like(support.mask))


CONTROLS: dict[str, Control] = {"shuffled": shuffled, "swapped": swapped, "empty": empty}
