r"""
Reptile
################################################
Reference:
    Nichol, Achiam, Schulman. "On First-Order Meta-Learning Algorithms." arXiv:1803.02999
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Loss, Params, sgd_steps
from recbole_meta.model.meta.maml import MAML, InnerSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import deeper, task_part


@dataclass(frozen=True)
class ReptileSettings(InnerSettings):
    """No ``meta_order``: no gradient is taken through the steps."""


class Reptile(MAML):
    r"""The start moves to where steps on a task end; no gradient is taken through them.

    .. math::
        \theta_K = steps_{query}(steps_{support}(\theta)), \qquad
        L = \frac{1}{2} \|\theta - sg(\theta_K)\|^2, \qquad \nabla_\theta L = \theta - \theta_K

    All parameters move, the embeddings of a task's rows and its own among them. The minibatches of
    a task are its support, with the inner loss, then its query, with the outer one, ``inner_steps``
    on each: as in the paper their gradients are so brought to agree. The outer step is Adam's on
    :math:`\theta - \theta_K`, the mean over tasks. A task adapts by the steps on its support.
    """

    settings: ReptileSettings

    def adapt(self, support: Examples) -> State:
        params = self._walked(self._start(support), support, self.inner_loss)
        names = ("x", "task", "task_weight", "bias_0")  # the rows, and what the offset is made of
        state = {name: value for name, value in params.items() if name not in names}
        return {"offset": task_part(params, params["task"]), **state}

    def score(self, state: State, x: Tensor) -> Tensor:
        return deeper(state, x @ state["weight_0"] + state["offset"])

    def _start(self, support: Examples) -> Params:
        return {**self.prior, "task": support.task}

    def _walked(self, start: Mapping[str, Tensor], examples: Examples, loss: Loss) -> Params:
        """The parameters and the rows x of the examples after steps on them."""
        s = self.settings

        def of(params: Params) -> Tensor:
            z = params["x"] @ params["weight_0"] + task_part(params, params["task"])
            return loss(deeper(params, z), examples.label, examples.mask)

        return sgd_steps(of, {**start, "x": examples.x}, s.inner_lr, s.inner_steps, order=1)

    def _query_loss(self, support: Examples, query: Examples) -> Tensor:
        start = self._start(support)
        still = {name: value.detach() for name, value in start.items()}
        after_support = self._walked(still, _detached(support), self.inner_loss)
        after_query = self._walked(after_support, _detached(query), self.loss_function)
        moves = [
            (support.x, after_support["x"]),
            (query.x, after_query["x"]),
            *((value, after_query[name]) for name, value in start.items()),
        ]
        return sum((old - new).square().sum() for old, new in moves) / 2


def _detached(examples: Examples) -> Examples:
    return examples._replace(x=examples.x.detach())
