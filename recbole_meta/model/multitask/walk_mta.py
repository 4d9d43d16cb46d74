r"""
WalkMTA
################################################
Reference:
    Paudel, Christoffel, Newell, Bernstein. "Updatable, Accurate, Diverse, and Scalable
    Recommendations for Interactive Applications." ACM TiiS 7(1), 2017.
"""

from dataclasses import dataclass

from torch import Tensor

from recbole_meta.model.multitask.linear_mta import LinearMTA, LinearMTASettings
from recbole_meta.model.random_walk import RandomWalk
from recbole_meta.settings import Share, Weight


@dataclass(frozen=True)
class WalkMTASettings(LinearMTASettings):
    walk: dict[str, Weight]  # r of an objective, on the walk; 0 where one is not named
    walk_power: Share  # beta, of how many have an item, by which its score is divided


class WalkMTA(LinearMTA):
    r"""LinearMTA with a random walk on the union of all behaviours beside it.

    .. math:: score^{(t)} = score^{(t)}_{LinearMTA} + r_t \, RandomWalk(x_w)

    It starts from the weighted union :math:`x_w` of the linear path and ends in the union.

    A regression asks which items together say the next one, a walk how near it is. Like the linear
    path it is of train alone and read when ranking only, so that training is MTA's.
    """

    settings: WalkMTASettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_objectives(self.settings.walk, "walk")

    def prepare(self, train_data) -> None:
        super().prepare(train_data)
        if any(self.settings.walk.values()):
            source = self.weighted()
            self.nearness = RandomWalk(source, source, self.settings.walk_power)

    def rank(self, users: Tensor, objective: str) -> Tensor:
        scores = super().rank(users, objective)  # a distribution has no walk
        if weight := self.settings.walk.get(objective):
            scores += weight * self.nearness.scores(users)
        return scores
