r"""
ShrunkMedian
################################################
The floor that published meta-learners have to beat on ratings: the median of the support and of
three 4s.
"""

from dataclasses import dataclass

import torch

from recbole_meta.data.warm import warm_users
from recbole_meta.episode import Examples
from recbole_meta.model.baseline.support_median import SupportMedian
from recbole_meta.model.meta_recommender import MetaSettings, State, joined
from recbole_meta.settings import Count


@dataclass(frozen=True)
class ShrunkMedianSettings(MetaSettings):
    pseudo_count: Count  # labels that are added to every support
    pseudo_rating: float | None  # what they say; ~: as Constant


class ShrunkMedian(SupportMedian):
    """The median of the support's labels and of ``pseudo_count`` times ``pseudo_rating``."""

    settings: ShrunkMedianSettings

    def prepare(self, train_data) -> None:
        given = self.settings.pseudo_rating
        self.keep("constant", warm_users(train_data._dataset).middle if given is None else given)

    def adapt(self, support: Examples) -> State:
        pseudo = self.constant.repeat(self.settings.pseudo_count)
        label = joined(support.label, pseudo)
        mask = joined(support.mask, torch.ones_like(pseudo))
        return super().adapt(support._replace(label=label, mask=mask))
