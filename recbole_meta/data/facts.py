"""What a learner with fields is built from: of a training dataset, or of a file without one."""

from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_meta.data.features import Field, read_fields
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.warm import warm_users


@dataclass(frozen=True)
class Facts:
    """What training says of items, users and labels."""

    judged: str  # implicit | rating | label
    label_mean: float  # of ratings; 0 otherwise
    pool: Tensor  # ids of the items that warm users have
    item_fields: list[Field]
    user_fields: list[Field]  # users have no id of their own: a newcomer's is never met


class StoredDataset:
    """Stands for the dataset where a model is built from a file: the sizes that RecBole asks for,
    and the facts.
    """

    def __init__(self, user_field: str, item_field: str, n_items: int, facts: Facts | None) -> None:
        self.sizes = {user_field: 1, item_field: n_items}
        self.facts = facts

    def num(self, field: str) -> int:
        """The number of users (padding alone) or items."""
        return self.sizes[field]


def read_facts(dataset: "Dataset | StoredDataset", settings: Any) -> Facts:
    """The facts that a learner with these settings reads."""
    if isinstance(dataset, StoredDataset):
        assert dataset.facts is not None, "the file has them"
        return dataset.facts
    warm = warm_users(dataset)
    known = {"item": torch.zeros(dataset.item_num, dtype=torch.bool),
             "user": torch.zeros(dataset.user_num, dtype=torch.bool)}  # fmt: skip
    known["item"][torch.from_numpy(warm.item)] = True
    known["user"][torch.from_numpy(warm.ids)] = True
    judged = open_prepared(dataset.config["prepared"]).feedback
    return Facts(
        judged,
        float(warm.target.mean()) if judged == "rating" else 0.0,
        known["item"].nonzero().squeeze(-1),
        read_fields(
            dataset, dataset.iid_field, known["item"], settings.item_id, settings.item_fields
        ),
        read_fields(dataset, dataset.uid_field, known["user"], False, settings.user_fields),
    )
