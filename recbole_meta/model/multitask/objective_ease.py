r"""
ObjectiveEASE
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from recbole.data.dataset import Dataset
from scipy import sparse
from scipy.linalg import lapack
from torch import Tensor

from recbole_meta.errors import DataError
from recbole_meta.model.objective_recommender import (
    ObjectiveRecommender,
    ObjectiveSettings,
    dense_rows,
    union,
)
from recbole_meta.settings import Positive, Weight

_CHUNK = 512  # users whose rows [., I] are dense at a time


@dataclass(frozen=True)
class ObjectiveEASESettings(ObjectiveSettings):
    reg_weight: Positive  # lambda, in users
    weights: dict[str, Weight]  # of the behaviours in the union; 1 where one is not named
    target: Literal["union", "own"]  # what is predicted: the union itself, or the own behaviour
    copy: Weight  # c, what a user's own entry of the union adds to its score


class ObjectiveEASE(ObjectiveRecommender):
    r"""EASE from the weighted union of all behaviours to one of them, with a copy term.

    .. math::
        X_{ui} &= \max_b w_b X^{(b)}_{ui}, \qquad
        B = P X'Y - P \, diag(\gamma), \qquad P = (X'X + \lambda I)^{-1} \\
        \gamma_j &= (P X'Y)_{jj} / P_{jj} \;\Rightarrow\; B_{jj} = 0, \qquad
        score = X B + c X

    Y is the union (then B is EASE's, where all weights are 1) or the objective's own behaviour.
    What differs from the paper: Y, the weights and c; and nothing of size [I, I] is made, since

    .. math:: X P = K^{-1} X, \qquad X P X' = I - \lambda K^{-1}, \qquad K = XX' + \lambda I

    needs one inverse of users, [U, U], for all objectives.
    """

    group = "rule"
    settings: ObjectiveEASESettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.weights, "weights")
        weight = {name: self.settings.weights.get(name, 1.0) for name in self.objectives}
        self.source = union(weight[name] * self.history[name] for name in self.objectives)
        self.source = self.source.astype(np.float32)
        self.source.eliminate_zeros()
        if not self.source.nnz:
            raise DataError("ObjectiveEASE: all 'weights' are 0, so the union is empty.")

    def targets(self) -> dict[str, sparse.csr_matrix]:
        """What is predicted, Y [U, I]: by objective, or one for all of them."""
        return self.history if self.settings.target == "own" else {"union": self.source}

    def prepare(self, train_data) -> None:
        reg = self.settings.reg_weight
        self.users, self.inverse = _inverse(train_data._dataset, self.source, reg)
        self.x = self.source[self.users]  # [U, I], of users who have anything
        self.y = {name: matrix[self.users] for name, matrix in self.targets().items()}
        one, of_y = np.zeros(self.n_items), {name: np.zeros(self.n_items) for name in self.y}
        for start in range(0, len(self.users), _CHUNK):
            part = slice(start, start + _CHUNK)
            xp = self.inverse[part] @ self.x  # [., I], rows of XP
            one += _column_sums(self.x[part], xp)
            for name, total in of_y.items():
                total += _column_sums(self.y[name][part], xp)
        diagonal = (1 - one) / reg  # P_jj
        self.gamma = {name: (total / diagonal).astype(np.float32) for name, total in of_y.items()}
        self.place = np.full(self.n_users, -1)
        self.place[self.users] = np.arange(len(self.users))

    def rank(self, users: Tensor, objective: str) -> Tensor:
        scores = self.settings.copy * dense_rows(self.source, users)
        place = self.place[users.cpu().numpy()]
        known = place >= 0  # who did nothing in train has a row of zeros
        inverse = self.inverse[place[known]]  # [B, U]
        hat = -self.settings.reg_weight * inverse
        hat[np.arange(len(hat)), place[known]] += 1
        target = objective if objective in self.y else "union"
        fitted = hat @ self.y[target] - (inverse @ self.x) * self.gamma[target]
        scores[torch.from_numpy(known)] += torch.from_numpy(fitted)
        return scores


_last: "WeakKeyDictionary[Dataset, tuple]" = WeakKeyDictionary()


def _inverse(dataset: Dataset, source: sparse.csr_matrix, reg: float) -> tuple:
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
    lower, failed = lapack.spotrf(kernel, lower=1, overwrite_a=1)
    inverse, singular = lapack.spotri(lower, lower=1, overwrite_c=1)
    if failed or singular:
        raise DataError(f"ObjectiveEASE: reg_weight {reg} is too small for this union.")
    for start in range(0, len(users), _CHUNK):  # the upper half from the lower
        end = min(start + _CHUNK, len(users))
        block = np.tril(inverse[start:end, start:end])
        inverse[start:end, start:end] = block + np.tril(block, -1).T
        inverse[start:end, end:] = inverse[end:, start:end].T
    found = users, inverse.T  # symmetric: rows lie together
    _last[dataset] = reg, source, found
    return found


def _column_sums(chosen: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    """The sums over rows of the products of entries, [I]."""
    return np.asarray(chosen.multiply(values).sum(axis=0)).ravel()
