r"""
Pop
################################################
The floor of popularity, counted exactly. RecBole's own Pop counts an item once per batch.
"""

from torch import Tensor

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, State


class Pop(MetaRecommender):
    """The share of warm users who have the item; the support is not read."""

    group = "floor"

    def prepare(self, train_data) -> None:
        self.keep("pop", warm_users(train_data._dataset).pop)

    def adapt(self, support: Examples) -> State:
        return {"shots": support.mask.sum()}

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.pop[x]
