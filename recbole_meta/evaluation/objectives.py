"""Judging per objective: full rankings of one behaviour, all of them and the novel ones alone.

- ``all``: an item that the user has under the same behaviour in train is no candidate; every
  positive counts.
- ``novel``: an item that the user has under any behaviour in train is no candidate; positives whose
  pair is new under every behaviour count. A rule that copies what was clicked scores by its floor.

Only users with a positive are judged. A metric is named ``purchase/ndcg@10`` or
``purchase/ndcg@10/novel``; ``mean/ndcg@10`` is the mean over objectives and ``worst/ndcg@10`` the
smallest of them.

A model that says distributions over categories is judged on them apart, in no mean of rankings:
``interest/cross_entropy``, ``interest/recall@3`` of `evaluation.rows`, to the user's observed one,
the mean of the items that he has in the split under the behaviour that it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_meta.data.behaviours import Behaviours, codes
from recbole_meta.data.row_loader import category_shares
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.evaluation.metrics import mean
from recbole_meta.evaluation.ranking import Metrics, Pairs, Ranking, rows_of
from recbole_meta.evaluation.rows import VALUES, distribution_metrics

ALL, NOVEL = "all", "novel"
METRICS = ("ndcg@10", "recall@10", "mrr@10", "hit@10")
SHARES = VALUES["distribution"]
_USERS = 256  # ranked at a time

Rank = Callable[[Tensor, str], Tensor]  # users [B] by id, objective -> scores [B, I]
Say = Callable[[Tensor, str], Tensor]  # users [B] by id, distribution -> shares [B, C]


@dataclass(frozen=True)
class ObjectiveJudged:
    """What a model did for each user of a split, per objective."""

    tasks: dict[str, npt.NDArray[Any]]  # objective -> tokens [T]
    metrics: dict[str, Metrics]  # objective -> all | novel -> metric -> [T], nan: not in it
    lists: dict[str, dict[str, npt.NDArray[Any]]]  # objective -> arrays of the ranking of all
    shares: dict[str, Metrics] = field(default_factory=dict)  # distribution -> metric -> [T]

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
        for name, metrics in self.shares.items():
            found |= {metric_name(name, key): mean(values) for key, values in metrics.items()}
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
        for name, metrics in self.shares.items():
            found[f"{name}/task"] = self.tasks[name]
            found |= {metric_name(name, key): values for key, values in metrics.items()}
        return found


def metric_name(objective: str, metric: str, query: str = ALL) -> str:
    """``purchase/ndcg@10``, ``purchase/ndcg@10/novel``."""
    return f"{objective}/{metric}" + ("" if query == ALL else f"/{query}")


def check_metric(
    name: str, objectives: tuple[str, ...], where: str, distributions: tuple[str, ...] = ()
) -> None:
    """Refuse what is no metric's name."""
    known = [
        metric_name(objective, metric, query)
        for objective in (*objectives, "mean", "worst")
        for metric in METRICS
        for query in (ALL, NOVEL)
    ]
    known += [metric_name(each, metric) for each in distributions for metric in SHARES]
    if name not in known:
        raise SettingError(f"{where} is '{name}'. {nearest(name, known)}")


class ObjectiveJudge:
    """Ranks for every objective, or for those named, the users of one split who have a positive
    of it; judges what is said of the named distributions.
    """

    def __init__(
        self,
        behaviours: Behaviours,
        split: str,
        dataset: Dataset,
        queries: tuple[str, ...] = (ALL, NOVEL),
        objectives: tuple[str, ...] | None = None,
        distributions: tuple[str, ...] = (),
    ) -> None:
        self.users = dataset.field2token_id[dataset.uid_field]
        self.items = dataset.field2token_id[dataset.iid_field]
        item_token = np.array(dataset.field2id_token[dataset.iid_field])
        self.judged = {
            name: _One(self, behaviours, split, name, item_token, queries)
            for name in (behaviours.objectives if objectives is None else objectives)
        }
        self.shares = {
            name: _Shares(self, behaviours, split, name, dataset) for name in distributions
        }

    def judge(self, rank: Rank, model: str, say: Say | None = None) -> ObjectiveJudged:
        """Every objective by the rankings of a model, and by what it says of distributions."""
        tasks, metrics, lists, shares = {}, {}, {}, {}
        for name, one in self.judged.items():
            tasks[name] = one.tasks
            metrics[name], lists[name] = one.judge(rank, model)
        for name, each in self.shares.items() if say is not None else ():
            tasks[name], shares[name] = each.tasks, each.judge(say, model)
        return ObjectiveJudged(tasks, metrics, lists, shares)


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


class _Shares:
    """One distribution: its users, who have an item with a category in the split, and theirs."""

    def __init__(
        self, judge: ObjectiveJudge, behaviours: Behaviours, split: str, name: str, dataset: Dataset
    ) -> None:
        self.name, objective = name, behaviours.distributions[name]
        rows = behaviours.positives(split, str(objective.given))
        shares = category_shares(dataset, objective.label).double().numpy()
        label = shares[codes(rows, judge.users, judge.items)[1]]  # [N, C]
        about = label.sum(1) > 0
        if not about.any():
            raise DataError(f"Objective '{name}' has no category in {split}.")
        self.label = label[about]
        users = np.array(rows["user"], dtype=str)[about]
        self.tasks, self.task = np.unique(users, return_inverse=True)
        self.user = torch.tensor([judge.users[task] for task in self.tasks])  # [T]

    def judge(self, say: Say, model: str) -> Metrics:
        """Of each user the metrics of what is said, [T]."""
        with torch.no_grad():
            parts = [say(part, self.name).cpu() for part in self.user.split(_USERS)]
        said = torch.cat(parts).double().numpy()  # [T, C]
        wrong = ~np.isfinite(said).all(1) | (said < 0).any(1) | (np.abs(said.sum(1) - 1) > 1e-4)
        if wrong.any():
            raise DataError(
                f"{model} says no distribution of '{self.name}' for {int(wrong.sum())} users."
            )
        return distribution_metrics(self.task, self.label, said[self.task], len(self.tasks))
