r"""
ANIL
################################################
Reference:
    Raghu et al. "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML."
    ICLR 2020. arXiv:1909.09157
"""

from torch import Tensor

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Params, sgd_steps
from recbole_meta.model.meta.maml import MAML
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import hidden, task_part


class ANIL(MAML):
    r"""MAML whose inner loop moves the last layer only: almost no inner loop.

    .. math:: (w, b)' = (w, b) - \alpha \nabla_{w, b} L_{support}, \qquad score = h(x) w' + b'

    Beyond the paper, which classifies images: h is a perceptron over embeddings of fields, which
    the outer loop alone moves.
    """

    def adapt(self, support: Examples) -> State:
        s, prior = self.settings, dict(self.prior.items())
        offset = task_part(prior, support.task)
        h = hidden(prior, support.x @ prior["weight_0"] + offset)  # [S, H]
        last = len(s.hidden_size)
        head = {"weight": prior[f"weight_{last}"].squeeze(-1), "bias": prior[f"bias_{last}"]}

        def loss(head: Params) -> Tensor:
            score = h @ head["weight"] + head["bias"]
            return self.inner_loss(score, support.label, support.mask)

        return {"offset": offset, **sgd_steps(loss, head, s.inner_lr, s.inner_steps, s.meta_order)}

    def score(self, state: State, x: Tensor) -> Tensor:
        h = hidden(dict(self.prior.items()), x @ self.prior["weight_0"] + state["offset"])
        return h @ state["weight"] + state["bias"]
