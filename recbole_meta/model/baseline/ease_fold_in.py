r"""
EASEFoldIn
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass

import numpy as np

from recbole_meta.data.warm import WarmUsers
from recbole_meta.errors import DataError
from recbole_meta.model.fold_in_recommender import FoldInRecommender, FoldInSettings
from recbole_meta.model.inverse import inverse_of
from recbole_meta.settings import Positive


@dataclass(frozen=True)
class EASEFoldInSettings(FoldInSettings):
    reg_weight: Positive  # lambda, in users


class EASEFoldIn(FoldInRecommender):
    r"""EASE of warm users, applied to the rows of the support.

    .. math:: P = (X'X + \lambda I)^{-1}, \qquad W_{ij} = -P_{ij} / P_{jj}, \qquad W_{ii} = 0

    Where users are fewer than items the solve is of their size (Woodbury):

    .. math:: P = (I - X' (X X' + \lambda I)^{-1} X) / \lambda
    """

    settings: EASEFoldInSettings

    def weights(self, warm: WarmUsers) -> np.ndarray:
        w = inverse(warm, self.settings.reg_weight)
        w /= -np.diag(w)
        np.fill_diagonal(w, 0)
        return w


def inverse(warm: WarmUsers, reg: float) -> np.ndarray:
    """P = (X'X + lambda I)^-1, [I, I]."""
    x = warm.matrix
    if warm.n_items <= warm.n_users:
        return np.linalg.inv(warm.gram.toarray() + reg * np.eye(warm.n_items))
    users = (x @ x.T).toarray(order="F")  # [U, U]
    np.einsum("uu->u", users)[:] += reg
    inner = inverse_of(users)
    if inner is None:
        raise DataError(f"EASEFoldIn: reg_weight {reg} is too small for these users.")
    found: np.ndarray = x.T @ (x.T @ inner).T
    found *= -1 / reg
    np.einsum("ii->i", found)[:] += 1 / reg
    return found
