r"""
Constant
################################################
The floor of ratings and labels: one number for every row.
"""

from dataclasses import dataclass

from torch import Tensor

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State


@dataclass(frozen=True)
class ConstantSettings(MetaSettings):
    constant: float | None  # the prediction; ~: the median of warm ratings, the mean of warm labels


class Constant(MetaRecommender):
    """The same prediction for every user and item; the support is not read."""

    group = "floor"
    feedback = ("rating", "label")
    settings: ConstantSettings

    def prepare(self, train_data) -> None:
        given = self.settings.constant
        self.keep("constant", warm_users(train_data._dataset).middle if given is None else given)

    def adapt(self, support: Examples) -> State:
        return {"shots": support.mask.sum()}

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.constant.repeat(len(x))
