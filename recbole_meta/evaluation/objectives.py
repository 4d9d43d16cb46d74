"""Judging per objective: full rankings of one behaviour, all of them and the novel ones alone.

- ``all``: an item that the user has under the same behaviour in train is no candidate; every
  positive counts.
- ``novel``: an item that the user has under any behaviour in train is no candidate; positives whose
  pair is new under every behaviour count. A rule that copies what was clicked scores by its floor.

Only users with a positive are judged. A metric is named ``purchase/ndcg@10`` or
``purchase/ndcg@10/novel``; ``mean/ndcg@10`` is the mean over objectives and ``worst/ndcg@10`` the
smallest of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_meta.data.behaviours import Behaviours, codes
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.evaluation.metrics import mean
from recbole_meta.evaluation.ranking import Metrics, Pairs, Ranking, rows_of

ALL, NOVEL = "all", "novel"
METRICS = ("ndcg@10", "recall@10", "mrr@10", "hit@10")
_USERS = 256  # ranked at a time

Rank = Callable[[Tensor, str], Tensor]  # users [B] by id, objective -> scores [B, I]


@dataclass(frozen=True)
class ObjectiveJudged:
    """What a model did for each user of a split, per objective."""

    tasks: dict[str, npt.NDArray[Any]]  # objective -> tokens [T]
    metrics: dict[str, Metrics]  # objective -> all | novel -> metric -> [T], nan: not in it
    lists: dict[str, dict[str, npt.NDArray[Any]]]  # objective -> arrays of the ranking of all

    def means(self) -> dict[str, float]:
        """The mean over users of each metric by its name, then the mean and the worst objective."""
        found = {
            metric_name(objective, metric, query): mean(values)
            for objective, queries in self.metrics.items()
            for query, metrics in queries.items()
            for metric, values in metrics.items()
        }
        for query in next(iter(self.metrics.values())):
            for metric in METRICS:
                values = [found[metric_name(name, metric, query)] for name in self.metrics]
                found[metric_name("mean", metric, query)] = float(np.mean(values))
                found[metric_name("worst", metric, query)] = float(np.min(values))
        return found

    def to_npz(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of ``tasks.npz``: ``<objective>/task``, and every metric by its name."""
        found: dict[str, npt.NDArray[Any]] = {}
        for objective, queries in self.metrics.items():
            found[f"{objective}/task"] = self.tasks[objective]
            for name, values in self.lists[objective].items():
                found[f"{objective}/{name}"] = values
            for query, metrics in queries.items():
                for metric, values in metrics.items():
                    found[metric_name(objective, metric, query)] = values
        return found


def metric_name(objective: str, metric: str, query: str = ALL) -> str:
    """``purchase/ndcg@10``, ``purchase/ndcg@10/novel``."""
    return f"{objective}/{metric}" + ("" if query == ALL else f"/{query}")


def check_metric(name: str, objectives: tuple[str, ...], where: str) -> None:
    """Refuse what is no metric's name."""
    known = [
        metric_name(objective, metric, query)
        for objective in (*objectives, "mean", "worst")
        for metric in METRICS
        for query in (ALL, NOVEL)
    ]
    if name not in known:
        raise SettingError(f"{where} is '{name}'. {nearest(name, known)}")


class ObjectiveJudge:
    """Ranks for every objective, or for those named, the users of one split who have a positive
    of it.
    """

    def __init__(
        self,
        behaviours: Behaviours,
        split: str,
        dataset: Dataset,
        queries: tuple[str, ...] = (ALL, NOVEL),
        objectives: tuple[str, ...] | None = None,
    ) -> None:
        self.users = dataset.field2token_id[dataset.uid_field]
        self.items = dataset.field2token_id[dataset.iid_field]
        item_token = np.array(dataset.field2id_token[dataset.iid_field])
        self.judged = {
            name: _One(self, behaviours, split, name, item_token, queries)
            for name in (behaviours.objectives if objectives is None else objectives)
        }

    def judge(self, rank: Rank, model: str) -> ObjectiveJudged:
        """Every objective by the rankings of a model."""
        tasks, metrics, lists = {}, {}, {}
        for name, one in self.judged.items():
            tasks[name] = one.tasks
            metrics[name], lists[name] = one.judge(rank, model)
        return ObjectiveJudged(tasks, metrics, lists)


class _One:
    """One objective: its users, what they may not have, what is relevant."""

    def __init__(
        self,
        judge: ObjectiveJudge,
        behaviours: Behaviours,
        split: str,
        objective: str,
        item_token: npt.NDArray[Any],
        queries: tuple[str, ...],
    ) -> None:
        self.objective = objective
        self.tasks = np.array(behaviours.tasks(split, objective))
        self.user = torch.tensor([judge.users[task] for task in self.tasks])  # [T]
        task_of = np.full(len(judge.users), -1)
        task_of[self.user.numpy()] = np.arange(len(self.tasks))

        def pairs(rows) -> Pairs:
            user, item = codes(rows, judge.users, judge.items)
            task = task_of[user]
            return task[task >= 0], item[task >= 0]

        self.masked = {
            ALL: pairs(behaviours.positives("train", objective)),
            NOVEL: pairs(behaviours.known("train")),
        }
        positives = {
            ALL: pairs(behaviours.positives(split, objective)),
            NOVEL: pairs(behaviours.novel(split, objective)),
        }
        candidates = set(behaviours.catalogue)
        self.rankings = {
            query: Ranking(len(self.tasks), item_token, candidates, {query: positives[query]})
            for query in queries
        }

    def judge(self, rank: Rank, model: str) -> tuple[Metrics, dict[str, npt.NDArray[Any]]]:
        """The metrics of both queries, and the ranking of all."""
        for start in range(0, len(self.tasks), _USERS):
            place = np.arange(start, min(start + _USERS, len(self.tasks)))
            with torch.no_grad():
                scores = rank(self.user[place], self.objective).cpu()
            broken = torch.isnan(scores) | (scores == torch.inf)
            if broken.any():
                raise DataError(
                    f"{model} scores NaN or infinity for {int(broken.sum())} entries of objective "
                    f"'{self.objective}'."
                )
            for query, ranking in self.rankings.items():
                ranking.collect(self._hidden(scores, place, query), place)
        metrics: Metrics = {}
        for ranking in self.rankings.values():
            metrics |= ranking.metrics()
        lists = self.rankings[ALL].lists()
        lists["cut_tie_positives"] = self.rankings[ALL].cut_tie_positives[ALL]
        for ranking in self.rankings.values():
            ranking.reset()
        return metrics, lists

    def _hidden(self, scores: Tensor, place: npt.NDArray[np.int64], query: str) -> Tensor:
        """A copy in which what the query hides is no candidate."""
        row_of = np.full(len(self.tasks), -1)
        row_of[place] = np.arange(len(place))
        hidden = scores.clone()
        hidden[rows_of(self.masked[query], row_of)] = -torch.inf
        return hidden
