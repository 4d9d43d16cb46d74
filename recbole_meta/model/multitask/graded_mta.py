r"""
GradedMTA
################################################
Reference:
    Liang, Krishnan, Hoffman, Jebara. "Variational Autoencoders for Collaborative Filtering."
    WWW 2018. arXiv:1802.05814
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_meta.errors import DataError
from recbole_meta.model.multitask.mta import MTA, MTASettings
from recbole_meta.settings import Weight


@dataclass(frozen=True)
class GradedMTASettings(MTASettings):
    gains: dict[str, Weight]  # v of the behaviours in the target; 1 where one is not named


class GradedMTA(MTA):
    r"""MTA with one decoder for a graded target: one ranking of what a user's items are worth.

    .. math::
        L = - \sum_{ui} v_{ui} \log softmax(score_u)_i \Big/ \sum_{ui} v_{ui}, \qquad
        v_{ui} = \sum_t v_t X^{(t)}_{ui}

    Decoder, gates and bias are those of the main objective; every objective has its ranking.
    ``weights`` of MTA's losses are not read, and no distribution is learned.
    """

    distributes = False
    settings: GradedMTASettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.gains, "gains")
        worth = [self.settings.gains.get(name, 1.0) for name in self.objectives]
        if not any(worth):
            raise DataError("GradedMTA: all 'gains' are 0, so there is no target.")
        self.register_buffer("worth", torch.tensor(worth), persistent=False)  # v_t

    def rank(self, users: Tensor, objective: str) -> Tensor:
        self.check_ranked(objective)
        return super().rank(users, self.objectives[0])

    def reconstruction(self, z: Tensor, entries: Any, target: Tensor) -> Tensor:
        worth = target.to(self.worth.dtype) @ self.worth  # [N]
        chosen = worth > 0
        if not chosen.any():
            return 0 * z.sum()
        return self._cross_entropy(z, entries, chosen, self.objectives[0], worth[chosen])
