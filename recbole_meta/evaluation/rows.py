"""Judging models of rows, per objective: values of the split's rows, and full rankings.

- values, per user and then the mean over users: ``auc`` (users with both classes), ``logloss`` of a
  binary objective; ``mae``, ``rmse`` of a regression; ``cross_entropy`` and ``recall@3`` of a
  distribution, the user's observed one being the mean of his rows'.
- over all rows at once: ``pooled_auc``; ``calibration_error``, the mean over ten bins of equal mass
  of |mean prediction - mean label|; ``ratio``, the mean prediction over the mean label.
- rankings of a binary objective: users with a positive rank the items of train less those that they
  have there; ``ndcg@10`` and the others.

An objective that is ``given`` another one has values inside its space and rankings of the whole.
``like/auc`` names one, ``mean/ndcg@10`` is the mean over the objectives that have it, ``worst/..``
the worst of them. An objective that is 1 in every row has no ``auc``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset

from recbole_meta.data.objectives import Objective
from recbole_meta.data.row_loader import LabelledRows
from recbole_meta.data.row_splits import RowSplits
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.evaluation.metrics import CLIP, label_metrics, mean, rating_metrics
from recbole_meta.evaluation.ranking import Ranking, rows_of, spread

Floats = npt.NDArray[np.float64]

RANKING = ("ndcg@10", "recall@10", "mrr@10", "hit@10")
VALUES = {
    "binary": ("auc", "logloss"),
    "regression": ("mae", "rmse"),
    "distribution": ("cross_entropy", "recall@3"),
}
POOLED = ("pooled_auc", "calibration_error", "ratio")
SMALLER = ("logloss", "mae", "rmse", "cross_entropy", "calibration_error")
_ROWS, _USERS, _BINS, _BEST = 2**16, 64, 10, 3


def metrics_of(objective: Objective) -> tuple[str, ...]:
    """The names of what an objective is judged by."""
    more = (*POOLED, *RANKING) if objective.type == "binary" else ()
    return (*VALUES[objective.type], *more)


def direction(name: str) -> int:
    """1 where a larger value of the metric ``objective/metric`` is better, else -1."""
    return -1 if name.split("/")[-1] in SMALLER else 1


def check_row_metric(name: str, objectives: Mapping[str, Objective], where: str) -> None:
    """Refuse what is no metric's name."""
    known = [f"{o}/{m}" for o, objective in objectives.items() for m in metrics_of(objective)]
    own = dict.fromkeys(metric.split("/")[1] for metric in known)
    known += [f"{part}/{metric}" for part in ("mean", "worst") for metric in own]
    if name not in known:
        raise SettingError(f"{where} is '{name}'. {nearest(name, known)}")


@dataclass(frozen=True)
class RowsJudged:
    """Per objective and metric the value of every user [U], nan: not judged; and pooled figures."""

    users: npt.NDArray[Any]  # [U] tokens
    values: dict[str, Floats]  # objective/metric -> [U]
    pooled: dict[str, float]  # objective/metric
    alone: bool = False  # of one objective: there is no mean and no worst of several

    def means(self) -> dict[str, float]:
        """The mean over users of each metric, what is pooled, the mean and the worst objective."""
        found = {name: mean(values) for name, values in self.values.items()} | self.pooled
        parts = [name.split("/") for name in found]
        for metric in () if self.alone else dict.fromkeys(metric for _, metric in parts):
            every = [found[f"{objective}/{m}"] for objective, m in parts if m == metric]
            over = [value for value in every if not np.isnan(value)] or [np.nan]
            found[f"mean/{metric}"] = float(np.mean(over))
            found[f"worst/{metric}"] = max(over) if metric in SMALLER else min(over)
        return found

    def to_npz(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of ``tasks.npz``."""
        return {"task": self.users, **self.values}


class RowJudge:
    """Judges one split; ``most_users``, evenly spaced by token, rank, ~: all."""

    def __init__(
        self, folder: RowSplits, split: str, dataset: Dataset, most_users: int | None = None
    ) -> None:
        self.rows = LabelledRows(folder, split, dataset)
        if len(self.rows) == 0:
            raise DataError(f"{folder.name}: '{split}' has no rows.")
        self.objectives = folder.objectives
        token = np.array(dataset.field2id_token[dataset.uid_field])
        ids = np.unique(self.rows.user)
        self.ids = ids[np.argsort(token[ids])]  # [U]
        self.users = token[self.ids]
        self.task_of = np.full(dataset.user_num, -1)
        self.task_of[self.ids] = np.arange(len(self.ids))
        self.task = self.task_of[self.rows.user]
        items = np.array(dataset.field2id_token[dataset.iid_field])
        train = LabelledRows(folder, "train", dataset)
        task = self.task_of[train.user]
        self.known = task[task >= 0], train.item[task >= 0]
        self.candidates = {*items[np.unique(train.item)]}
        self.rankings: dict[str, tuple[Ranking, npt.NDArray[np.int64]]] = {}
        for name, objective in self.objectives.items():
            if objective.type == "binary":
                self.rankings[name] = self._ranking(name, items, most_users)

    def _ranking(
        self, name: str, items: npt.NDArray[Any], most: int | None
    ) -> tuple[Ranking, npt.NDArray[np.int64]]:
        positive = (self.rows.labels[name] == 1).numpy()
        ranked = np.unique(self.task[positive])
        if most is not None and most < len(ranked):
            ranked = ranked[np.arange(most) * len(ranked) // most]
        place = np.full(len(self.users), -1)
        place[ranked] = np.arange(len(ranked))
        row, item = rows_of((self.task[positive], self.rows.item[positive]), place)
        return Ranking(len(ranked), items, self.candidates, {name: (row, item)}), ranked

    @torch.no_grad()
    def judge(self, model: Any, rankings: bool = True) -> RowsJudged:
        """A model with ``expected`` and ``rank_all``; without ``rankings`` its values alone."""
        expected: dict[str, list[torch.Tensor]] = {name: [] for name in self.objectives}
        for start in range(0, len(self.rows), _ROWS):
            part = slice(start, start + _ROWS)
            users, items = (torch.from_numpy(side[part]).to(model.device)
                            for side in (self.rows.user, self.rows.item))  # fmt: skip
            for name, said in model.expected(users, items).items():
                expected[name].append(said.cpu())
        values: dict[str, Floats] = {}
        pooled: dict[str, float] = {}
        for name in self.objectives:
            said = torch.cat(expected[name]).double().numpy()
            if not np.isfinite(said).all():
                raise DataError(f"{type(model).__name__} says NaN or infinity of '{name}'.")
            self._values(name, said, values, pooled)
        if rankings:
            self._ranks(model, values, tuple(self.rankings))
        return RowsJudged(self.users, values, pooled)

    @torch.no_grad()
    def judge_ranking(self, model: Any, objective: str) -> RowsJudged:
        """A model with ``rank_all`` alone, by the rankings of one binary objective."""
        values: dict[str, Floats] = {}
        self._ranks(model, values, (objective,))
        return RowsJudged(self.users, values, {}, alone=True)

    def _values(
        self, name: str, said: Floats, values: dict[str, Floats], pooled: dict[str, float]
    ) -> None:
        label = self.rows.labels[name].double().numpy()
        there = ~np.isnan(label if label.ndim == 1 else label[:, 0])
        if not there.any():
            raise DataError(f"Objective '{name}' has no label in the split that is judged.")
        number, task = np.unique(self.task[there], return_inverse=True)
        member = np.zeros(len(self.users), dtype=bool)
        member[number] = True
        label, said = label[there], said[there]
        kind = self.objectives[name].type
        if kind == "distribution":
            found = distribution_metrics(task, label, said, len(number))
        else:
            judge = _label_values if kind == "binary" else rating_metrics
            found = judge(task, label, said, len(number))
        for metric in VALUES[kind]:
            values[f"{name}/{metric}"] = spread(found[metric], member)
        if kind == "binary":
            pooled |= {f"{name}/{key}": figure for key, figure in calibration(label, said).items()}

    def _ranks(self, model: Any, values: dict[str, Floats], names: tuple[str, ...]) -> None:
        """Every user once, by those of these objectives under which somebody is ranked."""
        chosen = [self.rankings[name][1] for name in names]
        everyone = np.unique(np.concatenate(chosen)) if chosen else np.array([], dtype=np.int64)
        for start in range(0, len(everyone), _USERS):
            task = everyone[start : start + _USERS]
            users = torch.from_numpy(self.ids[task]).to(model.device)
            for name, scores in model.rank_all(users, names).items():
                self._collect(name, task, scores.cpu(), type(model).__name__)
        for name in names:
            ranking, ranked = self.rankings[name]
            for metric, found in ranking.metrics()[name].items():
                full = np.full(len(self.users), np.nan)
                full[ranked] = found
                values[f"{name}/{metric}"] = full
            ranking.reset()

    def _collect(
        self, name: str, task: npt.NDArray[np.int64], scores: torch.Tensor, model: str
    ) -> None:
        """One objective's rankings, of those of the users who have one."""
        ranking, ranked = self.rankings[name]
        mine = np.isin(task, ranked)
        task, scores = task[mine], scores[torch.from_numpy(mine)]  # a copy
        if not len(task):
            return
        if (torch.isnan(scores) | (scores == torch.inf)).any():
            raise DataError(f"{model} ranks '{name}' by NaN or infinity.")
        row_of = np.full(len(self.users), -1)
        row_of[task] = np.arange(len(task))
        scores[rows_of(self.known, row_of)] = -torch.inf
        ranking.collect(scores, np.searchsorted(ranked, task))


def _label_values(
    task: npt.NDArray[np.int64], label: Floats, said: Floats, n_tasks: int
) -> dict[str, Floats]:
    """As `label_metrics`, also where no user has both classes: no AUC then."""
    ones, count = np.bincount(task, label, n_tasks), np.bincount(task, minlength=n_tasks)
    if ((ones > 0) & (ones < count)).any():
        return label_metrics(task, label, said, n_tasks)
    inside = said.clip(CLIP, 1 - CLIP)
    loss = -np.log(np.where(label == 1, inside, 1 - inside))
    return {"auc": np.full(n_tasks, np.nan), "logloss": np.bincount(task, loss, n_tasks) / count}


def calibration(label: Floats, said: Floats) -> dict[str, float]:
    """The pooled AUC, the calibration error and the ratio of all rows."""
    rows = np.zeros(len(label), dtype=np.int64)
    both = label.min() < label.max()
    _, group, count = np.unique(said, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2  # equal predictions are in one bin
    place = np.floor(_BINS * middle / len(said)).astype(np.int64)[group]
    gaps = np.abs(np.bincount(place, said - label))  # [bins] times their rows
    return {
        "pooled_auc": float(label_metrics(rows, label, said, 1)["auc"][0]) if both else np.nan,
        "calibration_error": float(gaps.sum() / len(label)),
        "ratio": float(said.mean() / label.mean()) if label.mean() else np.nan,
    }


def distribution_metrics(
    task: npt.NDArray[np.int64], label: Floats, said: Floats, n_tasks: int
) -> dict[str, Floats]:
    """Of each user: -sum p log q of his observed p and the said q, and the share of p that q's
    three likeliest categories have, over the largest that any three have.
    """
    count = np.bincount(task, minlength=n_tasks)[:, None]
    p, q = (np.stack([np.bincount(task, column, n_tasks) for column in side.T], 1) / count
            for side in (label, said))  # fmt: skip
    best = np.sort(p, axis=1)[:, ::-1][:, :_BEST].sum(1)
    listed = np.argsort(-q, axis=1, kind="stable")[:, :_BEST]
    found = np.take_along_axis(p, listed, 1).sum(1)
    return {"cross_entropy": -(p * np.log(q.clip(min=CLIP))).sum(1), "recall@3": found / best}
