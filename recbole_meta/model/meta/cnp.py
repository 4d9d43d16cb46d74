r"""
CNP
################################################
Reference:
    Garnelo et al. "Conditional Neural Processes." ICML 2018. arXiv:1807.01613
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn

from recbole_meta.episode import Examples
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State, joined
from recbole_meta.model.mlp import deeper, make_mlp, task_part
from recbole_meta.settings import Least, Size


@dataclass(frozen=True)
class CNPSettings(LearnerSettings):
    hidden_size: Annotated[tuple[Size, ...], Least(1)]  # of the decoder, and of the encoder
    context_size: Size  # of what the support becomes


class CNP(FeatureRecommender):
    r"""The support becomes the mean of encoded examples, by which a decoder scores any item.

    .. math:: r = mean_s \, e([x_s; y_s]), \qquad score = d([u; r; x])

    No gradient is taken to adapt. Only the mean is decoded, not the variance. Ratings enter less
    their mean.
    """

    group = "published"
    settings: CNPSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, size = self.settings, self.other_embedding.size
        widths = [size + 1, *s.hidden_size]
        layers = [
            part
            for inputs, outputs in pairwise(widths)
            for part in (nn.Linear(inputs, outputs), nn.ReLU())
        ]
        self.encoder = nn.Sequential(*layers, nn.Linear(widths[-1], s.context_size))
        shared = self.task_embedding.size + s.context_size
        self.prior = make_mlp(shared, size, s.hidden_size, self.label_mean)

    def adapt(self, support: Examples) -> State:
        label = (support.label - self.label_mean).unsqueeze(-1)  # [S, 1]
        encoded = self.encoder(joined(support.x, label))  # [S, R]
        mask = support.mask.unsqueeze(-1)
        context = (encoded * mask).sum(0) / mask.sum().clamp(min=1)  # [R]
        return {"offset": task_part(self.prior, joined(support.task, context))}

    def score(self, state: State, x: Tensor) -> Tensor:
        return deeper(self.prior, x @ self.prior["weight_0"] + state["offset"])
