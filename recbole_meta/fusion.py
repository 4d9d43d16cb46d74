r"""One ranking out of K scores: K objectives of one model, or K models.

Scores :math:`s_t` [B, I] of a head t are brought to one scale per user, then combined by weights
:math:`w_t \ge 0`. :math:`\rho_{ti}` is the place of item i, 1 the best, tied items the mean of
their places; :math:`n_t` the number of candidates.

.. math::
    \text{none:}    \quad & p_t = s_t &
    \text{softmax:} \quad & p_t = softmax(s_t) \\
    \text{zscore:}  \quad & p_t = (s_t - mean(s_t)) / sd(s_t) &
    \text{rank:}    \quad & p_t = (n_t + 1 - \rho_t) / n_t

.. math::
    \text{sum:}        \quad & \textstyle\sum_t w_t \, p_t \\
    \text{product:}    \quad & \textstyle\prod_t (p_t + \epsilon)^{w_t}, \;\text{returned as its
                               logarithm} \\
    \text{reciprocal:} \quad & \textstyle\sum_t w_t / (k + \rho_t) \\
    \text{funnel:}     \quad & \textstyle\sum_t w_t \prod_{j \le t} p_j, \;\text{j: the steps of the
                               funnel up to t}

A score of -inf says that the item is no candidate of that head: it gets what the least candidate
gets, 0 in softmax and rank, the last place in reciprocal; where no head has it, the fused score is
-inf. Any monotone map of a head's scores leaves rank and reciprocal as they are.

Reference:
    Cormack, Clarke, Büttcher. "Reciprocal Rank Fusion outperforms Condorcet and Individual Rank
    Learning Methods." SIGIR 2009. (k = 60)
    Ma, Zhao, Huang, Wang, Hu, Zhu, Gai. "Entire Space Multi-Task Model." SIGIR 2018.
    arXiv:1804.07931. (the product down a funnel)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recbole_meta.errors import DataError, SettingError
from recbole_meta.settings import Positive, Weight

Method = Literal["sum", "product", "reciprocal", "funnel"]
Scale = Literal["none", "softmax", "zscore", "rank"]
_BOUNDED = ("softmax", "rank")  # scales of values within [0, 1]
_SMALLEST = 0.01  # of the weights that are drawn, beside a largest of 1


@dataclass(frozen=True)
class Fusion:
    """How scores are combined, without the weights."""

    method: Method
    scale: Scale  # of each user's scores; reciprocal reads places alone
    epsilon: Positive  # of a product
    offset: Weight  # k of reciprocal

    def check(self, where: str) -> None:
        """Refuse a scale that the method has no meaning for."""
        if self.method in ("product", "funnel") and self.scale not in _BOUNDED:
            raise SettingError(
                f"{where}: 'method' {self.method} multiplies values within [0, 1], and 'scale' is "
                f"{self.scale}. Allowed: {', '.join(_BOUNDED)}."
            )


def fuse(
    scores: Tensor, weights: Sequence[float], fusion: Fusion, order: Sequence[int] = ()
) -> Tensor:
    """Scores [K, B, I] as one, [B, I]; ``order``: the heads along the funnel, as they are if ()."""
    fused = combine(prepared(scores, fusion), weights, fusion, order)
    return fused.masked_fill((scores == -torch.inf).all(0), -torch.inf)


def prepared(scores: Tensor, fusion: Fusion) -> Tensor:
    """What the weights are applied to, [K, B, I]: scaled scores, or places."""
    if scores.ndim != 3 or not scores.shape[0]:
        raise DataError(
            f"scores {tuple(scores.shape)} must have the shape [K, B, I], K at least 1."
        )
    broken = torch.isnan(scores) | (scores == torch.inf)
    if broken.any():
        raise DataError(f"{int(broken.sum())} scores are NaN or infinite.")
    return places(scores) if fusion.method == "reciprocal" else scaled(scores, fusion.scale)


def combine(
    values: Tensor, weights: Sequence[float], fusion: Fusion, order: Sequence[int] = ()
) -> Tensor:
    """Prepared values [K, B, I] as one score, [B, I]."""
    w = torch.as_tensor(weights, dtype=values.dtype, device=values.device)
    if w.shape != values.shape[:1] or not (w >= 0).all() or not w.isfinite().all() or not w.any():
        raise SettingError(
            f"weights {list(weights)}: {len(values)} numbers of at least 0 are needed, one above 0."
        )
    if fusion.method == "product":
        values = (values + fusion.epsilon).log()
    elif fusion.method == "reciprocal":
        values = 1 / (fusion.offset + values)
    elif fusion.method == "funnel":
        steps = list(order) or list(range(len(values)))
        values, w = values[steps].cumprod(0), w[steps]
    return torch.einsum("k,kbi->bi", w, values)


def scaled(scores: Tensor, scale: Scale) -> Tensor:
    """Scores [.., I] on one scale for each user."""
    there = scores > -torch.inf
    if scale == "softmax":
        return scores.softmax(-1).nan_to_num(0.0)  # a row without candidates
    count = there.sum(-1, keepdim=True)
    if scale == "rank":
        return ((count + 1 - places(scores)) / count.clamp(min=1)).clamp(min=0)
    values = scores
    if scale == "zscore":
        mean = scores.where(there, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
        values = scores - mean
        deviation = (
            values.where(there, 0.0).square().sum(-1, keepdim=True) / count.clamp(min=1)
        ).sqrt()
        values = values / deviation.where(deviation > 0, 1.0)
    least = values.where(there, torch.inf).amin(-1, keepdim=True)
    return values.where(there, least.where(count > 0, 0.0))


def places(scores: Tensor) -> Tensor:
    """The place of each item among scores [.., I], 1 the best; tied items have their mean."""
    size = scores.shape[-1]
    score, item = scores.sort(dim=-1, descending=True)
    place = torch.arange(size, device=scores.device).expand(scores.shape)
    edge = torch.ones_like(score[..., :1], dtype=torch.bool)
    differs = score[..., 1:] != score[..., :-1]
    first = place.where(torch.cat([edge, differs], -1), 0).cummax(-1).values
    last = place.where(torch.cat([differs, edge], -1), size).flip(-1).cummin(-1).values.flip(-1)
    mean = 1 + (first + last).to(scores.dtype) / 2
    return torch.empty_like(scores).scatter_(-1, item, mean)


def weight_trials(heads: int, number: int, seed: int) -> list[tuple[float, ...]]:
    """The weights that a search tries: equal ones, each head alone, then drawn ones.

    Drawn: log-uniform between 0.01 and 1, divided by their sum. A search over them is never worse
    on its own data than equal weights or than the best head alone.
    """
    if number < heads + 1:
        raise SettingError(
            f"{number} trials: equal weights and each of {heads} heads alone need {heads + 1}."
        )
    fixed = [(1 / heads,) * heads]
    fixed += [tuple(float(head == other) for other in range(heads)) for head in range(heads)]
    draws = torch.Generator().manual_seed(seed)
    drawn = _SMALLEST ** torch.rand(
        (number - len(fixed), heads), generator=draws, dtype=torch.double
    )
    drawn = drawn / drawn.sum(1, keepdim=True)
    return fixed + [tuple(row) for row in drawn.tolist()]
