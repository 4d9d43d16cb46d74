"""A random walk on the graph of users and items, from what a user has to what he may take next."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

_ROUNDING = 1e-12  # what a walk that only comes home leaves, in parts of it


class RandomWalk:
    r"""From a user to an item of his, on to a user who has it, and to an item of that one.

    .. math::
        score_u = \frac{w_u P}{std_j (w_u P)_j}, \qquad
        P_{ij} = n_j^{-\beta} \sum_v \frac{X_{vi}}{\sum_{v'} X_{v'i}}
                 \frac{Y_{vj}}{\sum_{j'} Y_{vj'}}, \qquad P_{jj} = 0

    w_u is a user's row of the source [U, I], whose entries weigh his items; X and Y are the source
    and the target as zeros and ones; :math:`n_j` is how many have item j in Y, so that
    :math:`\beta` [0, 1) takes from popular items what popularity alone gives them. Scores have
    a deviation of 1 over the catalogue, whatever a user has. Nothing of size [I, I] is made.

    Paudel, Christoffel, Newell, Bernstein. "Updatable, Accurate, Diverse, and Scalable
    Recommendations for Interactive Applications." ACM TiiS 7(1), 2017 (RP3-beta; here from a
    union of behaviours X to one of them Y, without a power of the steps).
    """

    def __init__(self, source: sparse.csr_matrix, target: sparse.csr_matrix, power: float) -> None:
        self.source, x, y = source.astype(np.float64), _binary(source), _binary(target)
        to_users = x.multiply(1 / _at_least_one(x.sum(axis=0)))  # [U, I]
        to_items = y.multiply(1 / _at_least_one(y.sum(axis=1)))
        to_items = to_items.multiply(_at_least_one(y.sum(axis=0)) ** -power)
        self.to_users, self.to_items = to_users.T.tocsr(), to_items.tocsr()
        home = to_users.multiply(self.to_items).sum(axis=0)  # P_jj, were it not 0
        self.home = np.asarray(home).ravel()

    def scores(self, users: Tensor) -> Tensor:
        """Of these users, [B, I]; zeros of who has nothing, or leads nowhere."""
        own = self.source[users.cpu().numpy()]
        walked = ((own @ self.to_users) @ self.to_items).toarray()
        least = _ROUNDING * walked.max(axis=1, keepdims=True)
        walked -= own.multiply(self.home).toarray()
        spread = walked.std(axis=1, ddof=1, keepdims=True)
        scores = torch.from_numpy(walked / np.where(spread > least, spread, np.inf))
        return scores.to(users.device, torch.get_default_dtype())


def _binary(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    return (matrix > 0).astype(np.float64).tocsr()


def _at_least_one(count: np.matrix) -> np.ndarray:
    return np.maximum(np.asarray(count), 1)
