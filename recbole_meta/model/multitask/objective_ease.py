r"""
ObjectiveEASE
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass

from torch import Tensor

from recbole_meta.model.item_ridge import ItemRidge
from recbole_meta.model.union_rule import UnionRule, UnionRuleSettings
from recbole_meta.settings import Positive


@dataclass(frozen=True)
class ObjectiveEASESettings(UnionRuleSettings):
    reg_weight: Positive  # lambda, in users


class ObjectiveEASE(UnionRule):
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

    settings: ObjectiveEASESettings

    def prepare(self, train_data) -> None:
        super().prepare(train_data)
        reg, where = self.settings.reg_weight, type(self).__name__
        self.ridge = ItemRidge(train_data._dataset, self.source, self.ends, reg, where)

    def lead(self, users: Tensor, target: str) -> Tensor:
        return self.ridge.scores(users, target)
