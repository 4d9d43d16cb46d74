r"""
MAML
################################################
Reference:
    Finn, Abbeel, Levine. "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks."
    ICML 2017. arXiv:1703.03400
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from recbole_meta.episode import Examples
from recbole_meta.inner_loop import Params, first_layer_steps
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import deeper, make_mlp, task_part
from recbole_meta.settings import Count, Least, Positive, Size

_FIRST = ("task_weight", "weight_0", "bias_0")  # parameters of the first layer


@dataclass(frozen=True)
class InnerSettings(LearnerSettings):
    hidden_size: Annotated[tuple[Size, ...], Least(1)]  # of the perceptron
    inner_loss: (
        Literal["mse", "mae", "bce", "softmax"] | None
    )  # ~: by what is judged: bce, mse, bce
    inner_lr: Positive  # alpha, of the inner loop
    inner_steps: Count  # on the support


@dataclass(frozen=True)
class MAMLSettings(InnerSettings):
    meta_order: Literal[1, 2]  # 2: exact meta-gradient; 1: the inner gradient is held constant


class MAML(FeatureRecommender):
    r"""A perceptron that takes a few steps on the support, from a start from which they pay.

    .. math::
        \theta' = \theta - \alpha \nabla_\theta L_{support}(\theta), \qquad
        \min_\theta \sum_{tasks} L_{query}(\theta')

    All layers adapt, the embeddings do not. The state holds the first layer as the support's rows
    and what they move (`inner_loop.first_layer_steps`) or, where a row is shorter than the support,
    as its weights; the deeper layers as they are.
    """

    group = "published"
    usual_inner_loss: ClassVar[dict[str, str]] = {
        "implicit": "bce",
        "rating": "mse",
        "label": "bce",
    }
    settings: MAMLSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.inner_loss = self.named_loss("inner_loss", self.usual_inner_loss)
        hidden = self.settings.hidden_size
        self.prior = make_mlp(self.shared_size, self.row_size, hidden, self.label_mean)

    @property
    def shared_size(self) -> int:
        """Inputs of the perceptron that all rows of a task share."""
        return self.task_embedding.size

    @property
    def row_size(self) -> int:
        """Inputs of the perceptron that differ from row to row."""
        return self.other_embedding.size

    def adapts(self, name: str) -> bool:
        """Whether a parameter of the layers after the first moves in the inner loop."""
        return True

    def adapt(self, support: Examples) -> State:
        s, prior, task = self.settings, dict(self.prior.items()), support.task
        after = {name: value for name, value in prior.items() if name not in _FIRST}

        def loss(z: Tensor, rest: Params) -> Tensor:
            return self.inner_loss(deeper(after | rest, z), support.label, support.mask)

        start, rows = task_part(prior, task), support.x
        first = rows @ prior["weight_0"] + start  # [S, H]
        rest = {name: value for name, value in after.items() if self.adapts(name)}
        moved, rest = first_layer_steps(
            loss, first, rows, task @ task + 1, rest, s.inner_lr, s.inner_steps, s.meta_order
        )
        known = task
        if s.meta_order == 1:
            rows, known = rows.detach(), task.detach()
        state = {"offset": start - (task @ known + 1) * moved.sum(0), **after, **rest}
        longer = rows.shape[0] > rows.shape[1]  # not known where an export leaves S open
        if statically_known_true(longer):  # then the weights are the smaller ones
            return {"weight_0": prior["weight_0"] - rows.T @ moved, **state}
        return {"rows": rows, "moved": moved, **state}

    def score(self, state: State, x: Tensor) -> Tensor:
        if "weight_0" in state:
            return deeper(state, x @ state["weight_0"] + state["offset"])
        z = x @ self.prior["weight_0"] + state["offset"] - (x @ state["rows"].T) @ state["moved"]
        return deeper(state, z)
