"""EASE's closed form from one source to several targets, through one inverse of users."""

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from recbole.data.dataset import Dataset
from scipy import sparse
from torch import Tensor

from recbole_meta.errors import DataError
from recbole_meta.model.inverse import inverse_of
from recbole_meta.model.objective_recommender import union

_CHUNK = 512  # users whose rows [., I] are dense at a time


class ItemRidge:
    r"""A ridge from all other items of X to each column of Y: :math:`B_{jj} = 0`.

    .. math::
        B = P X'Y - P \, diag(\gamma), \qquad P = (X'X + \lambda I)^{-1}, \qquad
        \gamma_j = (P X'Y)_{jj} / P_{jj}

    Nothing of size [I, I] is made, since :math:`X P = K^{-1} X`,
    :math:`X P X' = I - \lambda K^{-1}` and :math:`K = XX' + \lambda I` need one inverse of users,
    [U, U], for all targets.
    """

    def __init__(
        self,
        dataset: Dataset,
        source: sparse.csr_matrix,
        targets: Mapping[str, sparse.csr_matrix],
        reg_weight: float,
        where: str,
    ) -> None:
        self.reg = reg_weight
        self.users, self.inverse = _inverse(dataset, source, reg_weight, where)
        self.x = source[self.users]  # [U, I], of users who have anything
        self.y = {name: matrix[self.users] for name, matrix in targets.items()}
        n_users, n_items = source.shape
        one, of_y = np.zeros(n_items), {name: np.zeros(n_items) for name in self.y}
        for start in range(0, len(self.users), _CHUNK):
            part = slice(start, start + _CHUNK)
            xp = self.inverse[part] @ self.x  # [., I], rows of XP
            one += _column_sums(self.x[part], xp)
            for name, total in of_y.items():
                total += _column_sums(self.y[name][part], xp)
        diagonal = (1 - one) / reg_weight  # P_jj
        self.gamma = {name: (total / diagonal).astype(np.float32) for name, total in of_y.items()}
        self.place = np.full(n_users, -1)
        self.place[self.users] = np.arange(len(self.users))

    def scores(self, users: Tensor, target: str) -> Tensor:
        """X B of these users, [B, I]; zeros of who has nothing in the source."""
        scores = torch.zeros(len(users), self.x.shape[1])
        place = self.place[users.cpu().numpy()]
        known = place >= 0
        inverse = self.inverse[place[known]]  # [B, U]
        hat = -self.reg * inverse
        hat[np.arange(len(hat)), place[known]] += 1
        fitted = hat @ self.y[target] - (inverse @ self.x) * self.gamma[target]
        scores[torch.from_numpy(known)] = torch.from_numpy(fitted).to(scores.dtype)
        return scores.to(users.device)


def weighted_union(
    history: Mapping[str, sparse.csr_matrix], weights: Mapping[str, float], where: str
) -> sparse.csr_matrix:
    r"""The source :math:`\max_b w_b X^{(b)}`, [U, I]; w is 1 where a behaviour is not named."""
    found = union(weights.get(name, 1.0) * matrix for name, matrix in history.items())
    found = found.astype(np.float32)
    found.eliminate_zeros()
    if not found.nnz:
        raise DataError(f"{where}: all are 0, so the union is empty.")
    return found


_last: "WeakKeyDictionary[Dataset, tuple]" = WeakKeyDictionary()


def _inverse(dataset: Dataset, source: sparse.csr_matrix, reg: float, where: str) -> tuple:
    """Users with an entry, and (XX' + lambda I)^-1 [U, U] of them; the last one is kept, since
    many settings share it.
    """
    kept = _last.get(dataset)
    if kept is not None and kept[0] == reg and (kept[1] != source).nnz == 0:
        return kept[2]
    _last.pop(dataset, None)
    users = np.flatnonzero(np.diff(source.indptr))
    x = source[users]
    kernel = np.zeros((len(users), len(users)), dtype=np.float32, order="F")
    for start in range(0, len(users), _CHUNK):
        kernel[:, start : start + _CHUNK] = (x @ x[start : start + _CHUNK].T).toarray()
    kernel[np.diag_indices(len(users))] += reg
    inverse = inverse_of(kernel)
    if inverse is None:
        raise DataError(f"{where}: reg_weight {reg} is too small for this union.")
    found = users, inverse
    _last[dataset] = reg, source, found
    return found


def _column_sums(chosen: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    """The sums over rows of the products of entries, [I]."""
    return np.asarray(chosen.multiply(values).sum(axis=0)).ravel()
