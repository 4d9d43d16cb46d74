"""The support of tasks as one padded table, indexed by RecBole's id of the user or item."""

import numpy as np
import torch

from recbole_meta.data.prepared import Prepared
from recbole_meta.episode import Examples


def read_support(
    prepared: Prepared,
    phase: str,
    k: int,
    tasks: dict[str, int],
    others: dict[str, int],
    rated: bool = False,
) -> Examples:
    """The first k rows of each cold user, [n_tasks, max(k, 1)]; other users' mask is all zero.
    Where items are cold, the first k rows of every item that is met in training.

    ``tasks`` and ``others`` map tokens to RecBole's ids. The label is 1 where the feedback is a
    ranking, or what the task gave where that is ``rated``.
    """
    if prepared.side == "user":
        rows = prepared.support(phase, k)
    else:
        rows = prepared.rows(prepared.train_name(phase, k))
        rows = rows[rows["position"] < k]
    task = rows[prepared.side].map(tasks).to_numpy(dtype=np.int64)
    place = rows["position"].to_numpy()
    shape = (len(tasks), max(k, 1))
    x, mask, label = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    x[task, place] = rows[prepared.other_side].map(others).to_numpy(dtype=np.int64)
    mask[task, place] = 1
    label[task, place] = prepared.ratings(phase, rows) if rated else rows.get("target", 1)
    labels, masks = torch.from_numpy(label).float(), torch.from_numpy(mask).float()
    return Examples(torch.from_numpy(x), labels, masks, torch.arange(len(tasks)))
