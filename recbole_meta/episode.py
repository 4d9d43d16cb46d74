"""What a task is made of: a padded set of examples."""

from typing import NamedTuple

from torch import Tensor


class Examples(NamedTuple):
    """N examples of one task, or with a leading axis of T tasks; rows with mask 0 are padding."""

    x: Tensor  # [.., N] item ids (int64); 0 in padding
    label: Tensor  # [.., N] what the user said of them; 0 in padding
    mask: Tensor  # [.., N] 1 for an example, 0 for padding

    def of(self, tasks: Tensor) -> "Examples":
        """The examples of these tasks, [T, N] each."""
        return Examples(self.x[tasks], self.label[tasks], self.mask[tasks])
