r"""
MetaSGD
################################################
Reference:
    Li et al. "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning." arXiv:1707.09835
"""

import torch
from torch import Tensor, nn

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Params, sgd_steps
from recbole_meta.model.meta.maml import MAML
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import deeper, task_part


class MetaSGD(MAML):
    r"""MAML whose inner rates are learned, one per parameter, of either sign.

    .. math:: \theta' = \theta - \alpha \odot \nabla_\theta L_{support}(\theta)

    ``inner_lr`` is where every rate starts. The paper takes one step.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        start = self.settings.inner_lr
        self.rates = nn.ParameterDict(
            {name: torch.full_like(value, start) for name, value in self.prior.items()}
        )

    def adapt(self, support: Examples) -> State:
        s, task = self.settings, support.task

        def loss(params: Params) -> Tensor:
            z = support.x @ params["weight_0"] + task_part(params, task)
            return self.inner_loss(deeper(params, z), support.label, support.mask)

        prior, rates = dict(self.prior.items()), dict(self.rates.items())
        params = sgd_steps(loss, prior, rates, s.inner_steps, s.meta_order)
        offset = task_part(params, task)
        del params["task_weight"], params["bias_0"]
        return {"offset": offset, **params}

    def score(self, state: State, x: Tensor) -> Tensor:
        return deeper(state, x @ state["weight_0"] + state["offset"])
