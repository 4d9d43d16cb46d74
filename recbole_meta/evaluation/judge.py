"""One way of judging for every model: it stands where RecBole's trainer has its collector and
evaluator.

RecBole hands over the scores of a batch; they are cut to the candidates of each task, and from
what is kept (the first K, the tie at the cut) all metrics follow, per task.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from recbole.data.dataset import Dataset

from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import DataError
from recbole_meta.evaluation.metrics import label_metrics, mean, rating_metrics
from recbole_meta.evaluation.ranking import Metrics, Pairs, Ranking, rows_of, spread
from recbole_meta.evaluation.slices import WIDE, list_of, queries


@dataclass(frozen=True)
class Judged:
    """What a model did for each task of a phase."""

    arrays: dict[str, npt.NDArray[Any]]  # as in tasks.npz, without the metrics
    metrics: Metrics

    @property
    def primary(self) -> str:
        """The name of the primary query."""
        return next(iter(self.metrics))

    def means(self, query: str | None = None) -> dict[str, float]:
        """The mean over tasks of each metric of a query, by default the primary one."""
        return {name: mean(values) for name, values in self.metrics[query or self.primary].items()}

    def to_npz(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of ``tasks.npz``: metrics of further slices are named ``slice/metric``."""
        named = {
            metric if query == self.primary else f"{query}/{metric}": values
            for query, metrics in self.metrics.items()
            for metric, values in metrics.items()
        }
        return self.arrays | named


class Judge:
    """RecBole's ``eval_collector`` and ``evaluator`` for the tasks of one phase, at any k."""

    def __init__(self, prepared: Prepared, phase: str, dataset: Dataset, model: str) -> None:
        self.prepared, self.model = prepared, model
        self.tasks = np.array(prepared.judged(phase))
        self.users = dataset.field2token_id[dataset.uid_field]
        self.items = dataset.field2token_id[dataset.iid_field]
        self.user_field, self.item_field = dataset.uid_field, dataset.iid_field
        self.item_token = np.array(dataset.field2id_token[dataset.iid_field])
        self.task_of = np.full(len(self.users), -1)
        self.task_of[[self.users[user] for user in self.tasks]] = np.arange(len(self.tasks))
        self.queries = queries(prepared, phase)
        self.judged: Judged | None = None
        self._ranks = prepared.feedback == "implicit"
        self.rankings: dict[str, Ranking] = {}
        if self._ranks:
            self._init_rankings(phase)
        self.reset()

    def _init_rankings(self, phase: str) -> None:
        phases = self.prepared.description["train"]  # of cold items, users had both phases' reserve
        early = pd.concat([self.prepared.early_rows(each) for each in phases])
        self.masked = _pairs(early, self.task_of, self.users, self.items)
        by_list: dict[str, dict[str, Pairs]] = {}
        for name, rows in self.queries.items():
            pairs = _pairs(rows, self.task_of, self.users, self.items)
            by_list.setdefault(list_of(self.prepared, name), {})[name] = pairs
        candidates = {"": self.prepared.candidates(phase), WIDE: set(self.prepared.catalogue)}
        self.rankings = {
            name: Ranking(len(self.tasks), self.item_token, candidates[name], positives)
            for name, positives in by_list.items()
        }

    def reset(self) -> None:
        """Forget what was collected."""
        self.judged = None
        self._rows: list[tuple[npt.NDArray[Any], ...]] = []
        for ranking in self.rankings.values():
            ranking.reset()

    # What RecBole's trainer calls.

    def data_collect(self, train_data: Any) -> None:
        """Nothing is needed of the training data."""

    def model_collect(self, model: Any) -> None:
        """Nothing is needed of the model."""

    def eval_batch_collect(
        self, scores: Any, interaction: Any, positive_u: Any, positive_i: Any
    ) -> None:
        """Take the scores of a batch: [B, I] of users, or [B] of rows."""
        scores = scores.detach().cpu()
        broken = torch.isnan(scores) | (scores == torch.inf)
        if broken.any():
            raise DataError(f"{self.model} scores NaN or infinity for {int(broken.sum())} entries.")
        user = interaction[self.user_field].cpu().numpy()
        if self._ranks:
            self._collect_ranking(scores, self.task_of[user])
        else:
            label = interaction[self.prepared.target].cpu().numpy()
            item = interaction[self.item_field].cpu().numpy()
            self._rows.append((self.task_of[user], item, label, scores.numpy()))

    def _collect_ranking(self, scores: torch.Tensor, task: npt.NDArray[np.int64]) -> None:
        row_of = np.full(len(self.tasks), -1)
        row_of[task] = np.arange(len(task))
        scores[rows_of(self.masked, row_of)] = -np.inf
        for ranking in self.rankings.values():
            ranking.collect(scores, task)

    def get_data_struct(self) -> Judged:
        """What was collected, and forget it."""
        judged = self._judge_ranking() if self._ranks else self._judge_rows()
        self.reset()
        self.judged = judged
        return judged

    def last(self) -> Judged:
        """What the last evaluation collected."""
        if self.judged is None:
            raise DataError(f"{self.model} was not evaluated yet.")
        return self.judged

    def evaluate(self, judged: Judged) -> "OrderedDict[str, float]":
        """The means of the primary query, by RecBole's names, unrounded."""
        return OrderedDict(judged.means())

    def _judge_ranking(self) -> Judged:
        arrays: dict[str, npt.NDArray[Any]] = {"task": self.tasks}
        metrics: Metrics = {}
        primary = next(iter(self.queries))
        for list_name, ranking in self.rankings.items():
            if ranking.missing.any():
                missing = self.tasks[ranking.missing]
                raise DataError(f"{self.model} was not asked about task '{missing[0]}'.")
            lists, prefix = ranking.lists(), f"{list_name}/" if list_name else ""
            arrays |= {prefix + name: values for name, values in lists.items()}
            for name, tied in ranking.cut_tie_positives.items():
                key = "cut_tie_positives"
                arrays[key if name == primary else f"{name}/{key}"] = tied
            metrics |= ranking.metrics()
        return Judged(arrays, metrics)

    def _judge_rows(self) -> Judged:
        task, item, label, prediction = (
            np.concatenate(column) for column in zip(*self._rows, strict=True)
        )
        order = np.lexsort((self.place_of(item), task))
        task, item, label, prediction = task[order], item[order], label[order], prediction[order]
        label, prediction = label.astype(np.float64), prediction.astype(np.float64)
        arrays = {
            "task": self.tasks,
            "query_task": self.tasks[task],
            "query_item": self.item_token[item],
            "label": label,
            "prediction": prediction,
        }
        judge = label_metrics if self.prepared.feedback == "label" else rating_metrics
        metrics = {}
        for name, rows in self.queries.items():
            pairs = set(zip(*_pairs(rows, self.task_of, self.users, self.items), strict=True))
            chosen = np.array([pair in pairs for pair in zip(task, item, strict=True)])
            member = np.bincount(task[chosen], minlength=len(self.tasks)) > 0
            number = np.cumsum(member) - 1
            values = judge(
                number[task[chosen]], label[chosen], prediction[chosen], int(member.sum())
            )
            metrics[name] = {m: spread(value, member) for m, value in values.items()}
        return Judged(arrays, metrics)

    def place_of(self, item: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rank of items among the tokens."""
        return np.argsort(np.argsort(self.item_token))[item]


def _pairs(
    rows: pd.DataFrame, task_of: npt.NDArray[np.int64], users: dict[str, int], items: dict[str, int]
) -> Pairs:
    """(task, item id) of each row of a user who is judged."""
    task = task_of[rows["user"].map(users).to_numpy(dtype=np.int64)]
    return task[task >= 0], rows["item"].map(items).to_numpy(dtype=np.int64)[task >= 0]
