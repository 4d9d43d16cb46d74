r"""
RESUSNN
################################################
Reference:
    Shen et al. "RESUS: Warm-Up Cold Users via Meta-Learning Residual User Preferences in CTR
    Prediction." ACM TOIS 2023. arXiv:2210.16080
"""

import torch
from torch import Tensor, nn

from recbole_meta.model.meta_recommender import State
from recbole_meta.model.residual_recommender import ResidualRecommender


class RESUSNN(ResidualRecommender):
    r"""RESUS-NN: an item has the mean of the support's residuals, weighted by how near each is.

    .. math::
        a_s = softmax_s(v' |\Phi(x) - \Phi(x_s)|), \qquad \Delta(x) = \sum_s a_s r_s

    v [H] is learned, of either sign; a constant beside it would cancel. The scales start at 3, and
    are not made positive. A single row says the same of all items, and residuals of likes are all
    positive: a ranking's support needs negatives, several for each like. Predictor and encoder are
    those of RESUSRR, and train as there.
    """

    group = "published"
    scale_start = 3.0

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.nearness = nn.Linear(self.settings.hidden_size[-1], 1, bias=False)

    def fit(self, h: Tensor, residual: Tensor, mask: Tensor) -> State:
        return {"h": h, "residual": residual, "mask": mask}

    def residual(self, state: State, h: Tensor) -> Tensor:
        v, logits = self.nearness.weight[0], 0
        for sign, part in ((1, v.relu()), (-1, (-v).relu())):  # no [S, N, H] is ever held
            logits = logits + sign * torch.cdist(part * state["h"], part * h, p=1.0)  # [S, N]
        lowest, present = torch.finfo(h.dtype).min, state["mask"].unsqueeze(-1) > 0
        return state["residual"] @ torch.softmax(torch.where(present, logits, lowest), dim=0)
