r"""
SubsetRidge
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
    Dropout of the input in closed form: Steck. "Autoencoders that don't overfit towards the
    Identity." NeurIPS 2020.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import Floats, warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError
from recbole_meta.model.inverse import inverse_of
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State, joined
from recbole_meta.settings import Positive, Weight

_DOUBLE = 4096  # users up to whom matrices of their size are in double precision


@dataclass(frozen=True)
class SubsetRidgeSettings(MetaSettings):
    reg_weight: Positive  # lambda, in users; times k^2
    base_weight: Weight  # b, of m beside what the support says; 1: what squared error asks for
    user_power: Weight  # a, a user with n rows counts n^a; 0: users count alike


class SubsetRidge(MetaRecommender):
    r"""A ridge from the support to all other rows, over all supports of k rows that warm users
    could have had; one per k, in closed form.

    A warm user with the rows x (0/1) and n of them, n > k, is asked for the others, y = x - s, by
    each of his supports s of k rows; their mean is

    .. math::
        E[s_i s_j] = x_i x_j \tfrac{k (k - 1)}{n (n - 1)}, \quad
        E[s_i s_i] = x_i \tfrac{k}{n}, \quad
        E[s_i y_j] = x_i x_j \tfrac{k (n - k)}{n (n - 1)}, \quad
        E[y_j] = x_j \tfrac{n - k}{n} \qquad (i \ne j)

    .. math::
        B = \Big(\sum_u a_u E[s s'] + \lambda k^2 I\Big)^{-1} \sum_u a_u E[s \, (y - m)'], \qquad
        score = b \, m + B' s, \qquad m = mean_u \, a_u E[y]

    The entries :math:`E[s s']` off the diagonal fall with k as k^2, so few rows make it a table of
    who has i has j, k = 1, and many make it EASE's regression, in which rows that say the same are
    counted once. An infinite :math:`\lambda` leaves the popularity b m, an empty support p. A user
    counts :math:`a_u = n_u^a`, over the mean of all that have more than k: with a = 1 every row of
    a support says as much, whoever has it.

    What differs from EASE: a support has k rows, not all; no constraint on the diagonal, since what
    is in the support is not asked for. From dropout: exactly k rows are kept.
    It takes a user's rows to be in no order.

    Where users U are fewer than items the solve is of their size: with
    :math:`\sum_u E[s s'] + \lambda k^2 I = D + X' W X`, W and D diagonal,
    :math:`(D + X'WX)^{-1} = D^{-1} - D^{-1} X' M X D^{-1}, \; M = (W^{-1} + X D^{-1} X')^{-1}`, and
    since :math:`M X D^{-1} X' = I - M W^{-1}` one inverse is the only solve.
    What is kept is B in U directions of the items, X = P S V', so that no user's rows are.
    """

    settings: SubsetRidgeSettings

    def prepare(self, train_data) -> None:
        dataset = train_data._dataset
        warm = warm_users(dataset)
        shots = [k for k in open_prepared(dataset.config["prepared"]).shots if k] or [1]
        if warm.length.max(initial=0) <= max(shots):
            raise DataError(f"SubsetRidge: no warm user has {max(shots) + 1} rows.")
        x, few = warm.matrix, warm.n_users < warm.n_items
        power = self.settings.user_power
        kind = np.float32 if warm.n_users > _DOUBLE else np.float64
        directions, turn = _directions(x, kind) if few else (np.empty((warm.n_items, 0)), None)
        size = directions.shape[1] or warm.n_items
        maps = np.empty((len(shots), size, warm.n_items), dtype=kind if few else np.float64)
        found = []
        for k, place in zip(shots, maps, strict=True):
            ridge = x, k, self.settings.reg_weight * k**2, power
            one = over_items(*ridge) if turn is None else over_users(*ridge, kind)
            if turn is None:
                place[:] = one.map
            else:
                np.matmul(turn, one.map, out=place)
            found.append(one._replace(map=place))
            del one  # there is one of them at a time: they are large
        self.keep("shots", np.array(shots, dtype=np.int64))
        self.keep("directions", directions)  # V [I, R]; none where users are many
        self.keep("mean", np.stack([warm.pop, *(each.mean for each in found)]))  # [1 + K, I]
        self.keep("scale", np.stack([each.scale for each in found]))  # [K, I]
        self.keep("own", np.stack([each.own for each in found]))  # [K, I]
        self.keep("share", np.stack([each.share for each in found]))  # [K, I]
        self.keep("map", maps.reshape(-1, warm.n_items))  # [K R, I]; [K I, I] where users are many

    def adapt(self, support: Examples) -> State:
        k, items = support.mask.sum(), support.x
        nearest = (self.shots - k).abs().argmin()
        block = torch.arange(len(self.shots), device=k.device) == nearest
        block = block * (k > 0).to(support.mask.dtype)  # [K]
        if self.directions.shape[1]:
            scale = (block @ self.scale)[items] * support.mask  # [S]
            rows = scale @ self.directions[items]  # [R]
            scores = (block.unsqueeze(-1) * rows).reshape(-1) @ self.map  # [I]
        else:
            scores = support.mask @ self.map[nearest * self.map.shape[1] + items]
        own = (block @ self.own)[items] * support.mask
        left = self.settings.base_weight - ((block @ self.share)[items] * support.mask).sum()
        mean = joined((1 - block.sum()).unsqueeze(0), block * left)  # [1 + K]
        there = items.unsqueeze(-1) == torch.arange(len(self.own.T), device=k.device)  # [S, I]
        return {"scores": scores + mean @ self.mean - own @ there.to(own.dtype)}

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.of_all(state["scores"], x)


class SubsetFit(NamedTuple):
    r"""At one k: :math:`(A + \lambda I)^{-1} \sum_u E[s y']` is diag(scale) X' map - diag(own);
    where users are many, it is the map.
    """

    mean: Floats  # m [I]
    scale: Floats  # [I]
    map: Floats  # [U, I]; [I, I] where users are many
    own: Floats  # [I]
    share: Floats  # (A + lambda I)^-1 sum_u E[s], what of m a row of the support replaces, [I]


class _Moments(NamedTuple):
    """The sums over users of a support's moments at k rows, but for the products of items."""

    mean: Floats  # m [I]
    met: Floats  # sum of E[s], [I]
    pair: Floats  # E[s_i s_j] of a user's items, [U]
    asked: Floats  # E[s_i y_j] of a user's items, [U]


def _moments(x: sparse.csr_matrix, k: int, power: float) -> _Moments:
    n = np.asarray(x.sum(axis=1)).ravel()
    asks = n > k
    n = np.where(asks, n, 2.0)
    counts = asks * (n / n[asks].max(initial=1)) ** power
    counts *= asks.sum() / max(1, counts.sum())  # a_u; the longest user's was 1
    pairs = counts * k / (n * np.maximum(n - 1, 1))
    return _Moments(
        x.T @ (counts * (n - k) / n) / max(1, asks.sum()),
        x.T @ (counts * k / n),
        (k - 1) * pairs,
        (n - k) * pairs,
    )


def over_items(x: sparse.csr_matrix, k: int, reg: float, power: float = 0.0) -> SubsetFit:
    """By a solve of the items' size."""
    mean, met, pair, asked = _moments(x, k, power)
    inner = (x.T @ sparse.diags(pair) @ x).toarray()
    np.fill_diagonal(inner, met + reg)
    target = (x.T @ sparse.diags(asked) @ x).toarray()
    np.fill_diagonal(target, 0)
    solved = np.linalg.solve(inner, np.column_stack([target, met]))
    none = np.zeros(len(met))
    return SubsetFit(mean, none, solved[:, :-1], none, solved[:, -1])


def over_users(
    x: sparse.csr_matrix, k: int, reg: float, power: float = 0.0, kind: type = np.float64
) -> SubsetFit:
    """By a solve of the users' size; matrices of that size, and the map, are of this kind."""
    mean, met, pair, asked = _moments(x, k, power)
    scale = 1 / (met - x.T @ pair + reg)  # 1 / D
    scaled = x @ sparse.diags(scale)  # X D^-1
    own, share = scale * (x.T @ asked), scale * met
    if k == 1:  # W is 0
        return SubsetFit(mean, scale, (sparse.diags(asked) @ x).astype(kind).toarray(), own, share)
    found, there = np.zeros(x.shape, dtype=kind), pair > 0
    x, scaled, pair, asked = x[there], scaled[there], pair[there], asked[there]
    spread = (scaled @ x.T).astype(kind).toarray(order="F")  # X D^-1 X', and W^-1 on its diagonal
    np.einsum("uu->u", spread)[:] += 1 / pair
    inner = inverse_of(spread)  # M
    assert inner is not None, "W^-1 is above 0 on the diagonal"
    told = sparse.diags(asked / pair) @ x + scaled @ sparse.diags(own / scale)
    found[there] = (told.astype(kind).T @ inner).T
    share -= scaled.T @ (inner @ (scaled @ met).astype(kind))
    return SubsetFit(mean, scale, found, own, share)


def _directions(x: sparse.csr_matrix, kind: type) -> tuple[Floats, Floats]:
    """V [I, R] and S P' [R, U] of X = P S V': X' F = V (S P' F) for any F [U, I].

    In single precision small S are rounding's: all P are kept, and with them the product.
    """
    squares, p = np.linalg.eigh((x @ x.T).astype(kind).toarray())
    double = kind is np.float64
    least = (1e-9 if double else 1e-6) * squares.max()
    there = squares > least if double else slice(None)
    p, s = p[:, there], np.sqrt(np.maximum(squares[there], least))
    return np.asarray(x.T.astype(kind) @ (p / s)), (p * s).T
