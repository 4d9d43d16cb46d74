"""Rows with the labels of every objective, shuffled, with drawn rows of unknown items.

A drawn row has label 0 of the binary objectives that are not ``given`` another one, NaN of all
others: nobody says what he would rate it, nor what he would do after he had met it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_meta.data.atomic import Ints
from recbole_meta.data.row_splits import RowSplits

_TRIES = 100  # draws of an item that a user does not know


class LabelledRows:
    """The rows of one split by RecBole's ids, and their labels, [N] or [N, C]."""

    def __init__(self, rows: RowSplits, split: str, dataset: Dataset) -> None:
        frame = rows.rows(split)
        self.objectives, self.user_field = rows.objectives, dataset.uid_field
        self.item_field = dataset.iid_field
        users, items = (dataset.field2token_id[f] for f in (self.user_field, self.item_field))
        self.user: Ints = frame["user"].map(users).to_numpy(dtype=np.int64)
        self.item: Ints = frame["item"].map(items).to_numpy(dtype=np.int64)
        self.labels: dict[str, Tensor] = {}
        for name, objective in rows.objectives.items():
            label = torch.from_numpy(frame[name].to_numpy(dtype=np.float32))
            if objective.type == "distribution":
                shares = category_shares(dataset, objective.label)[self.item]  # [N, C]
                empty = shares.sum(1) == 0
                label = torch.where(empty | label.isnan(), torch.nan, 1.0)
                label = shares * label.unsqueeze(1)
            self.labels[name] = label

    def __len__(self) -> int:
        return len(self.user)

    def part(self, chosen: Ints) -> "LabelledRows":
        """These rows alone."""
        found = copy.copy(self)
        found.user, found.item = self.user[chosen], self.item[chosen]
        place = torch.from_numpy(chosen)
        found.labels = {name: label[place] for name, label in self.labels.items()}
        return found

    def interaction(self, chosen: Ints) -> Interaction:
        """These rows as a batch."""
        place = torch.from_numpy(chosen)
        return Interaction({
            self.user_field: torch.from_numpy(self.user[chosen]),
            self.item_field: torch.from_numpy(self.item[chosen]),
            **{name: label[place] for name, label in self.labels.items()},
        })  # fmt: skip


def category_shares(dataset: Dataset, field: str) -> Tensor:
    """Every item's categories in equal parts, [I, C]; category c has RecBole's id c + 1."""
    values = dataset.item_feat[field].reshape(dataset.item_num, -1)
    shares = torch.zeros(dataset.item_num, dataset.num(field))
    shares.scatter_add_(1, values, torch.ones(values.shape))
    shares = shares[:, 1:]
    return shares / shares.sum(1, keepdim=True).clamp(min=1)


class RowDataLoader:
    """Batches of train in a new order per epoch, from its own generator."""

    def __init__(self, rows: LabelledRows, batch_size: int, negatives: int, seed: int,
                 n_items: int) -> None:  # fmt: skip
        self.rows, self.batch_size, self.negatives = rows, batch_size, negatives
        self.rng = np.random.default_rng(seed)
        self.n_items = n_items
        self.known = np.sort(rows.user * n_items + rows.item)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        order = self.rng.permutation(len(self.rows))
        for start in range(0, len(order), self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def hold_out(self, share: float) -> Interaction:
        """This share of the rows leaves, with drawn rows beside them as in a batch. No batch draws
        their pairs either: the user knows them.
        """
        order = self.rng.permutation(len(self.rows))
        held = round(share * len(order))
        found = self._batch(np.sort(order[:held]))
        self.rows = self.rows.part(np.sort(order[held:]))
        return found

    def _batch(self, chosen: Ints) -> Interaction:
        batch = self.rows.interaction(chosen)
        return self._with_drawn(batch, chosen) if self.negatives else batch

    def _with_drawn(self, batch: Interaction, chosen: Ints) -> Interaction:
        user = np.repeat(self.rows.user[chosen], self.negatives)
        item, found = self._unknown(user)
        user, item = user[found], item[found]
        drawn: dict[str, Tensor] = {
            self.rows.user_field: torch.from_numpy(user),
            self.rows.item_field: torch.from_numpy(item),
        }
        for name, objective in self.rows.objectives.items():
            label = self.rows.labels[name]
            no = objective.type == "binary" and objective.given is None
            drawn[name] = torch.full((len(user), *label.shape[1:]), 0.0 if no else torch.nan)
        return Interaction({key: torch.cat([batch[key], drawn[key]]) for key in drawn})

    def _unknown(self, user: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """An item for each, uniform among those that the user has not in train, and who has one:
        who knows nearly all of them may be left without.
        """
        item = self.rng.integers(1, self.n_items, len(user))
        known = self._knows(user, item)
        for _ in range(_TRIES):
            if not known.any():
                break
            item[known] = self.rng.integers(1, self.n_items, int(known.sum()))
            known[known] = self._knows(user[known], item[known])
        return item, ~known

    def _knows(self, user: Ints, item: Ints) -> npt.NDArray[np.bool_]:
        pair = user * self.n_items + item
        place = np.searchsorted(self.known, pair).clip(max=len(self.known) - 1)
        return np.asarray(self.known[place] == pair)

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rng.bit_generator.state = state["rng"]
