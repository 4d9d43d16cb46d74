r"""
SupportMean
################################################
The floor of ratings and labels that knows the user: what he said on average.
"""

from torch import Tensor

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, State


class SupportMean(MetaRecommender):
    """The mean of the support's labels for every item; an empty support gives the Constant."""

    group = "floor"
    reads = "+ratings"
    feedback = ("rating", "label")
    reads_labels = True

    def prepare(self, train_data) -> None:
        self.keep("constant", warm_users(train_data._dataset).middle)

    def adapt(self, support: Examples) -> State:
        count = support.mask.sum()
        mean = (support.label * support.mask).sum() / count.clamp(min=1)
        return {"level": mean.where(count > 0, self.constant)}

    def score(self, state: State, x: Tensor) -> Tensor:
        return state["level"].repeat(len(x))
