r"""
MetaCF
################################################
Reference:
    Wei et al. "Fast Adaptation for Cold-start Collaborative Filtering with Meta-learning." ICDM
    2020; learned rates: Li et al. "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning."
    arXiv:1707.09835
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Params, sgd_steps
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.settings import Count, Positive


@dataclass(frozen=True)
class MetaCFSettings(LearnerSettings):
    inner_loss: (
        Literal["mse", "mae", "bce", "softmax"] | None
    )  # ~: by what is judged: softmax, mse, bce
    inner_lr: Positive  # where every rate alpha starts
    inner_steps: Count  # on the support
    meta_order: Literal[1, 2]  # 2: exact meta-gradient; 1: the inner gradient is held constant


class MetaCF(FeatureRecommender):
    r"""Matrix factorisation whose user's row is not stored: steps on the support find it.

    .. math::
        p_0 = w + M \bar{x} + U u, \qquad
        p_{j+1} = p_j - \alpha \odot \nabla_p L_{support}(p_j), \qquad score = [x; 1]' p

    x [D]: the vector of an item; :math:`\bar{x}`: the mean of those that are liked in the support,
    ratings above the mean, 0 where there is none; p, w, :math:`\alpha` [D + 1]: the row and the
    user's bias, where they start and their rates, learned, of either sign; M [D, D], which starts
    as 1 and leaves the bias alone; u: the user's fields, where there are some.

    The paper has a graph network on subgraphs sampled around the user, of which all parameters take
    the steps. Here M is all of the graph that is left, and the row alone moves, so that a newcomer
    is D + 1 numbers. A ranking's likes are told from drawn negatives by softmax, where the paper
    takes pairs; a bias stands beside.
    """

    group = "published"
    usual_inner_loss: ClassVar[dict[str, str]] = {
        "implicit": "softmax",
        "rating": "mse",
        "label": "bce",
    }
    settings: MetaCFSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        of_users = self.side == "user"
        usual = self.usual_inner_loss if of_users else self.usual_inner_loss | {"implicit": "bce"}
        self.inner_loss = self.named_loss("inner_loss", usual)
        size = self.other_embedding.size
        self.start = nn.Parameter(pad(torch.zeros(size), (0, 1), value=float(self.label_mean)))
        self.convolution = nn.Parameter(torch.eye(size))
        self.of_task = nn.Parameter(torch.zeros(self.task_embedding.size, size + 1))
        self.rates = nn.Parameter(torch.full((size + 1,), self.settings.inner_lr))

    def adapt(self, support: Examples) -> State:
        s, x = self.settings, pad(support.x, (0, 1), value=1.0)  # [S, D + 1]

        def loss(moved: Params) -> Tensor:
            return self.inner_loss(x @ moved["row"], support.label, support.mask)

        start = self.start + pad(self.convolution @ self.liked(support), (0, 1))  # [D + 1]
        start = start + support.task @ self.of_task
        rates = {"row": self.rates}
        return sgd_steps(loss, {"row": start}, rates, s.inner_steps, s.meta_order)

    def score(self, state: State, x: Tensor) -> Tensor:
        return x @ state["row"][:-1] + state["row"][-1]
