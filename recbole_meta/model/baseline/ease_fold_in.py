r"""
EASEFoldIn
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass

import numpy as np

from recbole_meta.data.warm import WarmUsers
from recbole_meta.model.fold_in_recommender import FoldInRecommender, FoldInSettings
from recbole_meta.settings import Positive


@dataclass(frozen=True)
class EASEFoldInSettings(FoldInSettings):
    reg_weight: Positive  # lambda, in users


class EASEFoldIn(FoldInRecommender):
    r"""EASE of warm users, applied to the rows of the support.

    .. math:: P = (X'X + \lambda I)^{-1}, \qquad W_{ij} = -P_{ij} / P_{jj}, \qquad W_{ii} = 0
    """

    settings: EASEFoldInSettings

    def weights(self, warm: WarmUsers) -> np.ndarray:
        inverse = np.linalg.inv(warm.gram + self.settings.reg_weight * np.eye(warm.n_items))
        w = -inverse / np.diag(inverse)
        np.fill_diagonal(w, 0)
        return w
