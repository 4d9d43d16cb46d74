r"""
ObjectiveWalk
################################################
Reference:
    Paudel, Christoffel, Newell, Bernstein. "Updatable, Accurate, Diverse, and Scalable
    Recommendations for Interactive Applications." ACM TiiS 7(1), 2017.
"""

from dataclasses import dataclass

from torch import Tensor

from recbole_meta.model.random_walk import RandomWalk
from recbole_meta.model.union_rule import UnionRule, UnionRuleSettings
from recbole_meta.settings import Share


@dataclass(frozen=True)
class ObjectiveWalkSettings(UnionRuleSettings):
    power: Share  # beta, of how many have an item, by which its score is divided


class ObjectiveWalk(UnionRule):
    r"""RP3-beta from the weighted union of all behaviours to one of them, with a copy term.

    .. math:: X_{ui} = \max_b w_b X^{(b)}_{ui}, \qquad score = RandomWalk(X) + (c + a o) \odot X

    o: the items' log-odds of the objective for who met them otherwise (``conversion``).
    """

    settings: ObjectiveWalkSettings

    def prepare(self, train_data) -> None:
        super().prepare(train_data)
        power = self.settings.power
        self.walks = {name: RandomWalk(self.source, y, power) for name, y in self.ends.items()}

    def lead(self, users: Tensor, target: str) -> Tensor:
        return self.walks[target].scores(users)
