"""Means that are shrunk towards those of all."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def shrunk_shares(total: Floats, count: npt.NDArray, weight: float) -> Floats:
    r"""The mean distribution of each user, shrunk by ``weight`` rows of the mean, [U, C].

    .. math:: p_u = \frac{\sum_i q_i + \lambda \bar q}{n_u + \lambda}

    ``total``: the sums of the distributions q of a user's rows, [U, C]; ``count``: how many those
    are, n [U]. Who has none, and no weight, has the mean.
    """
    mean = total.sum(0) / count.sum()
    share = (total + weight * mean) / (count[:, None] + weight).clip(min=1e-9)
    return np.where(share.sum(1, keepdims=True) > 0, share, mean)
