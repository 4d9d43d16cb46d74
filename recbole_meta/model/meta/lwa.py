r"""
LWA
################################################
Reference:
    Vartak et al. "A Meta-Learning Perspective on Cold-Start Recommendations for Items." NIPS 2017.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from recbole_meta.episode import Examples
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import body, make_body, task_part
from recbole_meta.settings import Least, Size


@dataclass(frozen=True)
class LWASettings(LearnerSettings):
    hidden_size: Annotated[tuple[Size, ...], Least(1)]  # of f, which represents an item


class LWA(FeatureRecommender):
    r"""Linear weight adaptation: what was liked and what was not are the weights of a linear score.

    .. math::
        R_c = mean_{s: y_s = c} f(x_s), \qquad
        score = b + f(x)' (w + W_0 R_0 + W_1 R_1)

    R_c [H] is 0 of a class that the support has not; a rating is of class 1 above the mean. Beyond
    the paper there are weights w that do not adapt, so that an empty support ranks, too, and the
    task's fields stand beside the item's. R_c is a mean, as there: a sum would grow with the
    history.
    """

    group = "published"
    settings: LWASettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        sizes, hidden = self.settings.hidden_size, self.settings.hidden_size[-1]
        self.represent = make_body(self.task_embedding.size, self.other_embedding.size, sizes)
        self.classes = nn.ModuleList(
            nn.Linear(hidden, self.adapted_size, bias=False) for _ in range(2)
        )
        self.last = nn.Linear(self.adapted_size, 1)
        with torch.no_grad():
            self.last.bias += self.label_mean

    @property
    def adapted_size(self) -> int:
        """The numbers that a class changes: the weights of the score."""
        return self.settings.hidden_size[-1]

    def adapt(self, support: Examples) -> State:
        offset = task_part(self.represent, support.task)
        f = self._represented(offset, support.x)  # [S, H]
        liked = (support.label > (self.label_mean if self.judged == "rating" else 0.5)).to(f.dtype)
        changes = []
        for label, change in enumerate(self.classes):
            member = support.mask * (liked if label else 1 - liked)
            changes.append(change(member @ f / member.sum().clamp(min=1)))
        return {"offset": offset, "change": sum(changes)}

    def score(self, state: State, x: Tensor) -> Tensor:
        weight = self.last.weight[0] + state["change"]
        return self._represented(state["offset"], x) @ weight + self.last.bias

    def _represented(self, offset: Tensor, x: Tensor) -> Tensor:
        return body(self.represent, x @ self.represent["weight_0"] + offset)
