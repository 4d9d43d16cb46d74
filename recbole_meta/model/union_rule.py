"""Rules that lead from the union of all behaviours to one of them, and copy what was met."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy import sparse
from torch import Tensor

from recbole_meta.model.conversion import conversion
from recbole_meta.model.item_ridge import weighted_union
from recbole_meta.model.objective_recommender import (
    ObjectiveRecommender,
    ObjectiveSettings,
    dense_rows,
)
from recbole_meta.settings import Weight


@dataclass(frozen=True)
class UnionRuleSettings(ObjectiveSettings):
    weights: dict[str, Weight]  # of the behaviours in the union; 1 where one is not named
    target: Literal["union", "own"]  # where it leads: to the union itself, or the own behaviour
    copy: Weight  # c, what a user's own entry of the union adds to its score
    conversion: Weight  # a, on the odds of such an item


class UnionRule(ObjectiveRecommender):
    r"""Base of the rules; a subclass defines ``prepare``, which calls this one, and ``lead``.

    .. math:: X_{ui} = \max_b w_b X^{(b)}_{ui}, \qquad score = lead(X) + (c + a o) \odot X

    o: the items' log-odds of the objective for who met them otherwise (``conversion``).
    """

    group = "rule"
    settings: UnionRuleSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.weights, "weights")
        where = f"{type(self).__name__}: 'weights'"
        self.source = weighted_union(self.history, self.settings.weights, where)

    def targets(self) -> dict[str, sparse.csr_matrix]:
        """What is predicted, Y [U, I]: by objective, or one for all of them."""
        return self.history if self.settings.target == "own" else {"union": self.source}

    def prepare(self, train_data: Any) -> None:
        self.ends, s = self.targets(), self.settings
        odds = {name: conversion(self.history, name) for name in self.objectives}
        self.own = {name: s.copy + s.conversion * torch.from_numpy(o) for name, o in odds.items()}

    def lead(self, users: Tensor, target: str) -> Tensor:
        """Scores [B, I] of a target for these users."""
        raise NotImplementedError(f"{type(self).__name__} must define lead(users, target).")

    def rank(self, users: Tensor, objective: str) -> Tensor:
        self.check_ranked(objective)
        own = self.own[objective].to(users.device)
        target = objective if objective in self.ends else "union"
        return own * dense_rows(self.source, users) + self.lead(users, target)
