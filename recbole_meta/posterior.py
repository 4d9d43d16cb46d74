r"""A Gaussian posterior over the weights of a linear model, values = vectors w + N(0, s^2).

.. math::
    w \sim N(\mu, C), \qquad G = (X C X' + s^2 I)^{-1} X C, \qquad
    \mu' = \mu + G' (y - X \mu), \qquad C' = C - G' X C

The solve is of the size of what was observed; one observation at a time it is of rank one, exact
and in any order. All functions are of one task, without a batch axis.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """What is known of the weights."""

    mean: Tensor  # [d]
    covariance: Tensor  # [d, d]


def observe(known: Posterior, vectors: Tensor, values: Tensor, noise: Tensor) -> Posterior:
    """After N values [N] of these vectors [N, d]; zero vectors with zero values change nothing."""
    spread = vectors @ known.covariance  # [N, d]
    gram = spread @ vectors.T + noise * torch.eye(len(vectors)).to(vectors)
    gain = torch.linalg.solve(gram, spread)  # [N, d]
    mean = known.mean + gain.T @ (values - vectors @ known.mean)
    return Posterior(mean, known.covariance - gain.T @ spread)


def update(known: Posterior, vector: Tensor, value: Tensor, noise: Tensor) -> Posterior:
    """After one more value of a vector [d]: of rank one, without a solve."""
    spread = known.covariance @ vector  # [d]
    gain = spread / (vector @ spread + noise)
    mean = known.mean + gain * (value - vector @ known.mean)
    return Posterior(mean, known.covariance - torch.outer(gain, spread))


def variance(known: Posterior, vectors: Tensor) -> Tensor:
    """Of the values without noise of these vectors [N, d]: [N]."""
    return ((vectors @ known.covariance) * vectors).sum(-1).clamp(min=0)
