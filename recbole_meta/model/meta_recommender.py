r"""A meta-learner is two functions of a task, ``adapt(support) -> state`` and ``score(state, x)``.

This base lifts them to T tasks with ``torch.func.vmap``, so that a learner is an ordinary RecBole
model: full ranking and prediction follow. Adapting never changes the model; an empty support gives
the prior.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.func import vmap

from recbole_meta.episode import Examples
from recbole_meta.errors import DataError
from recbole_meta.settings import Count, Size, read_settings

State = dict[str, Tensor]


@dataclass(frozen=True)
class MetaSettings:
    """Settings of every learner; a learner's own dataclass extends it."""

    epochs: Count  # training epochs; 0: a closed form, fitted by ``prepare``
    chunk_size: Size | None  # tasks that are lifted at once, bounds the memory; ~: all


class MetaRecommender(GeneralRecommender):
    """Base of the learners, rules and floors; a subclass defines ``adapt`` and ``score``."""

    input_type = InputType.POINTWISE
    group: ClassVar[Literal["floor", "fold-in", "published", "ours"]] = "ours"
    reads: ClassVar[str] = "ids"  # ids | +ratings | +user fields | +item fields | +times
    feedback: ClassVar[tuple[str, ...]] = ("implicit",)  # what can be judged with it
    settings: MetaSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        kind = typing.get_type_hints(type(self))["settings"]
        values = {field.name: config[field.name] for field in fields(kind)}
        self.settings = read_settings(kind, values, type(self).__name__)
        self.register_buffer("all_items", torch.arange(self.n_items), persistent=False)
        self.support: Examples | None = None

    # One task, no batch axis: what a learner defines.

    def prepare(self, train_data) -> None:
        """Fit what has a closed form, once, before the first epoch, into buffers."""

    def adapt(self, support: Examples) -> State:
        """What is known of a task from its support [S]; all-zero mask: the prior."""
        raise NotImplementedError(f"{type(self).__name__} must define adapt(support).")

    def score(self, state: State, x: Tensor) -> Tensor:
        """Scores [N] of the items x [N] for a task."""
        raise NotImplementedError(f"{type(self).__name__} must define score(state, x).")

    # T tasks: what RecBole calls; no learner overrides these.

    def observe(self, support: Examples) -> None:
        """Set every user's support, [n_users, S] by RecBole's user id."""
        self.support = Examples(*(field.to(self.device) for field in support))

    def adapt_tasks(self, users: Tensor) -> State:
        """The states of these users [T], each entry with a leading axis T."""
        if self.support is None:
            raise DataError(f"{type(self).__name__} has no support yet: call observe(support).")
        return self._lift(self.adapt, (0,))(self.support.of(users))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the whole catalogue for the users of the interaction, [T * n_items]."""
        states = self.adapt_tasks(interaction[self.USER_ID])
        scores = self._lift(self.score, (0, None))(states, self.all_items)  # [T, I]
        return scores.reshape(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        """The score of each (user, item) row, [B]."""
        users, task = interaction[self.USER_ID].unique(return_inverse=True)
        states = {name: value[task] for name, value in self.adapt_tasks(users).items()}  # [B, ..]
        items = interaction[self.ITEM_ID].unsqueeze(-1)  # [B, 1]
        return self._lift(self.score, (0, 0))(states, items).squeeze(-1)

    def _lift(self, function: Callable, in_dims: tuple) -> Callable:
        return vmap(function, in_dims=in_dims, chunk_size=self.settings.chunk_size)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """A model that was not prepared takes what ``prepare`` fits from the checkpoint."""
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if "." not in name and not hasattr(self, name):
                self.register_buffer(name, torch.empty_like(value, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def keep(self, name: str, value) -> None:
        """Register an array as a buffer in the model's precision and place."""
        value = torch.as_tensor(value)
        if value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        self.register_buffer(name, value.to(self.device))
