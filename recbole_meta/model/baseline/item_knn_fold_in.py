r"""
ItemKNNFoldIn
################################################
Reference:
    Sarwar et al. "Item-based collaborative filtering recommendation algorithms." WWW 2001.
    Shrinkage: Bell and Koren. "Improved neighborhood-based collaborative filtering." KDD Cup 2007.
"""

from dataclasses import dataclass

import numpy as np

from recbole_meta.data.warm import WarmUsers
from recbole_meta.model.fold_in_recommender import FoldInRecommender, FoldInSettings
from recbole_meta.settings import Count, Weight


@dataclass(frozen=True)
class ItemKNNFoldInSettings(FoldInSettings):
    shrink: Weight  # added to the denominator, in users
    neighbours: Count  # most similar items that each item keeps; 0: all


class ItemKNNFoldIn(FoldInRecommender):
    r"""Shrunk cosine between items, on warm users only.

    .. math:: W_{ij} = c_{ij} / (\sqrt{c_{ii} c_{jj}} + shrink), \qquad W_{ii} = 0

    with c = X'X. Unlike RecBole's ItemKNN the newcomer's own rows are not part of X.
    """

    settings: ItemKNNFoldInSettings

    def weights(self, warm: WarmUsers) -> np.ndarray:
        norm = np.sqrt(np.diag(warm.gram))
        w = np.outer(norm, norm)  # in place from here: I is large
        w += self.settings.shrink
        np.divide(warm.gram, np.maximum(w, 1e-12, out=w), out=w)
        np.fill_diagonal(w, 0)
        keep = self.settings.neighbours
        if 0 < keep < len(w):
            least = np.partition(w, -keep, axis=0)[-keep]  # [I] the keep-th largest of each column
            w[w < least] = 0
        return w
