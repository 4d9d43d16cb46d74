r"""
SeveralStarts
################################################
Reference:
    Lakshminarayanan, Pritzel, Blundell. "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles." NeurIPS 2017. arXiv:1612.01474
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from recbole_meta.errors import SettingError, nearest
from recbole_meta.model import multitask_models
from recbole_meta.model.objective_recommender import (
    ObjectiveRecommender,
    TrainedObjectiveSettings,
)
from recbole_meta.settings import Over, Size, load_properties, read_settings


@dataclass(frozen=True)
class SeveralStartsSettings(TrainedObjectiveSettings):
    member: dict[str, dict[str, Any]]  # one model, and its settings over its page
    copies: Size  # M


class SeveralStarts(ObjectiveRecommender):
    r"""Several copies of a multi-task model that differ in their random start; their mean ranks.

    .. math::
        score^{(t)} = \frac{1}{M} \sum_m score^{(t)}_m, \qquad
        p^{(t)} = \frac{1}{M} \sum_m p^{(t)}_m, \qquad L = \sum_m L_m

    The copies share no parameter, so each gets the gradient that it would get alone; they see the
    same batches, each with its own dropout. Epochs and rates are those of the whole, which chooses
    the epoch by what the mean ranks. It takes as long as M models, to train and to rank.

    What differs from the paper: the mean of scores (of softmaxes: the geometric mean), not of
    probabilities; no adversarial examples.
    """

    distributes = True
    settings: SeveralStartsSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        name, values = _member(self.settings.member)
        kind, over = multitask_models()[name], Over(config, values)
        self.copies = nn.ModuleList(kind(over, dataset) for _ in range(self.settings.copies))

    @classmethod
    def check_settings(cls, settings: SeveralStartsSettings) -> None:
        _member(settings.member)

    def prepare(self, train_data: Any) -> None:
        for copy in self.copies:
            copy.prepare(train_data)

    def rank(self, users: Tensor, objective: str) -> Tensor:
        return self._mean(lambda copy: copy.rank(users, objective))

    def distribution(self, users: Tensor, objective: str) -> Tensor:
        return self._mean(lambda copy: copy.distribution(users, objective))

    def _mean(self, of: Callable[[Any], Tensor]) -> Tensor:
        first, *others = self.copies
        total = of(first).clone()
        for copy in others:
            total += of(copy)
        return total / len(self.copies)

    def calculate_loss(self, interaction) -> Tensor:
        return torch.stack([copy.calculate_loss(interaction) for copy in self.copies]).sum()


def _member(given: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The model's name, and its settings but for those of the training."""
    if len(given) != 1:
        raise SettingError(f"SeveralStarts: 'member' must name one model, found {len(given)}.")
    ((name, settings),) = given.items()
    known = {n for n, c in multitask_models().items() if c is not SeveralStarts and _trains(c)}
    if name not in known:
        raise SettingError(f"SeveralStarts: no member can be '{name}'. {nearest(name, known)}")
    of_training = {each.name for each in fields(TrainedObjectiveSettings)}
    if found := sorted(of_training.intersection(settings)):
        raise SettingError(
            f"SeveralStarts, member '{name}': '{found[0]}' is a setting of the whole."
        )
    values = load_properties("model", name) | settings
    read_settings(_settings(multitask_models()[name]), values, f"SeveralStarts, member '{name}'")
    if values.get("average"):
        raise SettingError(f"SeveralStarts, member '{name}': 'average' must be 0.")
    return name, {key: value for key, value in values.items() if key not in of_training}


def _settings(kind: type) -> type:
    found: type = typing.get_type_hints(kind)["settings"]
    return found


def _trains(kind: type) -> bool:
    return issubclass(_settings(kind), TrainedObjectiveSettings)
