r"""
SingleTask
################################################
The control of every multi-task model: objectives that share nothing, at the same price.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recbole_meta.errors import SettingError, nearest
from recbole_meta.model import row_models
from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.perceptrons import perceptron
from recbole_meta.settings import Over, load_properties

_NEAR = 0.02  # of the budget


@dataclass(frozen=True)
class SingleTaskSettings(MultiTaskSettings):
    match: str  # the architecture whose number of parameters is matched
    match_settings: dict[str, Any]  # its settings over its page
    budget: Literal["total", "share"]  # each has all of its parameters | total / K of them


class SingleTask(MultiTaskRecommender):
    r"""K models of one objective each: own tables, own perceptron.

    .. math:: z_t = s_t(x_t)

    Each has as many parameters as the named architecture, or a K-th of them, within 2 %:
    ``tower_sizes`` say the shape alone, its widths are stretched. Where a K-th is left, so are the
    tables: :math:`\lfloor d / K \rfloor` numbers per field.
    """

    group = "single"
    settings: SingleTaskSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, number = self.settings, len(self.objectives)
        whole = self.matched(config, dataset)
        self.budget = whole if s.budget == "total" else whole / number
        size = s.embedding_size if s.budget == "total" else max(1, s.embedding_size // number)
        self.tables = nn.ModuleDict({n: self.embedder(dataset, size) for n in self.objectives})
        towers = {}
        for name, table in self.tables.items():
            left = self.budget - count(table)
            outputs = self.categories.get(name, 1)
            widths = stretched(table.size, s.tower_sizes, outputs, left)
            towers[name] = perceptron(table.size, widths, outputs)
        self.towers = nn.ModuleDict(towers)
        self._check()

    def matched(self, config: Any, dataset: Any) -> int:
        """The parameters of the architecture, made with the same embeddings and left again."""
        s, kinds = self.settings, {n: c for n, c in row_models().items() if c.group == "published"}
        if s.match not in kinds:
            raise SettingError(f"SingleTask: 'match' is '{s.match}'. {nearest(s.match, kinds)}")
        page = load_properties("model", s.match)
        for name in s.match_settings:
            if name not in page:
                raise SettingError(
                    f"SingleTask: 'match_settings' has '{name}', which {s.match} has not. "
                    f"{nearest(name, page)}"
                )
        same = ("embedding_size", "embedding_std", "user_fields", "item_fields", "product")
        values = page | {name: getattr(s, name) for name in same} | s.match_settings
        with torch.random.fork_rng(devices=[]):
            return count(kinds[s.match](Over(config, values), dataset))

    def _check(self) -> None:
        for name in self.objectives:
            found = count(self.tables[name]) + count(self.towers[name])
            if abs(found - self.budget) > _NEAR * self.budget:
                raise SettingError(
                    f"SingleTask: '{name}' has {found} parameters, {self.settings.match}'s budget "
                    f"is {self.budget:.0f}. Take fewer or other tower_sizes, or a smaller "
                    "embedding_size."
                )

    def inputs(self, users: Tensor, items: Tensor, with_items: bool) -> dict[str, Tensor]:
        names = self.alike if with_items else self.of_users
        return {name: self.tables[name](users, items, with_items) for name in names}

    def logits(self, x: dict[str, Tensor], names) -> dict[str, Tensor]:
        return {name: self.towers[name](x[name]) for name in names}

    def own_modules(self, name: str) -> list[nn.Module]:
        return [self.towers[name], self.tables[name]]


def stretched(inputs: int, shape: tuple[int, ...], outputs: int, left: float) -> list[int]:
    """Widths in about these proportions whose perceptron is nearest to ``left`` parameters."""

    def widths(first: int) -> list[int]:
        return [max(1, round(first * width / shape[0])) for width in shape] if shape else []

    def size(hidden: list[int]) -> int:
        sides = [inputs, *hidden, outputs]
        return sum((a + 1) * b for a, b in pairwise(sides))

    low, high = 1, 2
    while shape and size(widths(high)) < left:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(widths(middle)) < left else (low, middle)
    return min((widths(low), widths(high)), key=lambda found: abs(size(found) - left))


def count(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(each.numel() for each in module.parameters())
