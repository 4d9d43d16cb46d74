r"""
GradedEASE
################################################
Reference:
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass

from scipy import sparse
from torch import Tensor

from recbole_meta.errors import DataError
from recbole_meta.model.multitask.objective_ease import ObjectiveEASE, ObjectiveEASESettings
from recbole_meta.settings import Weight


@dataclass(frozen=True)
class GradedEASESettings(ObjectiveEASESettings):
    gains: dict[str, Weight]  # v of the behaviours in the target; 1 where one is not named
    power: Weight  # a, on the gains: 0 makes them equal


class GradedEASE(ObjectiveEASE):
    r"""EASE to a graded union: one ranking of what a user's next items are worth.

    .. math:: Y_{ui} = \sum_t v_t^a X^{(t)}_{ui}, \qquad B = P X'Y - P \, diag(\gamma)

    B is linear in Y, so with :math:`a = 1` this is the sum of the rankings of ObjectiveEASE with
    ``target: own`` and the same settings, by the weights :math:`v_t`, but for the copy term, which
    is added once and has the main objective's odds; 0 to any power is 0. With
    ``target: union`` each objective has the union's ranking, as in ObjectiveEASE.
    """

    settings: GradedEASESettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.gains, "gains")

    def targets(self) -> dict[str, sparse.csr_matrix]:
        s, graded = self.settings, None
        if s.target == "union":
            return super().targets()
        for name, matrix in self.history.items():
            gain = s.gains.get(name, 1.0)
            part = (gain**s.power if gain else 0.0) * matrix
            graded = part if graded is None else graded + part
        graded.eliminate_zeros()
        if not graded.nnz:
            raise DataError("GradedEASE: all 'gains' are 0, so there is no target.")
        return {"union": graded.tocsr().astype("float32")}

    def rank(self, users: Tensor, objective: str) -> Tensor:
        self.check_ranked(objective)
        return super().rank(users, self.objectives[0])
