r"""Judging one ranking for all objectives: what a listed item is worth to the user.

.. math:: gain_{ui} = \sum_t v_t \, y_{tui}, \qquad
          regret_t = 1 - NDCG_t(fused) / NDCG_t(own \; ranking)

y: 1 where the pair has the behaviour in the split. The gains v of a setting are fixed beforehand;
the gain 1 of one objective alone makes its NDCG. An item that the user has under any behaviour in
train is no candidate, and pairs that are new under every behaviour count (`novel` of
`evaluation.objectives`); users with a pair of positive gain are judged, nan for the others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_meta.data.behaviours import Behaviours, codes
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.metrics import graded_ndcg, mean
from recbole_meta.evaluation.ranking import K, Pairs, rows_of
from recbole_meta.evaluation.top import top_candidates

Gains = Mapping[str, float]  # objective -> v
Values = dict[str, npt.NDArray[np.float64]]  # gain setting or objective -> [T]
_USERS = 256  # ranked at a time


def check_gains(gains: Gains, objectives: tuple[str, ...], where: str) -> None:
    """Refuse gains of what is no objective, or that leave nothing to gain."""
    for name in gains:
        if name not in objectives:
            raise SettingError(f"{where} names the objective '{name}'. {nearest(name, objectives)}")
    if not any(gains.values()) or min(gains.values()) < 0:
        raise SettingError(f"{where}: gains are at least 0, and one is above, found {dict(gains)}.")


@dataclass(frozen=True)
class Batch:
    """Some of the users of a judge."""

    place: npt.NDArray[np.int64]  # [B] among all of them
    user: Tensor  # [B] ids
    hidden: tuple[Tensor, Tensor]  # rows and items that are no candidates
    positives: dict[str, Pairs]  # objective -> rows and items


class GradedJudge:
    """Ranks the users of a split who have a pair of any objective to be found.

    Its values are by the name of each setting of ``settings`` (name -> gains) and, for the gain 1
    of it alone, by the name of each objective.
    """

    def __init__(
        self, behaviours: Behaviours, split: str, dataset: Dataset, settings: Mapping[str, Gains]
    ) -> None:
        self.objectives = tuple(behaviours.objectives)
        for name, gains in settings.items():
            check_gains(gains, self.objectives, f"gains '{name}'")
        each = {name: {name: 1.0} for name in self.objectives}
        self.gains = {
            name: np.array([gains.get(objective, 0.0) for objective in self.objectives])
            for name, gains in {**each, **settings}.items()
        }  # [K] each
        ids = dataset.field2token_id
        users, items = ids[dataset.uid_field], ids[dataset.iid_field]
        token = np.asarray(dataset.field2id_token[dataset.iid_field])
        self.n_items = len(token)
        self.order = torch.from_numpy(np.argsort(np.argsort(token)))
        candidates = set(behaviours.catalogue)
        self.no_candidate = torch.tensor([each not in candidates for each in token])
        novel = {name: behaviours.novel(split, name) for name in self.objectives}
        self.tasks = np.array(sorted(set().union(*(rows["user"] for rows in novel.values()))))
        self.user = torch.tensor([users[task] for task in self.tasks])  # [T]
        task_of = np.full(len(users), -1)
        task_of[self.user.numpy()] = np.arange(len(self.tasks))

        def pairs(rows) -> Pairs:
            user, item = codes(rows, users, items)
            task = task_of[user]
            return task[task >= 0], item[task >= 0]

        self.known = pairs(behaviours.known("train"))
        self.positives = {name: pairs(rows) for name, rows in novel.items()}
        self.ideal = {name: self._ideal(gains) for name, gains in self.gains.items()}

    def _ideal(self, gains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The K largest gains of each user, [T, K]."""
        total: dict[tuple[int, int], float] = {}
        for gain, (task, item) in zip(gains, self.positives.values()):
            for pair in zip(task.tolist(), item.tolist()):
                total[pair] = total.get(pair, 0.0) + gain
        best: list[list[float]] = [[] for _ in self.tasks]
        for (task, _), gain in total.items():
            best[task].append(gain)
        found = np.zeros((len(best), K))
        for row, each in zip(found, best):
            top = sorted(each, reverse=True)[:K]
            row[: len(top)] = top
        return found

    def batches(self) -> Iterator[Batch]:
        """All users, some at a time."""
        for start in range(0, len(self.tasks), _USERS):
            place = np.arange(start, min(start + _USERS, len(self.tasks)))
            row_of = np.full(len(self.tasks), -1)
            row_of[place] = np.arange(len(place))
            row, item = rows_of(self.known, row_of)
            hidden = torch.from_numpy(row), torch.from_numpy(item)
            positives = {name: rows_of(pairs, row_of) for name, pairs in self.positives.items()}
            yield Batch(place, self.user[place], hidden, positives)

    def empty(self) -> Values:
        """What ``collect`` fills."""
        return {name: np.full(len(self.tasks), np.nan) for name in self.gains}

    def collect(self, values: Values, batch: Batch, scores: Tensor) -> None:
        """The NDCG of a batch's scores [B, I], under each setting of gains."""
        scores = scores.masked_fill(self.no_candidate, -torch.inf)
        scores[batch.hidden] = -torch.inf
        top = top_candidates(scores, self.order, min(K, self.n_items))
        listed, cut = _found(batch, scores, top.item, top.score[:, -1])  # [K, B, L], [K, B]
        width = listed.shape[2]
        for name, gains in self.gains.items():
            values[name][batch.place] = graded_ndcg(
                np.einsum("k,kbl->bl", gains, listed), top.score.double().numpy(),
                top.cut_tie_size.numpy(), gains @ cut, self.ideal[name][batch.place, :width],
            )  # fmt: skip

    def judge(self, rank: Callable[[Tensor], Tensor]) -> Values:
        """The NDCG@10 of every user, by one ranking."""
        values = self.empty()
        for batch in self.batches():
            with torch.no_grad():
                self.collect(values, batch, rank(batch.user).cpu())
        return values


def _found(
    batch: Batch, scores: Tensor, item: Tensor, cut: Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Which listed items have each behaviour, and how many do of those tied at the cut."""
    listed, at_cut = [], []
    for row, positive in batch.positives.values():
        relevant = np.zeros(scores.shape, dtype=bool)
        relevant[row, positive] = True
        listed.append(np.take_along_axis(relevant, item.numpy(), axis=1))
        tied = (scores[row, positive] == cut[row]).numpy()
        at_cut.append(np.bincount(row[tied], minlength=len(scores)))
    return np.array(listed, dtype=np.float64), np.array(at_cut, dtype=np.float64)


def regret(fused: Values, own: Values, objective: str) -> float:
    """What an objective loses against its own ranking: 1 - NDCG(fused) / NDCG(own)."""
    best = mean(own[objective])
    return 1 - mean(fused[objective]) / best if best else float("nan")
