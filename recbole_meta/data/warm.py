r"""Warm users' histories: what closed forms, floors and fold-in rules are computed from.

U warm users, I items (RecBole's ids, 0 is padding). The support of cold users in a transductive
training file is left out. Where items are cold the two sides change places: U warm items, I users.
"""

from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd
from recbole.data.dataset import Dataset
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from recbole_meta.data.prepared import Prepared, open_prepared

Floats = npt.NDArray[np.float64]
_EXACT = 2_500  # below this many users or items the decomposition is exact and dense
_RANK = 256  # directions kept where it is not


class WarmUsers:
    """Histories as arrays; ``user`` counts warm users from 0, ``position`` a user's rows from 0."""

    def __init__(
        self,
        user: npt.NDArray[np.int64],
        item: npt.NDArray[np.int64],
        target: Floats,
        n_items: int,
        query_start: int,
        horizon: int | None,
    ) -> None:
        self.ids, self.user = np.unique(user, return_inverse=True)  # ids [U] are RecBole's
        order = np.argsort(self.user, kind="stable")
        self.user, self.item, self.target = self.user[order], item[order], target[order]
        self.n_users, self.n_items = int(self.user.max(initial=-1)) + 1, n_items
        self.length = np.bincount(self.user, minlength=self.n_users)
        self.position = np.arange(len(item)) - (np.cumsum(self.length) - self.length)[self.user]
        self.query_start, self.horizon = query_start, horizon

    def window(self, start: int, stop: int | None) -> sparse.csr_matrix:
        """0/1 of the rows at positions start <= . < stop, [U, I]."""
        chosen = self.position >= start
        if stop is not None:
            chosen &= self.position < stop
        pair = (self.user[chosen], self.item[chosen])
        ones = np.ones(int(chosen.sum()))
        return sparse.csr_matrix((ones, pair), shape=(self.n_users, self.n_items))

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """0/1 of all rows, X [U, I]."""
        return self.window(0, None)

    @cached_property
    def query(self) -> sparse.csr_matrix:
        """0/1 of the rows in the position of a task's primary query, Y [U, I]."""
        stop = None if self.horizon is None else self.query_start + self.horizon
        return self.window(self.query_start, stop)

    @cached_property
    def pop(self) -> Floats:
        """The share of warm users who have the item, p [I]."""
        return np.asarray(self.matrix.mean(axis=0)).ravel()

    @cached_property
    def query_pop(self) -> Floats:
        """The share of warm users who have the item in the query's position, m [I]."""
        return np.asarray(self.query.mean(axis=0)).ravel()

    @cached_property
    def middle(self) -> float:
        """The best constant: the median of the ratings, the mean of 0/1 labels."""
        labels = np.isin(self.target, (0, 1)).all()
        return float(np.mean(self.target) if labels else np.median(self.target))

    @cached_property
    def gram(self) -> sparse.csr_matrix:
        """X'X, [I, I]."""
        return (self.matrix.T @ self.matrix).tocsr()

    @cached_property
    def directions(self) -> Floats:
        r"""V S / sqrt(U) of X - p = U S V', strongest first, [I, r].

        Exact where users or items are few, else the first 256 by Lanczos.
        """
        return self.scaled_directions(0.0)

    def scaled_directions(self, power: float) -> Floats:
        r"""The same of (X - p) diag(w), :math:`w_i \propto p_i^{-power}`, with as much variance."""
        x, p = self.matrix, self.pop
        w = np.maximum(p, 1 / max(1, self.n_users)) ** -power
        variance = p * (1 - p)
        w *= np.sqrt(variance.sum() / (variance * w**2).sum()) if variance.any() else 1.0
        if min(x.shape) > _EXACT:
            x, p = (x @ sparse.diags(w)).tocsr(), p * w
            centred = LinearOperator(
                x.shape,
                matvec=lambda v: x @ v.ravel() - p @ v.ravel(),
                rmatvec=lambda u: x.T @ u.ravel() - p * u.sum(),
                matmat=lambda v: x @ v - p @ v,
                rmatmat=lambda u: x.T @ u - np.outer(p, u.sum(axis=0)),
                dtype=np.float64,
            )
            start = np.random.default_rng(0).normal(size=min(x.shape))
            _, s, vt = svds(centred, k=_RANK, v0=start)
            return np.asarray(vt.T[:, ::-1] * s[::-1] / np.sqrt(self.n_users))
        dense = (x.toarray() - p) * w
        if x.shape[0] <= x.shape[1]:
            squares, u = np.linalg.eigh(dense @ dense.T)
            return np.asarray(dense.T @ u[:, ::-1] / np.sqrt(self.n_users))
        squares, v = np.linalg.eigh(dense.T @ dense)
        return np.asarray(v[:, ::-1] * np.sqrt(np.maximum(squares[::-1], 0) / self.n_users))


_cache: "WeakKeyDictionary[Dataset, WarmUsers]" = WeakKeyDictionary()


def _are_support(
    prepared: Prepared,
    phase: str,
    dataset: Dataset,
    user: npt.NDArray[np.int64],
    item: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Which rows of a training file are the support of a task that is judged from it."""
    rows = prepared.support_in_train(phase)
    users = rows["user"].map(dataset.field2token_id[dataset.uid_field])
    items = rows["item"].map(dataset.field2token_id[dataset.iid_field])
    known = users.notna() & items.notna()
    support = (users[known] * dataset.item_num + items[known]).to_numpy(dtype=np.int64)
    return np.isin(user * dataset.item_num + item, support)


def warm_ratings(dataset: Dataset) -> Floats:
    """What warm users gave in the rows of `warm_users`, where a ranking is judged."""
    prepared, warm = open_prepared(dataset.config["prepared"]), warm_users(dataset)
    phase = dataset.config["phase"]
    rows = prepared.warm_rows(phase)
    user = rows["user"].map(dataset.field2token_id[dataset.uid_field])
    item = rows["item"].map(dataset.field2token_id[dataset.iid_field])
    task, other = (user, item) if prepared.side == "user" else (item, user)
    given = pd.Series(prepared.ratings(phase, rows), [task, other])
    pairs = pd.MultiIndex.from_arrays([warm.ids[warm.user], warm.item])
    return np.asarray(given[pairs], dtype=np.float64)


def warm_users(dataset: Dataset) -> WarmUsers:
    """Warm users' rows of a training dataset of a prepared folder, which its config names.

    Computed once per dataset, so that many trials of settings share its decompositions.
    """
    if dataset not in _cache:
        config = dataset.config
        prepared = open_prepared(config["prepared"])
        user = dataset.inter_feat[dataset.uid_field].numpy()
        item = dataset.inter_feat[dataset.iid_field].numpy()
        warm = ~_are_support(prepared, config["phase"], dataset, user, item)
        if prepared.feedback == "implicit":
            target = np.ones(len(user))
        else:
            target = dataset.inter_feat[prepared.target].numpy().astype(np.float64)
        task, other = (user, item) if prepared.side == "user" else (item, user)
        _cache[dataset] = WarmUsers(
            task[warm],
            other[warm],
            target[warm],
            dataset.item_num if prepared.side == "user" else dataset.user_num,
            prepared.query_start,
            prepared.horizon,
        )
    return _cache[dataset]
