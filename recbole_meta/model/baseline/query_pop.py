r"""
QueryPop
################################################
The floor of popularity at the place where it is asked: counts of warm users' rows in the query's
position.
"""

from torch import Tensor

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, State


class QueryPop(MetaRecommender):
    """The share of warm users with the item in the query's position; the support is not read."""

    group = "floor"

    def prepare(self, train_data) -> None:
        self.keep("pop", warm_users(train_data._dataset).query_pop)

    def adapt(self, support: Examples) -> State:
        return {"shots": support.mask.sum()}

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.pop[x]
