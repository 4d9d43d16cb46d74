"""The support of cold users as one padded table, indexed by RecBole's user id."""

import numpy as np
import torch

from recbole_meta.data.prepared import Prepared
from recbole_meta.episode import Examples


def read_support(
    prepared: Prepared, phase: str, k: int, users: dict[str, int], items: dict[str, int]
) -> Examples:
    """The first k rows of each cold user, [n_users, max(k, 1)]; other users' mask is all zero.

    ``users`` and ``items`` map tokens to RecBole's ids. The label is 1 where the feedback is a
    ranking.
    """
    rows = prepared.support(phase, k)
    user = rows["user"].map(users).to_numpy(dtype=np.int64)
    place = rows["position"].to_numpy()
    shape = (len(users), max(k, 1))
    x, mask, label = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    x[user, place] = rows["item"].map(items).to_numpy(dtype=np.int64)
    mask[user, place] = 1
    label[user, place] = rows.get("target", 1)
    labels, masks = torch.from_numpy(label).float(), torch.from_numpy(mask).float()
    return Examples(torch.from_numpy(x), labels, masks, torch.arange(len(users)))
