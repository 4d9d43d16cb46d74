r"""
ObjectiveEASE
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass
from typing import Literal

import torch
from scipy import sparse
from torch import Tensor

from recbole_meta.model.conversion import conversion
from recbole_meta.model.item_ridge import ItemRidge, weighted_union
from recbole_meta.model.objective_recommender import (
    ObjectiveRecommender,
    ObjectiveSettings,
    dense_rows,
)
from recbole_meta.settings import Positive, Weight


@dataclass(frozen=True)
class ObjectiveEASESettings(ObjectiveSettings):
    reg_weight: Positive  # lambda, in users
    weights: dict[str, Weight]  # of the behaviours in the union; 1 where one is not named
    target: Literal["union", "own"]  # what is predicted: the union itself, or the own behaviour
    copy: Weight  # c, what a user's own entry of the union adds to its score
    conversion: Weight  # a, on the odds of such an item


class ObjectiveEASE(ObjectiveRecommender):
    r"""EASE from the weighted union of all behaviours to one of them, with a copy term.

    .. math::
        X_{ui} &= \max_b w_b X^{(b)}_{ui}, \qquad
        B = P X'Y - P \, diag(\gamma), \qquad P = (X'X + \lambda I)^{-1} \\
        \gamma_j &= (P X'Y)_{jj} / P_{jj} \;\Rightarrow\; B_{jj} = 0, \qquad
        score = X B + (c + a o) \odot X

    Y is the union (then B is EASE's, where all weights are 1) or the objective's own behaviour; o
    the items' log-odds of the objective for who met them otherwise (``conversion``). What differs
    from the paper: Y, the weights, c and a; and nothing of size [I, I] is made (``ItemRidge``).
    """

    group = "rule"
    settings: ObjectiveEASESettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.weights, "weights")
        where = f"{type(self).__name__}: 'weights'"
        self.source = weighted_union(self.history, self.settings.weights, where)

    def targets(self) -> dict[str, sparse.csr_matrix]:
        """What is predicted, Y [U, I]: by objective, or one for all of them."""
        return self.history if self.settings.target == "own" else {"union": self.source}

    def prepare(self, train_data) -> None:
        self.ridge = ItemRidge(
            train_data._dataset, self.source, self.targets(), self.settings.reg_weight,
            type(self).__name__,
        )  # fmt: skip
        odds = {name: conversion(self.history, name) for name in self.objectives}
        s = self.settings
        self.own = {name: s.copy + s.conversion * torch.from_numpy(o) for name, o in odds.items()}

    def rank(self, users: Tensor, objective: str) -> Tensor:
        self.check_ranked(objective)
        target = objective if objective in self.ridge.y else "union"
        own = self.own[objective].to(users.device)
        return own * dense_rows(self.source, users) + self.ridge.scores(users, target)
