"""The best K of one set of candidates for every task, and what metrics need to know of the rest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_meta.evaluation.metrics import ranking_metrics
from recbole_meta.evaluation.top import top_candidates

K = 10  # length of the stored rankings
Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # tasks and item ids
Metrics = dict[str, dict[str, npt.NDArray[np.float64]]]  # slice -> metric -> [T], nan: not in it


class Ranking:
    """Rankings of T tasks over candidates; queries share them and differ in what is relevant."""

    def __init__(
        self, n_tasks: int, item_token: npt.NDArray[Any], candidates: set[str],
        positives: Mapping[str, Pairs],
    ) -> None:  # fmt: skip
        self.n_tasks, self.item_token, self.positives = n_tasks, item_token, positives
        self.no_candidate = torch.tensor([token not in candidates for token in item_token])
        self.place = torch.from_numpy(np.argsort(np.argsort(item_token)))
        self.reset()

    def reset(self) -> None:
        """Forget what was collected."""
        t = self.n_tasks
        self.top_item = np.zeros((t, K), dtype=np.int64)
        self.top_score = np.full((t, K), np.nan)
        self.cut_tie_size = np.zeros(t, dtype=np.int64)
        self.cut_tie_positives = {name: np.zeros(t, dtype=np.int64) for name in self.positives}

    def collect(self, scores: Tensor, task: npt.NDArray[np.int64]) -> None:
        """Scores [B, I] of these tasks, -inf where a task may not have an item."""
        row_of = np.full(self.n_tasks, -1)
        row_of[task] = np.arange(len(task))
        scores = scores.masked_fill(self.no_candidate, -torch.inf)
        top = top_candidates(scores, self.place, min(K, scores.shape[1]))
        width = top.item.shape[1]
        self.top_item[task, :width] = top.item.numpy()
        self.top_score[task, :width] = top.score.double().numpy()
        self.top_score[task, width:] = -np.inf
        self.cut_tie_size[task] = top.cut_tie_size.numpy()
        for name, pairs in self.positives.items():
            row, item = rows_of(pairs, row_of)
            cut = top.score[:, -1]
            tied = (scores[row, item] == cut[row]) & torch.isfinite(cut[row])
            self.cut_tie_positives[name][task] = np.bincount(row[tied.numpy()], minlength=len(task))

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Tasks that nothing was collected of, [T]."""
        return np.asarray(np.isnan(self.top_score).any(axis=1))

    def lists(self) -> dict[str, npt.NDArray[Any]]:
        """The rankings as they are stored."""
        return {
            "topk": np.where(np.isfinite(self.top_score), self.item_token[self.top_item], ""),
            "topk_score": self.top_score,
            "cut_tie_size": self.cut_tie_size,
        }

    def metrics(self) -> Metrics:
        """Of each query and task."""
        found = {}
        for name, (task, item) in self.positives.items():
            relevant = np.zeros((self.n_tasks, len(self.item_token)), dtype=bool)
            relevant[task, item] = True
            count = np.bincount(task, minlength=self.n_tasks)
            member = count > 0
            hits = np.take_along_axis(relevant, self.top_item, axis=1) & np.isfinite(self.top_score)
            values = ranking_metrics(
                hits[member], self.top_score[member], self.cut_tie_size[member],
                self.cut_tie_positives[name][member], count[member],
            )  # fmt: skip
            found[name] = {metric: spread(value, member) for metric, value in values.items()}
        return found


def rows_of(pairs: Pairs, row_of: npt.NDArray[np.int64]) -> Pairs:
    """The pairs of the tasks of a batch, by the batch's row."""
    row = row_of[pairs[0]]
    return row[row >= 0], pairs[1][row >= 0]


def spread(
    values: npt.NDArray[np.float64], member: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Values of the members at their places, nan elsewhere."""
    full = np.full(len(member), np.nan)
    full[member] = values
    return full
