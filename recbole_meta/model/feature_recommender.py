r"""Trained learners: embeddings of ids and fields, losses, negatives, settings of the optimiser.

Embeddings are looked up before a task adapts, and learn through the outer loop only.

Where items are tasks their scores are compared across tasks, so the loss must see how many take
each: what is drawn of an item's query is weighted by what it stands for, which leaves the loss over
all users right in expectation (Horvitz and Thompson, JASA 1952). A user's items are compared among
themselves, and nothing is weighted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_meta.data.facts import Read, read_facts
from recbole_meta.data.features import Field, FieldEmbedding, read_features
from recbole_meta.data.negatives import among_all, draw_outside, sample_outside, with_negatives
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, SettingError
from recbole_meta.inner_loop import LOSSES, Loss
from recbole_meta.model.meta_recommender import MetaRecommender, State, TrainedSettings
from recbole_meta.settings import Count, Positive, Size

_ALLOWED = {"implicit": ("softmax", "bce", "mse"), "rating": ("mae", "mse"), "label": ("bce",)}
_ACROSS_TASKS = {**_ALLOWED, "implicit": ("bce", "mse")}  # where a user's scores are of many tasks


@dataclass(frozen=True)
class LearnerSettings(TrainedSettings):
    loss: Literal["mse", "mae", "bce", "softmax"] | None  # ~: by what is judged: softmax, mae, bce
    support_negatives: Count  # per positive of a ranking's support
    query_rows: Size | None  # rows drawn of an episode's query; ~: all
    query_negatives: Size | None  # per positive of a ranking's query; ~: the whole catalogue
    embedding_size: Size  # d, of each field
    embedding_std: Positive  # deviation of the embeddings' start
    item_id: bool  # whether the item's id is a field, where users are tasks
    user_id: bool  # whether the user's id is a field, where items are tasks
    item_fields: bool  # whether the data set's item features are fields
    user_fields: bool  # whether the data set's user features are fields


class FeatureRecommender(MetaRecommender):
    """Base of the trained learners; a learner defines ``adapt`` and ``score`` of vectors x [N, D].

    Tasks have no id of their own: a newcomer's is never met in training.
    """

    feedback = ("implicit", "rating", "label")
    reads_labels = True
    usual_loss: ClassVar[dict[str, str]] = {"implicit": "softmax", "rating": "mae", "label": "bce"}
    settings: LearnerSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        read = Read(*(getattr(self.settings, name) for name in Read._fields))
        self.facts = facts = read_facts(dataset, read)
        self.judged = facts.judged
        usual = self.usual_loss if self.side == "user" else self.usual_loss | {"implicit": "bce"}
        self.loss_function = self.named_loss("loss", usual)
        self.register_buffer("pool", facts.pool)
        mean = torch.tensor(facts.label_mean, dtype=torch.get_default_dtype())
        self.register_buffer("label_mean", mean)
        size, std = self.settings.embedding_size, self.settings.embedding_std
        of_users = self.side == "user"
        self.item_embedding = FieldEmbedding(facts.item_fields, size, std, keep=of_users)
        self.user_embedding = FieldEmbedding(facts.user_fields, size, std, keep=not of_users)
        self._check_fields()

    @property
    def task_embedding(self) -> FieldEmbedding:
        """Of the tasks: users, or items where they are cold."""
        return self.user_embedding if self.side == "user" else self.item_embedding

    @property
    def other_embedding(self) -> FieldEmbedding:
        """Of what a task's support holds and what is scored."""
        return self.item_embedding if self.side == "user" else self.user_embedding

    @property
    def task_fields(self) -> list[Field]:
        return self.facts.user_fields if self.side == "user" else self.facts.item_fields

    @property
    def other_fields(self) -> list[Field]:
        """What is known of a support's entries."""
        return self.facts.item_fields if self.side == "user" else self.facts.user_fields

    def _check_fields(self) -> None:
        """Refuse settings that name fields where there are none."""
        s, fields = self.settings, {"item": self.item_embedding, "user": self.user_embedding}
        ids = {"item": s.item_id and self.side == "user", "user": s.user_id and self.side == "item"}
        for side, wanted in (("item", s.item_fields), ("user", s.user_fields)):
            if wanted and len(fields[side].kinds) == ids[side]:
                raise DataError(
                    f"{type(self).__name__}: '{side}_fields' is on, but the data set has no "
                    f"feature of {side}s. Set it to false, or name some in "
                    f"'{side}_features' of the data set's page."
                )
        other = "item" if self.side == "user" else "user"
        if not fields[other].size:
            raise SettingError(
                f"{type(self).__name__}: neither '{other}_id' nor '{other}_fields' is on, so all "
                f"{other}s are the same."
            )

    def named_loss(self, setting: str, usual: Mapping[str, str]) -> Loss:
        """The loss that a setting names, or the usual one of what is judged."""
        allowed = (_ALLOWED if self.side == "user" else _ACROSS_TASKS)[self.judged]
        name = getattr(self.settings, setting) or usual[self.judged]
        if name not in allowed:
            raise SettingError(
                f"{type(self).__name__}: '{setting}' is {name}; where '{self.judged}' feedback is "
                f"judged and a task is of one {self.side} it may be {' | '.join(allowed)}."
            )
        return LOSSES[name]

    @classmethod
    def reads_with(cls, settings: LearnerSettings, feedback: str, side: str = "user") -> str:
        parts = ["ids"] if (settings.item_id if side == "user" else settings.user_id) else []
        parts += ["+ratings"] if feedback in ("rating", "label") else []
        parts += ["+user fields"] if settings.user_fields else []
        parts += ["+item fields"] if settings.item_fields else []
        return " ".join(parts)

    def encode(self, items: Tensor) -> Tensor:
        return self.other_embedding(items)

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        return self.task_embedding(tasks)

    def encode_values(self, values: Sequence[Tensor]) -> Tensor:
        return self.task_embedding.of(values)

    def encode_newcomer(self, features: Mapping[str, Any]) -> Tensor:
        found = super().encode_newcomer(features)
        return found if self.task_fields else self.task_embedding(found)  # of size 0

    def encode_new_others(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """Their ids are unknown; with no fields but the id they would all be the same."""
        id_field, fields = self.OTHER_ID, self.other_fields
        other = "item" if self.side == "user" else "user"
        if [field.name for field in fields] == [id_field]:
            return self._refuse(other, features)
        read = [read_features(fields, each, other, id_field) for each in features]
        return torch.stack([self.other_embedding.of(values) for values in read])

    def liked(self, support: Examples) -> Tensor:
        """The mean of the support's rows that are liked [D], ratings above the mean; 0: none is."""
        above = self.label_mean if self.judged == "rating" else 0.5
        liked = support.mask * (support.label > above)  # [S]
        return liked @ support.x / liked.sum().clamp(min=1)

    def complete(self, support: Examples) -> Examples:
        each = self.settings.support_negatives
        if self.judged != "implicit" or each == 0:
            return support
        return with_negatives(support, each, self.pool, self.n_others)

    def loss(self, state: State, examples: Examples) -> Tensor:
        return self.loss_function(self.score(state, examples.x), examples.label, examples.mask)

    def query(self, interaction: Interaction) -> tuple[Examples, bool]:
        query, shared = super().query(interaction)
        if self.judged != "implicit":
            return query, shared
        if self.side == "item":
            query = query._replace(mask=query.mask * self._rows_per_drawn(interaction, query))
        if self.settings.query_negatives is None:
            names = ("barred_item", "undrawn_item")  # neither a candidate nor a negative
            hidden = torch.cat([interaction[name].to(self.device) for name in names], dim=1)
            pool = torch.zeros(self.n_others, dtype=torch.bool, device=self.device)
            pool[self.pool] = True
            return among_all(query, hidden, pool, self.encode(self.all_others)), True
        return self._with_drawn(interaction, query, self.settings.query_negatives), False

    def _rows_per_drawn(self, interaction: Interaction, query: Examples) -> Tensor:
        """[T, 1] how many rows of a task's query a drawn one stands for."""
        undrawn = (interaction["undrawn_item"] > 0).sum(1, keepdim=True).to(self.device)
        return 1 + undrawn / (query.mask > 0).sum(1, keepdim=True).clamp(min=1)

    def _with_drawn(self, interaction: Interaction, query: Examples, each: int) -> Examples:
        """The query and negatives, who have nothing of the task's history.

        Of a user ``each`` per positive; of an item as many as of the item with the most, and one
        stands for several.
        """
        known = interaction["history_item"].to(self.device)  # [T, L]
        number = each * query.width()
        if self.side == "user":
            key = torch.randint(2**62, (len(known),)).to(self.device)
            drawn, found = draw_outside(key, known, number, self.pool, self.n_others)
            place = torch.arange(drawn.shape[1], device=self.device)
            found = found & (place < each * query.mask.sum(1, keepdim=True))
            mask = found.to(query.mask.dtype)
        else:
            drawn, found, free = sample_outside(known, number, self.pool, self.n_others)
            mask = found.to(query.mask.dtype)
            mask = mask * free / mask.sum(1, keepdim=True).clamp(min=1)
        return Examples(
            torch.cat([query.x, drawn], dim=1),
            torch.cat([query.label, torch.zeros_like(mask)], dim=1),
            torch.cat([query.mask, mask], dim=1),
            query.task,
        )

    def output(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores) if self.judged == "label" else scores
