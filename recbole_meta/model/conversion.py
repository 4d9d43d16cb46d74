"""Which items turn what a user did with them into something else: log-odds of a conversion."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recbole_meta.model.objective_recommender import union

USERS = 10.0  # k, users at the mean of all items that every item starts with


def conversion(
    history: Mapping[str, sparse.csr_matrix], objective: str, users: float = USERS
) -> npt.NDArray[np.float32]:
    r"""How much more often than others an item is an objective's for who met it otherwise, [I].

    .. math::
        o_i = logit \frac{n_i + k m}{N_i + k} - logit(m), \qquad
        m = \frac{\sum_i n_i + 1}{\sum_i N_i + 2}

    N_i: users who met the item in train under another behaviour; n_i: those of them who have it
    under the objective, too. An item that nobody met otherwise has 0.
    """
    nothing = 0 * history[objective]  # so that one behaviour alone has a union of others, too
    others = union([nothing, *(x for name, x in history.items() if name != objective)]) > 0
    met = np.asarray(others.sum(axis=0), dtype=float).ravel()
    both = np.asarray(others.multiply(history[objective] > 0).sum(axis=0), dtype=float).ravel()
    mean = (both.sum() + 1) / (met.sum() + 2)
    odds = (both + users * mean) / (met - both + users * (1 - mean))
    return np.asarray(np.log(odds) - np.log(mean / (1 - mean)), dtype=np.float32)
