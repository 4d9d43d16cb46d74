r"""
NLBA
################################################
Reference:
    Vartak et al. "A Meta-Learning Perspective on Cold-Start Recommendations for Items." NIPS 2017.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_meta.model.meta.lwa import LWA, LWASettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.settings import Size


@dataclass(frozen=True)
class NLBASettings(LWASettings):
    classifier_size: Size  # of the hidden layer whose biases adapt


class NLBA(LWA):
    r"""Non-linear bias adaptation: the means of LWA are biases of a hidden layer.

    .. math::
        score = b + w' ReLU(U f(x) + a + V_0 R_0 + V_1 R_1)

    Beyond the paper, as in LWA: a are biases that do not adapt, so that an empty support ranks,
    too, and the task's fields stand beside the item's.
    """

    settings: NLBASettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.classifier = nn.Linear(self.settings.hidden_size[-1], self.adapted_size)

    @property
    def adapted_size(self) -> int:
        """The numbers that a class changes: the biases of the hidden layer."""
        return self.settings.classifier_size

    def score(self, state: State, x: Tensor) -> Tensor:
        f = self._represented(state["offset"], x)
        h = torch.relu(self.classifier(f) + state["change"])  # [N, C]
        return h @ self.last.weight[0] + self.last.bias
