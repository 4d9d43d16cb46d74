r"""A meta-learner is two functions of a task, ``adapt(support) -> state`` and ``score(state, x)``.

This base lifts them to T tasks with ``torch.func.vmap``, so that a learner is an ordinary RecBole
model: training on episodes, full ranking and prediction follow. Adapting never changes the model;
an empty support gives the prior.

A task is a user, or an item where items are cold (``side``). What stands for items here, the other
side, are then users: a support holds raters, and ``score`` says who would take the item.
"""

import typing
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import pad

from recbole_meta.data.facts import task_side
from recbole_meta.data.features import Field, read_features
from recbole_meta.episode import Examples, buckets
from recbole_meta.errors import DataError
from recbole_meta.settings import Count, Positive, Size, Weight, read_settings

State = dict[str, Tensor]


@dataclass(frozen=True)
class MetaSettings:
    """Settings of every learner; a learner's own dataclass extends it."""

    epochs: Count  # training epochs; 0: a closed form, fitted by ``prepare``
    chunk_size: Size | None  # tasks that are lifted at once, bounds what judging needs; ~: all

    @property
    def draws_at_random(self) -> bool:
        """Whether ``prepare`` does, under order random, so that a closed form has a seed."""
        return False


@dataclass(frozen=True)
class TrainedSettings(MetaSettings):
    """Settings of every learner that is trained by epochs."""

    stopping_step: Count  # validations without a better one before training stops
    train_batch_size: Size  # tasks per outer step
    learning_rate: Positive  # of the outer loop
    weight_decay: Weight  # L2 on all parameters, outer loop
    schedule: Literal["constant", "cosine"]  # of the learning rate, over ``epochs``


def joined(left: Tensor, right: Tensor) -> Tensor:
    """[.., L + R], bit for bit as torch.cat, which fixes all sizes where vmap is traced."""
    return pad(left, (0, right.shape[-1])) + pad(right, (left.shape[-1], 0))


class MetaRecommender(GeneralRecommender):
    """Base of the learners, rules and floors; a subclass defines ``adapt`` and ``score``."""

    input_type = InputType.POINTWISE
    group: ClassVar[Literal["floor", "fold-in", "published", "ours"]] = "ours"
    reads: ClassVar[str] = "ids"  # ids | +ratings | +user fields | +item fields | +times
    feedback: ClassVar[tuple[str, ...]] = ("implicit",)  # what can be judged with it
    sides: ClassVar[tuple[str, ...]] = ("user", "item")  # who may be a task
    reads_labels: ClassVar[bool] = False  # of a support: a ranking's says dislikes, too
    reads_ratings = False  # of a ranking's support, in the place of labels; by its settings
    newcomers: ClassVar[tuple[str, ...]] = ("user", "item")  # who may be served by a saved one
    settings: MetaSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        kind = typing.get_type_hints(type(self))["settings"]
        values = {field.name: config[field.name] for field in fields(kind)}
        self.settings = read_settings(kind, values, type(self).__name__)
        self.side = task_side(dataset)
        ids = (self.USER_ID, self.ITEM_ID)
        self.TASK_ID, self.OTHER_ID = ids if self.side == "user" else ids[::-1]
        self.n_tasks, self.n_others = dataset.num(self.TASK_ID), dataset.num(self.OTHER_ID)
        self.register_buffer("all_others", torch.arange(self.n_others), persistent=False)
        self.support: Examples | None = None

    @classmethod
    def reads_with(cls, settings: MetaSettings, feedback: str, side: str = "user") -> str:
        """What it reads with these settings, as it stands in a table."""
        return cls.reads

    # One task, no batch axis: what a learner defines.

    def prepare(self, train_data) -> None:
        """Fit what has a closed form, once, before the first epoch, into buffers."""

    def adapt(self, support: Examples) -> State:
        """What is known of a task from its support [S]; all-zero mask: the prior."""
        raise NotImplementedError(f"{type(self).__name__} must define adapt(support).")

    def score(self, state: State, x: Tensor) -> Tensor:
        """Scores [N] of the items (users) x [N] for a task."""
        raise NotImplementedError(f"{type(self).__name__} must define score(state, x).")

    def loss(self, state: State, examples: Examples) -> Tensor:
        """What a trained learner minimises, of one task's query."""
        raise NotImplementedError(f"{type(self).__name__} is not trained: it has no loss.")

    # What it is told of items, tasks and supports, where ids are not all.

    def encode(self, items: Tensor) -> Tensor:
        """What ``adapt`` and ``score`` get of items [..]: by default their ids."""
        return items

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        """What ``adapt`` gets of the tasks themselves [T]: by default their ids."""
        return tasks

    @property
    def task_fields(self) -> list[Field]:
        """What is read of a newcomer: by default nothing."""
        return []

    def encode_values(self, values: Sequence[Tensor]) -> Tensor:
        """What ``adapt`` gets of newcomers [..] with these values, one of each of `task_fields`."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_values(values).")

    def encode_newcomer(self, features: Mapping[str, Any]) -> Tensor:
        """What ``adapt`` gets of a task that has no id, from its features."""
        if not self.task_fields:
            return self._refuse(self.side, features)
        return self.encode_values(read_features(self.task_fields, features, self.side))

    def encode_new_others(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """What ``score`` gets of N items that have no id: by default there are none such."""
        return self._refuse("item" if self.side == "user" else "user", features)

    def _refuse(self, side: str, features: Sized) -> Tensor:
        if features:
            raise DataError(f"{type(self).__name__} reads no features of {side}s.")
        return self.all_others[0]

    def complete(self, support: Examples) -> Examples:
        """The support [T, S] by ids with what a learner adds to it, negatives for example."""
        return support

    def output(self, scores: Tensor) -> Tensor:
        """What is judged of the scores: by default they themselves."""
        return scores

    def of_all(self, scores: Tensor, x: Tensor) -> Tensor:
        """Those of x [N] of the scores [I] of all by id; without a copy where x is all of them."""
        return scores if x is self.all_others else scores[x]

    # T tasks: what RecBole calls; no learner overrides these.

    def observe(self, support: Examples) -> None:
        """Set every task's support, [n_tasks, S] by RecBole's id of the user (item)."""
        self.support = self.complete(self._placed(support))

    def adapt_tasks(self, tasks: Tensor) -> State:
        """The states of these tasks [T] by id, each entry with a leading axis T."""
        if self.support is None:
            raise DataError(f"{type(self).__name__} has no support yet: call observe(support).")
        support = self.support.of(tasks)
        return self._lift(self.adapt, (0,))(self._encoded(support.cut(support.width())))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the whole catalogue for the users of the interaction, [B * n_items]."""
        users = interaction[self.USER_ID]
        if self.side == "user":
            tasks, others = users, self.all_others
        else:
            tasks, others = torch.arange(self.n_tasks, device=users.device), users
        states = self.adapt_tasks(tasks)
        scores = self._lift(self.score, (0, None))(states, self.encode(others))  # [T, N]
        return self.output(scores if self.side == "user" else scores.T).reshape(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        """The score of each (user, item) row, [B]."""
        tasks, task = interaction[self.TASK_ID].unique(return_inverse=True)
        place = torch.empty_like(task)  # a row's place among its task's rows
        order, count = task.argsort(stable=True), task.bincount()
        place[order] = torch.arange(len(task), device=task.device) - (
            count.cumsum(0) - count
        ).repeat_interleave(count)
        others = interaction[self.OTHER_ID].new_zeros(len(tasks), int(count.max()))
        others[task, place] = interaction[self.OTHER_ID]  # [T, N]
        states = self.adapt_tasks(tasks)
        return self.output(self._lift(self.score, (0, 0))(states, self.encode(others))[task, place])

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The mean over episodes of the loss of the query after adapting to the support."""
        support = self.complete(self._examples(interaction, "support"))
        return self.episode_loss(support, *self.query(interaction))

    def episode_loss(self, support: Examples, query: Examples, shared: bool = False) -> Tensor:
        """The same of T tasks by ids; tasks whose supports are as long are lifted together.

        ``shared``: the query's x [I, ..] is of all tasks, and encoded.
        """
        total = 0
        for tasks in buckets(support.mask):
            part = support.of(tasks)
            part = self._encoded(part.cut(part.width()))
            asked = Examples(query.x if shared else self.encode(query.x[tasks]),
                             query.label[tasks], query.mask[tasks], part.task)  # fmt: skip
            total = total + self.lifted_loss(part, asked, shared).sum()
        return total / len(support.mask)

    def lifted_loss(self, support: Examples, query: Examples, shared: bool = False) -> Tensor:
        """The query's loss of each task after adapting, [T], of encoded examples."""
        dims = Examples(None if shared else 0, 0, 0, 0)
        return self._lift(self._query_loss, (0, dims))(support, query)

    def query(self, interaction: Interaction) -> tuple[Examples, bool]:
        """The query [T, Q] by ids, False; or of the whole catalogue, x encoded [I, ..], True."""
        return self._examples(interaction, "query"), False

    def _query_loss(self, support: Examples, query: Examples) -> Tensor:
        return self.loss(self.adapt(support), query)

    def _examples(self, interaction: Interaction, side: str) -> Examples:
        fields = (interaction[f"{side}_{name}"] for name in ("item", "label", "mask"))
        return self._placed(Examples(*fields, interaction["task"]))

    def _placed(self, examples: Examples) -> Examples:
        """In the model's precision and place."""
        kind = torch.get_default_dtype()
        return Examples(
            *(f.to(self.device, kind if f.is_floating_point() else f.dtype) for f in examples)
        )

    def _encoded(self, examples: Examples) -> Examples:
        return examples._replace(x=self.encode(examples.x), task=self.encode_tasks(examples.task))

    def _lift(self, function: Callable, in_dims: tuple) -> Callable:
        return vmap(function, in_dims=in_dims, chunk_size=self.settings.chunk_size)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """A model that was not prepared takes what ``prepare`` fits from the checkpoint."""
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and "." not in name and not hasattr(self, name):
                self.register_buffer(name, torch.empty_like(value, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def keep(self, name: str, value) -> None:
        """Register an array as a buffer in the model's precision and place."""
        value = torch.as_tensor(value)
        if value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        self.register_buffer(name, value.to(self.device))
