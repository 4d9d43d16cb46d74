r"""
KernelRidge
################################################
Reference:
    Ridge regression in the dual, and its leave-one-out in closed form: Pahikkala et al. "Fast
    n-Fold Cross-Validation for Regularized Least-Squares." SCAI 2006.
    What may be missing is filled by prediction: Dempster, Laird and Rubin. JRSS B 1977.
"""

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_meta.data.episodes import Histories
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import WarmUsers, warm_ratings, warm_users
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model.meta_recommender import MetaSettings, State, joined
from recbole_meta.model.user_fields_recommender import UserFieldsRecommender
from recbole_meta.settings import Count, Least, Positive, Share, Size, Weight

Weights = Annotated[tuple[Weight, ...], Least(1)]
KERNELS = ("posterior", "support", "ratings", "fields")
_TOP = 10  # of the NDCG that leave-one-out may ask for


@dataclass(frozen=True)
class KernelRidgeSettings(MetaSettings):
    embedding_size: Size  # d, directions kept
    power: Share  # of an item's popularity, by which its column is divided before
    noise: Positive  # s2, the variance of an entry around the user's mean, of the posterior
    posterior: Weights  # weights tried on the kernel of PriorRidge's posterior of a user
    support: Weights  # of what the user has, in the directions
    ratings: Weights  # of what he gave it; above 0 his ratings must be said
    fields: Weights  # of the data set's user features
    reg_weights: Annotated[tuple[Positive, ...], Least(1)]  # lambdas tried
    loss: Literal["ndcg", "squared"]  # by which leave-one-out chooses
    kept: Size  # how many of the best choices are averaged
    draws: Size  # R, random supports of every warm user, where the order is random; else 1
    fills: Count  # how often the unknown entries of the query are filled by leave-one-out

    def __post_init__(self) -> None:
        if not any(any(getattr(self, name)) for name in KERNELS):
            raise SettingError(f"KernelRidge: all weights of {', '.join(KERNELS)} are 0.")

    @property
    def draws_at_random(self) -> bool:
        return self.draws > 1


class Ridge:
    """A ridge over E episodes whose kernel matrix is K = Z Z' = Q diag(e) Q', for any lambda.

    The targets T [E, I] have ``unknown`` entries (episodes [N], items [N]), which are 0 in T. So
    many ``draws`` in a row are of one user.
    """

    def __init__(
        self, z: Tensor, target: Tensor, unknown: tuple[Tensor, Tensor], draws: int = 1
    ) -> None:
        self.draws = draws
        q, root, directions = torch.linalg.svd(z.double(), full_matrices=False)
        self.q, self.root, self.directions = (part.to(z.dtype) for part in (q, root, directions))
        self.target, (self.user, self.item) = target, unknown
        self.seen = target.T @ self.q  # [I, D]
        self.rows = self.q[self.user]  # [N, D]

    def fit(self, reg: float, fills: int) -> tuple[Tensor, Tensor]:
        """B [D, I], with which z' B is the ridge, and what the ridge of all other users says of
        each episode [E, I]; the unknown entries are filled so many times by what the ridge of all
        other episodes says.
        """
        shrunk = self.root.square() / (self.root.square() + reg)  # hat matrix: Q diag(.) Q'
        part = self.rows.square() @ shrunk  # its diagonal, [N]
        value, seen = torch.zeros_like(part), self.seen
        for _ in range(fills):
            fitted = (self.rows * shrunk * seen[self.item]).sum(1)
            value = (fitted - part * value) / (1 - part)
            seen = self.seen.index_add(0, self.item, value.unsqueeze(1) * self.rows)
        target = self.target.index_put((self.user, self.item), value)
        wrong = (target - (self.q * shrunk) @ seen.T).unflatten(0, (-1, self.draws))  # [U, R, I]
        q = self.q.unflatten(0, (-1, self.draws))  # [U, R, D]
        inner = torch.eye(self.draws).to(q) - (q * shrunk) @ q.mT  # I - hat of a user, [U, R, R]
        left_out = target - torch.linalg.solve(inner, wrong).flatten(0, 1)
        slope = self.root / (self.root.square() + reg)
        return self.directions.T @ (seen * slope).T, left_out


class _Rows(NamedTuple):
    """Rows of warm users, E episodes."""

    task: np.ndarray  # [E] RecBole's ids
    item: np.ndarray  # [E, L], 0 after the last
    label: np.ndarray  # [E, L]
    length: np.ndarray  # [E]


class _Asked(NamedTuple):
    """Episodes of warm users: what was asked of them, and what could not be."""

    query: Tensor  # 0/1 [E, I]
    unknown: tuple[Tensor, Tensor]  # (episodes [N], items [N]) of the rows before the query
    mean: Tensor  # [I] share of the query among those who could be asked
    met: Tensor  # [I] whether any warm user has the item


class KernelRidge(UserFieldsRecommender):
    r"""A ridge across warm users' episodes with a sum of kernels, one per k, in closed form.

    .. math::
        K = \sum_j w_j \langle z_j, z_j' \rangle, \qquad \alpha = (K + \lambda I)^{-1} (Y - m),
        \qquad score = m + k(s, \cdot) \, \alpha

    .. math::
        z_{posterior} = V_s' (V_s V_s' + s^2 I)^{-1} (1 - p_s), \qquad z_{support} = V_s' 1, \qquad
        z_{ratings} = V_s' (r_s - \bar r), \qquad z_{fields} = \text{indicators}

    V, p as in PriorRidge. With a ``power`` V is of columns divided by p to it (cosines, at 1/2), so
    that what few have counts more; 1 - p stays as it is, and z is no posterior then. z centred over
    episodes and scaled to a mean square of 1. Y: 0/1 of the query's position. A user's rows before
    the query could not be asked for: m is the mean of those who could, and such entries of Y - m
    are 0, then ``fills`` times what the ridge of all other episodes says.

    Under order random any k rows of a warm user are a support as good as his first ones, and all
    others a query: with ``draws`` above 1 so many of them are drawn for each user, and m is p.

    Leave-one-out over users chooses, for each k, among all w and lambda; the best are averaged. In
    V and m a user left out is still present. Since the kernels are inner products,
    :math:`k(s, \cdot) \alpha = z' B`: no warm user has to be kept. Fields are read without a
    support, too; without them an empty support ranks by m.
    """

    sides = ("user",)
    settings: KernelRidgeSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s = self.settings
        self.reads_ratings = any(s.ratings)
        if any(s.fields):
            self.read_users(dataset, "a weight in 'fields' above 0.0")

    @classmethod
    def reads_with(cls, settings: KernelRidgeSettings, feedback: str, side: str = "user") -> str:
        parts = ["ids", *(["+ratings"] if any(settings.ratings) else [])]
        return " ".join(parts + (["+user fields"] if any(settings.fields) else []))

    def prepare(self, train_data) -> None:
        dataset, s = train_data._dataset, self.settings
        warm = warm_users(dataset)
        prepared = open_prepared(dataset.config["prepared"])
        shots = sorted({0, *prepared.shots})
        directions = warm.scaled_directions(s.power) if s.power else warm.directions
        self.keep("item_vector", directions[:, : s.embedding_size].copy())
        self.keep("pop", warm.pop)
        ratings = warm_ratings(dataset) if self.reads_ratings else warm.target
        self.keep("rating_mean", ratings.mean())
        if self.facts is not None:
            self.fit_users(warm)
        users = np.flatnonzero(warm.length > warm.query_start)
        if not len(users):
            raise DataError(f"KernelRidge: no warm user has {warm.query_start + 1} rows.")
        histories = Histories(warm)
        histories.label[warm.user, warm.position] = ratings
        draws = s.draws if prepared.description["settings"]["order"] == "random" else 1
        rng = np.random.default_rng(dataset.config["seed"])
        fits = []
        for k in shots:
            rows = self._rows(histories, np.repeat(users, draws), rng if draws > 1 else None)
            asked = self._asked(warm, rows, k if draws > 1 else None)
            fits.append(self._fit(asked, self._read(rows, k), draws))
        self.keep("shots", np.array(shots, dtype=np.int64))
        self.keep("query_mean", asked.mean)
        self.keep("center", torch.stack([center for center, _ in fits]))  # [K, D]
        self.keep("map", torch.cat([b for _, b in fits]))  # [K D, I]

    @staticmethod
    def _rows(histories: Histories, users: np.ndarray, rng: np.random.Generator | None) -> _Rows:
        """An episode of each of these users: his rows as they are, or in a random order."""
        item, label = histories.item[users], histories.label[users]
        if rng is not None:
            item, label = histories.shuffled(users, rng)
        return _Rows(histories.user[users], item, label, histories.length[users])

    def _asked(self, warm: WarmUsers, rows: _Rows, k: int | None) -> _Asked:
        """What was asked after the first k rows; None: what the protocol's query asks."""
        kind, place = torch.get_default_dtype(), self.device
        start, stop = warm.query_start if k is None else k, rows.length
        if k is None and warm.horizon is not None:
            stop = np.minimum(stop, start + warm.horizon)
        position, item = np.arange(rows.item.shape[1]), torch.from_numpy(rows.item)
        query = torch.zeros(len(item), warm.n_items, dtype=kind)
        episode, at = map(
            torch.from_numpy, ((position >= start) & (position < stop[:, None])).nonzero()
        )
        query[episode, item[episode, at]] = 1
        episode, at = map(torch.from_numpy, (position < np.full((len(item), 1), start)).nonzero())
        unknown = episode, item[episode, at]
        mean = torch.from_numpy(warm.pop).to(kind)
        if k is None:
            count = len(item) - torch.bincount(unknown[1], minlength=warm.n_items)
            mean = query.sum(0) / count.clamp(min=1)
        met = torch.from_numpy(warm.pop > 0)
        return _Asked(
            query.to(place),
            tuple(each.to(place) for each in unknown),
            mean.to(place),
            met.to(place),
        )

    def _read(self, rows: _Rows, k: int) -> list[Tensor]:
        """z_j [E, D_j] of each kernel's features of the first k rows."""
        width = min(max(1, k), rows.item.shape[1])
        mask = np.broadcast_to(np.arange(width) < k, (len(rows.item), width)).astype(np.float64)
        arrays = rows.item[:, :width] * (mask > 0), rows.label[:, :width] * mask, mask, rows.task
        support = Examples(*map(torch.from_numpy, arrays))
        with torch.no_grad():
            return list(self._lift(self._features, (0,))(self._encoded(self._placed(support))))

    def _fit(self, asked: _Asked, parts: list[Tensor], draws: int) -> tuple[Tensor, Tensor]:
        """The features' means [D], and B [D, I]: what was best, averaged."""
        s, center = self.settings, [part.mean(0) for part in parts]
        parts = [part - mean for part, mean in zip(parts, center, strict=True)]
        target = (asked.query - asked.mean).index_put(asked.unknown, asked.mean.new_zeros(()))
        tried = []
        for weights in product(*(getattr(s, name) for name in KERNELS if self._has(name))):
            scale = torch.cat([_scale(*each) for each in zip(parts, weights, strict=True)])
            if not scale.any():
                continue
            ridge = Ridge(torch.cat(parts, dim=1) * scale, target, asked.unknown, draws)
            for reg in s.reg_weights:
                b, left_out = ridge.fit(reg, s.fills)
                tried.append((self._loss(asked, asked.mean + left_out), scale.unsqueeze(1) * b))
        best = [b for _, b in sorted(tried, key=lambda pair: pair[0])[: s.kept]]
        none = target.new_zeros(sum(map(len, center)), len(asked.mean))
        return torch.cat(center), torch.stack(best).mean(0) if best else none

    def _loss(self, asked: _Asked, scores: Tensor) -> float:
        """What leave-one-out minimises: squared error, or NDCG below 0, each user's mean."""
        if self.settings.loss == "squared":
            wrong = (asked.query - scores).index_put(asked.unknown, scores.new_zeros(()))
            return float(wrong.square().sum(1).mean())
        scores = scores.index_put(asked.unknown, scores.new_tensor(-torch.inf))
        best = scores.masked_fill(~asked.met, -torch.inf).topk(min(_TOP, scores.shape[1])).indices
        gain = 1 / torch.arange(2, best.shape[1] + 2, device=scores.device).log2()
        most = asked.query.sum(1).long().clamp(max=best.shape[1])
        ndcg = (asked.query.gather(1, best) * gain).sum(1) / gain.cumsum(0)[most - 1]
        return -float(ndcg.mean())

    def _has(self, kernel: str) -> bool:
        return any(getattr(self.settings, kernel))

    def _features(self, support: Examples) -> tuple[Tensor, ...]:
        """z_j [D_j] of each kernel that has a weight."""
        v = self.item_vector[support.x] * support.mask.unsqueeze(-1)  # [S, d]
        found = []
        if self._has("posterior"):
            residual = (1 - self.pop[support.x]) * support.mask  # [S]
            noise = self.settings.noise * torch.eye(v.shape[0], dtype=v.dtype, device=v.device)
            factors = torch.linalg.lu_factor(v @ v.T + noise)  # `solve` in two: can be exported
            solved = torch.linalg.lu_solve(*factors, residual.unsqueeze(-1)).squeeze(-1)
            found.append(v.T @ solved)
        if self._has("support"):
            found.append(v.T @ support.mask)
        if self._has("ratings"):
            found.append(v.T @ ((support.label - self.rating_mean) * support.mask))
        return (*found, support.task) if self._has("fields") else tuple(found)

    def adapt(self, support: Examples) -> State:
        z, *others = self._features(support)
        for part in others:
            z = joined(z, part)  # [D]
        k = support.mask.sum()
        apart = (self.shots - k).abs() + 1e6 * ((self.shots > 0) != (k > 0))
        block = torch.arange(len(self.shots), device=k.device) == apart.argmin()  # [K]
        return {"z": (block.unsqueeze(-1) * (z - self.center)).reshape(-1)}  # [K D]

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.of_all(self.query_mean + state["z"] @ self.map, x)


def _scale(part: Tensor, weight: float) -> Tensor:
    """[D_j] by which a kernel's features have this mean square; 0 where they say nothing."""
    square = part.square().sum(1).mean()
    scale = (weight / square.clamp(min=1e-12)).sqrt() * (square > 1e-12)
    return scale.expand(part.shape[1])
