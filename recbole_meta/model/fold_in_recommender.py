r"""Fold-in rules: item-item weights from warm users, summed over a newcomer's support.

.. math:: score = \sum_{s \in support} W_{s \cdot} + b \cdot base, \qquad base \in \{0, p, m\}

p: share of warm users with the item (Pop); m: the same in the query's position (QueryPop). An empty
support ranks by the base, or by Pop where there is none.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.meta_recommender import MetaRecommender, MetaSettings, State
from recbole_meta.settings import Weight


@dataclass(frozen=True)
class FoldInSettings(MetaSettings):
    base: Literal["none", "pop", "query_pop"]  # what is added to the rule
    base_weight: Weight  # b, unused without a base


class FoldInRecommender(MetaRecommender):
    """Base of the rules; a rule defines ``weights``."""

    group = "fold-in"
    settings: FoldInSettings

    def weights(self, warm: WarmUsers) -> np.ndarray:
        """W [I, I]: row s is what an item s of the support says of every item."""
        raise NotImplementedError(f"{type(self).__name__} must define weights(warm).")

    def prepare(self, train_data) -> None:
        warm = warm_users(train_data._dataset)
        base = {"none": warm.pop, "pop": warm.pop, "query_pop": warm.query_pop}[self.settings.base]
        self.keep("weight", self.weights(warm))
        self.keep("base", base)

    def adapt(self, support: Examples) -> State:
        rule = torch.einsum("s,si->i", support.mask, self.weight[support.x])  # [I]
        alone = float(self.settings.base == "none")
        empty = (support.mask.sum() == 0).to(rule.dtype)
        weight = alone * empty + (1 - alone) * self.settings.base_weight
        return {"rule": rule, "base_weight": weight}

    def score(self, state: State, x: Tensor) -> Tensor:
        return state["rule"][x] + state["base_weight"] * self.base[x]
