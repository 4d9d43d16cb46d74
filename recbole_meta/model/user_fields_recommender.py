"""Base of learners that may read features of their users as indicators around their mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_meta.data.facts import Facts, Read, read_facts
from recbole_meta.data.features import Field, indicators
from recbole_meta.data.warm import WarmUsers
from recbole_meta.errors import DataError
from recbole_meta.model.meta_recommender import MetaRecommender


class UserFieldsRecommender(MetaRecommender):
    """A user is f [D]: his 0/1 of each category (shares of a set) and his numbers, each less its
    mean over the warm users who say it, 0 where he does not. Without a field he is his id.
    """

    facts: Facts | None = None

    def read_users(self, dataset, setting: str) -> int:
        """Read the fields, D, as a setting asks; where there are none, it is named."""
        self.facts = read_facts(dataset, Read(user_fields=True))
        if not self.task_fields:
            raise DataError(
                f"{type(self).__name__}: {setting} reads features, but the data set has no "
                "feature of users. Name some in 'user_features' of its page, or read none."
            )
        for place, field in enumerate(self.task_fields):
            self.register_buffer(f"values_{place}", field.values, persistent=False)
        nobody, _ = indicators(self.task_fields, [each.values[0] for each in self.task_fields])
        return nobody.shape[-1]

    def fit_users(self, warm: WarmUsers) -> Tensor:
        """Fit the means, and say f of the warm users, [U, D]."""
        ids = torch.from_numpy(warm.ids)
        found, known = indicators(self.task_fields, [each.values[ids] for each in self.task_fields])
        self.keep("field_mean", (found * known).sum(0) / known.sum(0).clamp(min=1))
        return self.encode_tasks(ids.to(self.device))

    @property
    def task_fields(self) -> list[Field]:
        return [] if self.facts is None else self.facts.user_fields

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        if not self.task_fields:
            return tasks
        places = range(len(self.task_fields))
        return self.encode_values([self.get_buffer(f"values_{n}")[tasks] for n in places])

    def encode_values(self, values: Sequence[Tensor]) -> Tensor:
        found, known = indicators(self.task_fields, values)
        return (found - self.field_mean) * known  # [.., D], 0 where nothing is said
