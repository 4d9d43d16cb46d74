r"""
RESUSRR
################################################
Reference:
    Shen et al. "RESUS: Warm-Up Cold Users via Meta-Learning Residual User Preferences in CTR
    Prediction." ACM TOIS 2023. arXiv:2210.16080
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from recbole_meta.model.meta_recommender import State
from recbole_meta.model.residual_recommender import ResidualRecommender, ResidualSettings
from recbole_meta.settings import Positive


@dataclass(frozen=True)
class RESUSRRSettings(ResidualSettings):
    reg_weight: Positive  # where lambda starts, of the ridge


class RESUSRR(ResidualRecommender):
    r"""RESUS-RR: a ridge regression of the residuals on encoded items, learned through its solve.

    .. math::
        w = X' (X X' + \lambda I)^{-1} r, \qquad \Delta(x) = [\Phi(x); 1]' w

    X [S, H + 1]: the encoded support, with a column of ones. The scales start at 1. Predictor and
    encoder are perceptrons of the same embeddings where the paper has two networks of its own, the
    predictor trained first; here both train on the episodes, of which those without a support are
    the predictor's alone. A ranking's candidates are compared by softmax, not row by row.
    """

    group = "published"
    scale_start = 1.0
    settings: RESUSRRSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.log_reg = nn.Parameter(torch.tensor(self.settings.reg_weight).log())

    def fit(self, h: Tensor, residual: Tensor, mask: Tensor) -> State:
        x = pad(h, (0, 1), value=1.0) * mask.unsqueeze(-1)  # [S, H + 1]
        ridge = self.log_reg.exp() * torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
        factors = torch.linalg.lu_factor(x @ x.T + ridge)  # `solve` in two: can be exported
        solved = torch.linalg.lu_solve(*factors, residual.unsqueeze(-1)).squeeze(-1)
        return {"w": x.T @ solved}  # [H + 1]

    def residual(self, state: State, h: Tensor) -> Tensor:
        return h @ state["w"][:-1] + state["w"][-1]
