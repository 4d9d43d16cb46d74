r"""
ItemKNNFoldIn
################################################
Reference:
    Sarwar et al. "Item-based collaborative filtering recommendation algorithms." WWW 2001.
    Shrinkage: Bell and Koren. "Improved neighborhood-based collaborative filtering." KDD Cup 2007.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

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
        w, norm = warm.gram.copy(), np.sqrt(warm.gram.diagonal())
        entries = w.tocoo()  # in the order of w's data
        row, column = entries.row, entries.col
        w.data /= np.maximum(norm[row] * norm[column] + self.settings.shrink, 1e-12)
        w.data[row == column] = 0
        if self.settings.neighbours:
            least = np.array([_largest(part, self.settings.neighbours) for part in _rows(w)])
            w.data[w.data < least[column]] = 0  # W is symmetric: a row's is its column's
        return np.asarray(w.astype(torch.empty(0).numpy().dtype).toarray())


def _rows(w: sparse.csr_matrix) -> list[np.ndarray]:
    return np.split(w.data, w.indptr[1:-1])


def _largest(values: np.ndarray, place: int) -> float:
    """The value at this place from 1, largest first; 0 where there are not as many."""
    return float(np.partition(values, -place)[-place]) if len(values) >= place else 0.0
