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
from recbole_meta.evaluation.metrics import label_metrics, mean, ranking_metrics, rating_metrics
from recbole_meta.evaluation.slices import queries
from recbole_meta.evaluation.top import top_candidates

K = 10  # length of the stored rankings


@dataclass(frozen=True)
class Judged:
    """What a model did for each task of a phase."""

    arrays: dict[str, npt.NDArray[Any]]  # as in tasks.npz, without the metrics
    metrics: dict[str, dict[str, npt.NDArray[np.float64]]]  # slice -> metric -> [T], nan: not in it

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
    """RecBole's ``eval_collector`` and ``evaluator`` for the tasks of one phase at k shots."""

    def __init__(
        self, prepared: Prepared, phase: str, k: int, dataset: Dataset, model: str
    ) -> None:
        self.prepared, self.model = prepared, model
        self.tasks = np.array(prepared.tasks(phase))
        self.users = dataset.field2token_id[dataset.uid_field]
        self.items = dataset.field2token_id[dataset.iid_field]
        self.user_field, self.item_field = dataset.uid_field, dataset.iid_field
        self.item_token = np.array(dataset.field2id_token[dataset.iid_field])
        self.task_of = np.full(len(self.users), -1)
        self.task_of[[self.users[user] for user in self.tasks]] = np.arange(len(self.tasks))
        self.queries = queries(prepared, phase)
        self.judged: Judged | None = None
        self._ranks = prepared.feedback == "implicit"
        if self._ranks:
            self._init_ranking(phase, k)
        self._reset()

    def _init_ranking(self, phase: str, k: int) -> None:
        known = self.prepared.candidates(phase)
        self.no_candidate = torch.tensor([token not in known for token in self.item_token])
        early = self.prepared.early_rows(phase)  # the reserve; without one, the support
        self.masked = _pairs(early, self.task_of, self.users, self.items)
        self.positives = {
            name: _pairs(rows, self.task_of, self.users, self.items)
            for name, rows in self.queries.items()
        }
        self.place = torch.from_numpy(np.argsort(np.argsort(self.item_token)))

    def _reset(self) -> None:
        if not self._ranks:
            self._rows: list[tuple[npt.NDArray[Any], ...]] = []
            return
        t = len(self.tasks)
        self.top_item = np.zeros((t, K), dtype=np.int64)
        self.top_score = np.full((t, K), np.nan)
        self.cut_tie_size = np.zeros(t, dtype=np.int64)
        self.cut_tie_positives = {name: np.zeros(t, dtype=np.int64) for name in self.queries}

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
        scores[:, self.no_candidate] = -np.inf
        scores[_rows_of(self.masked, row_of)] = -np.inf
        top = top_candidates(scores, self.place, min(K, scores.shape[1]))
        width = top.item.shape[1]
        self.top_item[task, :width] = top.item.numpy()
        self.top_score[task, :width] = top.score.double().numpy()
        self.top_score[task, width:] = -np.inf
        self.cut_tie_size[task] = top.cut_tie_size.numpy()
        for name, pairs in self.positives.items():
            row, item = _rows_of(pairs, row_of)
            cut = top.score[:, -1]
            tied = (scores[row, item] == cut[row]) & torch.isfinite(cut[row])
            self.cut_tie_positives[name][task] = np.bincount(row[tied.numpy()], minlength=len(task))

    def get_data_struct(self) -> Judged:
        """What was collected, and forget it."""
        judged = self._judge_ranking() if self._ranks else self._judge_rows()
        self._reset()
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
        if np.isnan(self.top_score).any():
            missing = self.tasks[np.isnan(self.top_score).any(axis=1)]
            raise DataError(f"{self.model} was not asked about task '{missing[0]}'.")
        metrics = {}
        arrays: dict[str, npt.NDArray[Any]] = {
            "task": self.tasks,
            "topk": np.where(np.isfinite(self.top_score), self.item_token[self.top_item], ""),
            "topk_score": self.top_score,
            "cut_tie_size": self.cut_tie_size,
        }
        for name, (task, item) in self.positives.items():
            relevant = np.zeros((len(self.tasks), len(self.items)), dtype=bool)
            relevant[task, item] = True
            count = np.bincount(task, minlength=len(self.tasks))
            member = count > 0
            hits = np.take_along_axis(relevant, self.top_item, axis=1) & np.isfinite(self.top_score)
            tied = self.cut_tie_positives[name]
            values = ranking_metrics(
                hits[member], self.top_score[member],
                self.cut_tie_size[member], tied[member], count[member],
            )  # fmt: skip
            metrics[name] = {m: _spread(value, member) for m, value in values.items()}
            key = "cut_tie_positives"
            arrays[key if name == next(iter(self.positives)) else f"{name}/{key}"] = tied
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
            metrics[name] = {m: _spread(value, member) for m, value in values.items()}
        return Judged(arrays, metrics)

    def place_of(self, item: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rank of items among the tokens."""
        return np.argsort(np.argsort(self.item_token))[item]


def _pairs(
    rows: pd.DataFrame, task_of: npt.NDArray[np.int64], users: dict[str, int], items: dict[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(task, item id) of each row."""
    task = task_of[rows["user"].map(users).to_numpy(dtype=np.int64)]
    return task, rows["item"].map(items).to_numpy(dtype=np.int64)


def _rows_of(
    pairs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], row_of: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pairs of the tasks of this batch, by the batch's row."""
    row = row_of[pairs[0]]
    return row[row >= 0], pairs[1][row >= 0]


def _spread(
    values: npt.NDArray[np.float64], member: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Values of the members at their places, nan elsewhere."""
    full = np.full(len(member), np.nan)
    full[member] = values
    return full
