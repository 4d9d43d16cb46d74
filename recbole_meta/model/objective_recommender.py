r"""A multi-task model for full ranking: one ranking of the catalogue per objective.

A model reads what users did under every behaviour in train, K matrices of users and items, and
defines ``rank(users, objective)``. RecBole's own evaluation gets the main objective's ranking, the
first that the page of the data set names.

A model that ``distributes`` says of a user, too, how what he does under a behaviour is distributed
over the categories of items, p [C], for each distribution that the page names. An item's score is
then :math:`\sum_c p_u(c) q_i(c)`, q the item's own categories in equal parts, as in models of rows.
"""

import typing
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from scipy import sparse
from torch import Tensor

from recbole_meta.data.row_loader import category_shares
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.settings import Count, Positive, Size, Weight, read_settings


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of every multi-task model; a model's own dataclass extends it."""

    epochs: Count  # training epochs; 0: a closed form, fitted by ``prepare``


@dataclass(frozen=True)
class TrainedObjectiveSettings(ObjectiveSettings):
    """Settings of every multi-task model that is trained by epochs."""

    eval_step: Size  # epochs between validations
    stopping_step: Count  # validations without a better one before training stops
    stop_by: str  # the metric that chooses the epoch on valid, e.g. mean/ndcg@10, worst/ndcg@10
    train_batch_size: Size  # users per step
    learning_rate: Positive
    weight_decay: Weight  # L2 on all parameters
    schedule: Literal["constant", "cosine"]  # of the learning rate, over ``epochs``


class ObjectiveRecommender(GeneralRecommender):
    """Base of the multi-task models; a subclass defines ``rank``, and ``distribution`` where it
    ``distributes``.
    """

    input_type = InputType.POINTWISE
    group: ClassVar[Literal["floor", "rule", "single", "ours"]] = "ours"
    distributes: ClassVar[bool] = False
    settings: ObjectiveSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        kind = typing.get_type_hints(type(self))["settings"]
        values = {field.name: config[field.name] for field in fields(kind)}
        self.settings = read_settings(kind, values, type(self).__name__)
        self.labels: dict[str, str] = dict(config["objectives"])  # objective -> column
        self.objectives = tuple(self.labels)
        self.history = {name: behaviour(dataset, label) for name, label in self.labels.items()}
        said = config["distributions"] or {} if self.distributes else {}
        self.distributions: dict[str, str] = {name: each["given"] for name, each in said.items()}
        for name, each in said.items():
            shares = category_shares(dataset, each["label"]).to(torch.get_default_dtype())
            self.register_buffer(f"categories_{name}", shares, persistent=False)  # q [I, C]

    @classmethod
    def check_settings(cls, settings: Any) -> None:
        """Refuse what the settings alone show to be wrong, before any data is read."""

    def prepare(self, train_data: Any) -> None:
        """Fit what has a closed form, once, before the first epoch."""

    def rank(self, users: Tensor, objective: str) -> Tensor:
        """Scores [B, I] of the catalogue for these users, by RecBole's ids."""
        raise NotImplementedError(f"{type(self).__name__} must define rank(users, objective).")

    def distribution(self, users: Tensor, objective: str) -> Tensor:
        """Shares [B, C] of the categories in what these users do; they sum to 1."""
        raise SettingError(
            f"{type(self).__name__} says no distribution over categories: '{objective}' has none."
        )

    def categories(self, objective: str) -> Tensor:
        """The share of every category in every item, q [I, C]; zeros of an item without one."""
        return self.get_buffer(f"categories_{objective}")

    def interests(self, objective: str) -> tuple[np.ndarray, np.ndarray]:
        """What each user's items of train are about: the sums of their shares [U, C], and how many
        have a category [U].
        """
        shares = self.categories(objective).double().cpu().numpy()
        items = self.history[self.distributions[objective]]
        total, count = items @ shares, items @ (shares.sum(1) > 0)
        if not count.any():
            raise DataError(f"Objective '{objective}': no item of train has a category.")
        return total, count

    def expected_share(self, users: Tensor, objective: str) -> Tensor:
        """How much of every item is about what these users do, [B, I]."""
        return self.distribution(users, objective) @ self.categories(objective).T

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} is not trained: it has no loss.")

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The main objective's scores of the whole catalogue, [B * I]."""
        return self.rank(interaction[self.USER_ID], self.objectives[0]).reshape(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        """The main objective's score of each (user, item) row, [B]."""
        scores = self.rank(interaction[self.USER_ID], self.objectives[0])
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def check_objectives(
        self, names: typing.Iterable[str], setting: str, more: typing.Iterable[str] = ()
    ) -> None:
        """Refuse a setting that names what is no objective of the data set, nor one of ``more``."""
        known = (*self.labels, *more)
        for name in names:
            if name not in known:
                raise SettingError(
                    f"{type(self).__name__}: '{setting}' names the objective '{name}', which the "
                    f"data set has not. {nearest(name, known)}"
                )

    def check_ranked(self, objective: str) -> None:
        """Refuse to rank by what is no behaviour: a rule for behaviours has no other ranking."""
        if objective not in self.labels:
            raise SettingError(
                f"{type(self).__name__} does not rank by '{objective}', which is no behaviour. "
                f"{nearest(objective, self.labels)}"
            )


def behaviour(dataset: Dataset, label: str) -> sparse.csr_matrix:
    """0/1 of the rows whose label is 1, X [U, I]."""
    found = dataset.inter_matrix(form="csr", value_field=label).astype("float32")
    found.eliminate_zeros()
    return found


def union(matrices: typing.Iterable[sparse.csr_matrix]) -> sparse.csr_matrix:
    """The largest entry of all at each place."""
    found = None
    for matrix in matrices:
        found = matrix if found is None else found.maximum(matrix)
    return found.tocsr()


def dense_rows(matrix: sparse.csr_matrix, users: Tensor) -> Tensor:
    """These rows, [B, I]."""
    return torch.from_numpy(matrix[users.cpu().numpy()].toarray()).to(users.device)
