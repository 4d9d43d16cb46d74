r"""
CAVIA
################################################
Reference:
    Zintgraf et al. "Fast Context Adaptation via Meta-Learning." ICML 2019. arXiv:1810.03642
"""

from dataclasses import dataclass

from torch import Tensor

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Params, sgd_steps
from recbole_meta.model.meta.maml import MAML, MAMLSettings
from recbole_meta.model.meta_recommender import State, joined
from recbole_meta.model.mlp import deeper, task_part
from recbole_meta.settings import Size


@dataclass(frozen=True)
class CAVIASettings(MAMLSettings):
    context_size: Size  # numbers that stand for a task


class CAVIA(MAML):
    r"""MAML whose inner loop moves the task's context alone, an input that starts at zero.

    .. math::
        \phi = -\alpha \nabla_\phi L_{support}(\theta, \phi) |_{\phi = 0}, \qquad
        score = f_\theta([u; \phi; x])

    :math:`\phi` [C] is what is known of a task; all parameters are shared and learn in the outer
    loop. As in the paper's regressions the context is joined to the input; several steps start each
    where the last one ended.
    """

    settings: CAVIASettings

    @property
    def shared_size(self) -> int:
        return self.task_embedding.size + self.settings.context_size

    def adapt(self, support: Examples) -> State:
        s, prior = self.settings, dict(self.prior.items())
        first = support.x @ prior["weight_0"]  # [S, H]

        def loss(moved: Params) -> Tensor:
            shared = task_part(prior, joined(support.task, moved["context"]))
            return self.inner_loss(deeper(prior, first + shared), support.label, support.mask)

        start = {"context": first.new_zeros(s.context_size)}
        moved = sgd_steps(loss, start, s.inner_lr, s.inner_steps, s.meta_order)
        return {"offset": task_part(prior, joined(support.task, moved["context"]))}

    def score(self, state: State, x: Tensor) -> Tensor:
        return deeper(dict(self.prior.items()), x @ self.prior["weight_0"] + state["offset"])
