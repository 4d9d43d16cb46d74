"""What a learner with fields is built from: of a training dataset, or of a file without one."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_meta.data.features import Field, read_fields
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import warm_users
from recbole_meta.errors import DataError, SettingError

MOST_GRADES = 20  # different ratings of a scale that is one of grades


@dataclass(frozen=True)
class Facts:
    """What training says of items, users and labels."""

    side: str  # user | item: who is a task
    judged: str  # implicit | rating | label
    label_mean: float  # of ratings; 0 otherwise
    pool: Tensor  # ids of the items that warm users have, or of the users that warm items have
    item_fields: list[Field]
    user_fields: list[Field]  # tasks have no id of their own: a newcomer's is never met
    grades: Tensor  # [G] the different ratings, ascending; none where too many
    grade_share: Tensor  # [G] of the rows


class Read(NamedTuple):
    """What a learner reads of items and users beside who had what."""

    item_id: bool = False  # where users are tasks
    user_id: bool = False  # where items are tasks
    item_fields: bool = False
    user_fields: bool = False


class StoredDataset:
    """Stands for the dataset where a model is built from a file: who is a task, the sizes that
    RecBole asks for, and the facts.
    """

    def __init__(self, side: str, sizes: dict[str, int], facts: Facts | None) -> None:
        self.side, self.sizes, self.facts = side, sizes, facts

    def num(self, field: str) -> int:
        """The number of users or items; of the tasks: padding alone."""
        return self.sizes[field]


def task_side(dataset: "Dataset | StoredDataset") -> str:
    """Who is a task: user | item."""
    if isinstance(dataset, StoredDataset):
        return dataset.side
    return open_prepared(dataset.config["prepared"]).side


def read_facts(dataset: "Dataset | StoredDataset", read: Read) -> Facts:
    """The facts that a learner who reads this is built from."""
    if isinstance(dataset, StoredDataset):
        if dataset.facts is None:
            raise DataError("The file does not say which fields the model reads.")
        return dataset.facts
    warm, prepared = warm_users(dataset), open_prepared(dataset.config["prepared"])
    side, judged = prepared.side, prepared.feedback
    known = {"item": torch.zeros(dataset.item_num, dtype=torch.bool),
             "user": torch.zeros(dataset.user_num, dtype=torch.bool)}  # fmt: skip
    known[prepared.other_side][torch.from_numpy(warm.item)] = True
    known[side][torch.from_numpy(warm.ids)] = True
    if side == "item" and not max(prepared.shots) and not read.item_fields:
        raise SettingError(
            f"{prepared.name}: nothing is known of a cold item but its features, and none is read. "
            "Set 'item_fields' to true (the data set's page must name 'item_features')."
        )
    item_id, user_id = read.item_id and side == "user", read.user_id and side == "item"
    return Facts(
        side,
        judged,
        float(warm.target.mean()) if judged == "rating" else 0.0,
        known[prepared.other_side].nonzero().squeeze(-1),
        read_fields(dataset, dataset.iid_field, known["item"], item_id, read.item_fields),
        read_fields(dataset, dataset.uid_field, known["user"], user_id, read.user_fields),
        *_grades(warm.target if judged == "rating" else None),
    )


def _grades(target: NDArray[Any] | None) -> tuple[Tensor, Tensor]:
    """The different ratings and their shares; nothing where there are none or too many."""
    if target is None:
        return torch.zeros(0), torch.zeros(0)
    grades, count = np.unique(target, return_counts=True)
    if len(grades) > MOST_GRADES:
        return torch.zeros(0), torch.zeros(0)
    return torch.from_numpy(grades), torch.from_numpy(count / count.sum())
