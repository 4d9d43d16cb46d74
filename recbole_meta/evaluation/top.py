"""The first K candidates of a ranking, with ties in a fixed order and the size of the tie at
the cut.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Top(NamedTuple):
    """T rankings, best first, ties by item token ascending; an empty slot scores -inf."""

    item: Tensor  # [T, K] item ids
    score: Tensor  # [T, K]
    cut_tie_size: (
        Tensor  # [T] candidates whose score equals the K-th; 0 where K slots are not filled
    )


def top_candidates(scores: Tensor, place: Tensor, k: int) -> Top:
    """The K best of scores [T, I]; ``place`` [I] is an item's rank among the tokens, -inf is no
    candidate.
    """
    score, item = torch.topk(scores, k)  # [T, K]
    cut = score[:, -1:]
    filled = torch.isfinite(cut.squeeze(1))
    tied = (scores == cut).sum(dim=1) * filled
    hidden = filled & (tied > (score == cut).sum(dim=1))  # the tie goes on beyond the cut
    if hidden.any():
        by_place = torch.argsort(place)
        order = scores[hidden][:, by_place].sort(dim=1, descending=True, stable=True).indices
        item[hidden] = by_place[order[:, :k]]
    by_token = place[item].argsort(dim=1, stable=True)
    item, score = item.gather(1, by_token), score.gather(1, by_token)
    by_score = score.argsort(dim=1, descending=True, stable=True)
    return Top(item.gather(1, by_score), score.gather(1, by_score), tied)
