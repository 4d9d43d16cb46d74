r"""
ObjectiveWalk
################################################
Reference:
    Paudel, Christoffel, Newell, Bernstein. "Updatable, Accurate, Diverse, and Scalable
    Recommendations for Interactive Applications." ACM TiiS 7(1), 2017.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recbole_meta.model.conversion import conversion
from recbole_meta.model.item_ridge import weighted_union
from recbole_meta.model.objective_recommender import (
    ObjectiveRecommender,
    ObjectiveSettings,
    dense_rows,
)
from recbole_meta.model.random_walk import RandomWalk
from recbole_meta.settings import Share, Weight


@dataclass(frozen=True)
class ObjectiveWalkSettings(ObjectiveSettings):
    weights: dict[str, Weight]  # of the behaviours in the union; 1 where one is not named
    target: Literal["union", "own"]  # where a walk ends: in the union, or in the own behaviour
    power: Share  # beta, of how many have an item, by which its score is divided
    copy: Weight  # c, what a user's own entry of the union adds to its score
    conversion: Weight  # a, on the odds of such an item


class ObjectiveWalk(ObjectiveRecommender):
    r"""RP3-beta from the weighted union of all behaviours to one of them, with a copy term.

    .. math:: X_{ui} = \max_b w_b X^{(b)}_{ui}, \qquad score = RandomWalk(X) + (c + a o) \odot X

    o: the items' log-odds of the objective for who met them otherwise (``conversion``).
    """

    group = "rule"
    settings: ObjectiveWalkSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.weights, "weights")
        where = f"{type(self).__name__}: 'weights'"
        self.source = weighted_union(self.history, self.settings.weights, where)

    def prepare(self, train_data) -> None:
        s = self.settings
        ends = {name: self.source if s.target == "union" else y for name, y in self.history.items()}
        self.walks = {name: RandomWalk(self.source, y, s.power) for name, y in ends.items()}
        odds = {name: conversion(self.history, name) for name in self.objectives}
        self.own = {name: s.copy + s.conversion * torch.from_numpy(o) for name, o in odds.items()}

    def rank(self, users: Tensor, objective: str) -> Tensor:
        self.check_ranked(objective)
        own = self.own[objective].to(users.device)
        return own * dense_rows(self.source, users) + self.walks[objective].scores(users)
