r"""A multi-task model of rows: for a user and an item one output per objective.

A row's label is NaN where it is unobserved. An objective that is ``given`` another one has rows
only where that one's label is 1: its probability is one *inside* that space, and of the whole
catalogue it is the product down the chain,

.. math:: P(y_t = 1) = P(y_t = 1 \mid y_s = 1) \, P(y_s = 1), \qquad s = given(t)

A distribution over C categories is a user's: what it says of an item is
:math:`\sum_c p_u(c) q_i(c)`, q the item's own categories in equal parts.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from recbole_meta.data.objectives import Objective
from recbole_meta.data.row_loader import category_shares
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.settings import Count, read_settings

TYPES = ("binary", "regression", "distribution")
_ROWS_AT_ONCE = 2**18  # of a ranking; bounds its memory


@dataclass(frozen=True)
class RowSettings:
    """Settings of every multi-task model of rows; a model's own dataclass extends it."""

    epochs: Count  # training epochs; 0: a closed form, fitted by ``prepare``


class RowRecommender(GeneralRecommender):
    """Base of the multi-task models of rows; a subclass defines ``outputs``."""

    input_type = InputType.POINTWISE
    group: ClassVar[Literal["floor", "rule", "single", "published", "ours"]] = "published"
    settings: RowSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        kind = typing.get_type_hints(type(self))["settings"]
        values = {field.name: config[field.name] for field in fields(kind)}
        self.settings = read_settings(kind, values, type(self).__name__)
        self.objectives = read_row_objectives(config["objectives"])
        self.categories: dict[str, int] = dict(config["categories"] or {})
        for name, objective in self.objectives.items():
            if objective.type == "distribution":
                number = self.categories.get(name)
                table = item_categories(dataset, objective.label, number, name)
                self.register_buffer(f"categories_{name}", table)

    def prepare(self, train_data: Any) -> None:
        """Fit what has a closed form, once, before the first epoch."""

    def outputs(
        self, users: Tensor, items: Tensor, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Of each of these objectives (~: all), per row: a logit [B], a value [B] or logits of
        categories [B, C].
        """
        raise NotImplementedError(f"{type(self).__name__} must define outputs(users, items).")

    def expected(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """The same as a probability inside its space [B], a value [B] or a distribution [B, C]."""
        return self.inside(self.outputs(users, items))

    def inside(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ``expected`` says, of these outputs."""
        means = {"binary": torch.sigmoid, "regression": torch.Tensor.clone,
                 "distribution": lambda logits: logits.softmax(-1)}  # fmt: skip
        return {name: means[self.objectives[name].type](out) for name, out in outputs.items()}

    def whole(self, outputs: Mapping[str, Tensor], objective: str) -> Tensor:
        """Of a binary objective: the probability in the space of all rows, [B]."""
        inside = self.inside({name: outputs[name] for name in self.chain(objective)})
        return torch.stack(list(inside.values())).prod(0)

    def chain(self, objective: str) -> list[str]:
        """The objectives that this one is given, the outermost first, and itself last."""
        found = [objective]
        while (given := self.objectives[found[0]].given) is not None:
            found.insert(0, given)
        return found

    def labels(self, interaction: Interaction) -> dict[str, Tensor]:
        """Per objective of each row, NaN where unobserved or outside its space."""
        found = {name: interaction[name].to(self.device) for name in self.objectives}
        for name, objective in self.objectives.items():
            for given in self.chain(name)[:-1]:
                met = found[given] == 1
                shaped = met.unsqueeze(-1) if objective.type == "distribution" else met
                found[name] = torch.where(shaped, found[name], torch.nan)
        return found

    def whole_labels(self, interaction: Interaction) -> dict[str, Tensor]:
        """The same in the space of all rows: what is outside its space has not happened, 0."""
        found: dict[str, Tensor] = {}
        inside = self.labels(interaction)
        for name in sorted(self.objectives, key=lambda name: len(self.chain(name))):
            given = self.objectives[name].given
            found[name] = inside[name]
            if given is not None and self.objectives[name].type == "binary":
                found[name] = torch.where(found[given] == 0, found[given], inside[name])
        return found

    def row_losses(self, interaction: Interaction) -> dict[str, tuple[Tensor, Tensor]]:
        """Per objective the losses of rows [B], and which rows have one [B]; 0 where they have
        none.
        """
        outputs = self.outputs(interaction[self.USER_ID], interaction[self.ITEM_ID])
        return {
            name: row_loss(self.objectives[name].type, outputs[name], label)
            for name, label in self.labels(interaction).items()
        }

    def losses(self, interaction: Interaction) -> dict[str, Tensor]:
        """Per objective the mean over the rows that have a label; 0 where there are none."""
        found = self.row_losses(interaction)
        return {
            name: loss.sum() / there.sum().clamp(min=1) for name, (loss, there) in found.items()
        }

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        losses = self.losses(interaction)
        return sum(self.objectives[name].weight * loss for name, loss in losses.items())

    @torch.no_grad()
    def rank(self, users: Tensor, objective: str) -> Tensor:
        """Scores [B, I] of the catalogue for these users, by RecBole's ids."""
        users = users.to(self.device)
        if self.objectives[objective].type == "distribution":
            said = self.outputs(users, torch.zeros_like(users), [objective])
            of_user = self.inside(said)[objective]  # [B, C]
            return of_user @ self.get_buffer(f"categories_{objective}").T
        return self.rank_all(users, [objective])[objective]

    @torch.no_grad()
    def rank_all(self, users: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The same of several objectives, no distribution; a user's items are scored once."""
        users = users.to(self.device)
        each = max(1, _ROWS_AT_ONCE // self.n_items)
        parts = [self._rank(part, names) for part in users.split(each)]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def _rank(self, users: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        items = torch.arange(self.n_items, device=users.device)
        rows = users.repeat_interleave(self.n_items), items.repeat(len(users))
        chains = {each for name in names for each in self.chain(name)}
        outputs = self.outputs(*rows, [name for name in self.objectives if name in chains])
        found = {}
        for name in names:
            of_rows = self.objectives[name].type == "regression"
            scores = outputs[name] if of_rows else self.whole(outputs, name)
            found[name] = scores.view(len(users), -1)
        return found

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The main objective's scores of the whole catalogue, [B * I]."""
        return self.rank(interaction[self.USER_ID], next(iter(self.objectives))).reshape(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        """The main objective's score of each (user, item) row, [B]."""
        scores = self.rank(interaction[self.USER_ID], next(iter(self.objectives)))
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def own_modules(self, name: str) -> list[nn.Module]:
        """Modules that no other objective's loss reaches."""
        return []

    def objective_parameters(self, name: str) -> list[nn.Parameter]:
        """Parameters that no other objective's loss reaches."""
        return [each for module in self.own_modules(name) for each in module.parameters()]

    def shared_parameters(self) -> list[nn.Parameter]:
        """All others."""
        own = {id(each) for name in self.objectives for each in self.objective_parameters(name)}
        return [each for each in self.parameters() if id(each) not in own]


def row_loss(kind: str, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy or squared error per row [B], and where the label is observed [B]."""
    there = ~label.isnan() if label.dim() == 1 else ~label.isnan().any(-1)
    known = torch.where(there if label.dim() == 1 else there[:, None], label, 0.0)
    if kind == "binary":
        loss = binary_cross_entropy_with_logits(output, known.to(output.dtype), reduction="none")
    elif kind == "regression":
        loss = (output - known).square()
    else:
        loss = cross_entropy(output, known.to(output.dtype), reduction="none")
    return torch.where(there, loss, 0.0), there


def read_row_objectives(entries: Mapping[str, Any]) -> dict[str, Objective]:
    """Checked: types, and ``given`` that names another binary objective without a circle."""
    found = {
        name: entry if isinstance(entry, Objective) else Objective(**entry)
        for name, entry in entries.items()
    }
    for name, objective in found.items():
        if objective.type not in TYPES:
            said = nearest(str(objective.type), TYPES)
            raise SettingError(f"Objective '{name}': 'type' is {objective.type!r}. {said}")
        passed, given = [name], objective.given
        while given is not None:
            if given not in found:
                raise SettingError(
                    f"Objective '{passed[-1]}' is given '{given}', which there is not. "
                    f"{nearest(given, [each for each in found if each != passed[-1]])}"
                )
            if given in passed:
                raise SettingError(f"Objective '{name}': 'given' leads back to '{given}'.")
            if found[given].type != "binary":
                raise SettingError(
                    f"Objective '{passed[-1]}' is given '{given}', whose type is "
                    f"{found[given].type}: only a binary one has a space."
                )
            passed, given = [*passed, given], found[given].given
    return found


def item_categories(dataset: Dataset, field: str, number: int | None, name: str) -> Tensor:
    """The share of every category in every item, q [I, C]; category c has RecBole's id c + 1."""
    table = dataset.item_feat
    if table is None or field not in table.columns:
        known = [] if table is None else list(table.columns)
        raise DataError(
            f"Objective '{name}': its label is the item field '{field}', which is not loaded. "
            f"{nearest(field, known)}"
        )
    if number != dataset.num(field) - 1:
        raise DataError(
            f"Objective '{name}': 'categories' says {number}, the field '{field}' of the items has "
            f"{dataset.num(field) - 1}."
        )
    return category_shares(dataset, field)
