r"""
FusedRecommender
################################################
Several scores as one RecBole model: objectives of one trained model, or several trained models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from torch import Tensor, nn

from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.fusion import Fusion, fuse
from recbole_meta.model.objective_recommender import dense_rows
from recbole_meta.settings import Weight, load_properties, read_settings


@dataclass(frozen=True)
class FusedSettings(Fusion):
    weights: dict[str, Weight]  # of the heads; 1 where one is not named
    funnel: tuple[str, ...]  # the heads along the funnel; (): in their own order
    hide_known: bool  # items of train are no candidates, before the scale is taken


class Head(NamedTuple):
    """One of the scores: a trained model, and which of its objectives."""

    model: Any
    objective: str | None = None  # None: a model of RecBole, which has one

    def scores(self, users: Tensor) -> Tensor:
        """Of the whole catalogue, [B, I]."""
        if self.objective is not None:
            return self.model.rank(users, self.objective)
        rows = Interaction({self.model.USER_ID: users})
        return self.model.full_sort_predict(rows).view(len(users), -1)


class FusedRecommender(GeneralRecommender):
    """One ranking of the catalogue out of the rankings of several heads (`fusion`).

    ``heads``: name -> a trained model and its objective; all stand on the dataset of ``config``,
    whose ids they share. It is not trained. ``full_sort_predict`` and ``predict`` are the fused
    score, so RecBole's evaluation, case study and top-k tools work as for any model. With
    ``hide_known`` what the user has in train is no candidate, and its score is -inf.
    """

    type = ModelType.TRADITIONAL
    input_type = InputType.POINTWISE
    settings: FusedSettings

    def __init__(self, config, dataset, heads: Mapping[str, Head], settings=None):
        super().__init__(config, dataset)
        values = load_properties("model", "FusedRecommender") | dict(settings or {})
        self.settings = read_settings(FusedSettings, values, "FusedRecommender")
        self.heads = dict(heads)
        check_fusion(self.settings, tuple(self.heads))
        models = {id(head.model): head.model for head in self.heads.values()}
        self.models = nn.ModuleList(models.values())  # they move, and are saved, with it
        self.order = tuple(list(self.heads).index(name) for name in self.settings.funnel)
        self.known = dataset.inter_matrix(form="csr").astype("float32")  # [U, I], train
        self.fake_loss = nn.Parameter(torch.zeros(1))  # RecBole's trainer asks for a parameter

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Nothing: the heads are trained before."""
        return self.fake_loss.sum()

    def head_scores(self, users: Tensor) -> Tensor:
        """Every head's scores, [K, B, I]; -inf: no candidate."""
        scores = torch.stack([head.scores(users) for head in self.heads.values()])
        hidden = torch.zeros_like(scores[0], dtype=torch.bool)
        if self.settings.hide_known:
            hidden = dense_rows(self.known, users) > 0
        hidden[:, 0] = True  # the padding
        return scores.masked_fill(hidden, -torch.inf)

    def rank(self, users: Tensor, objective: str | None = None) -> Tensor:
        """The fused scores [B, I], whichever objective they are judged by."""
        weights = [self.settings.weights.get(name, 1.0) for name in self.heads]
        return fuse(self.head_scores(users), weights, self.settings, self.order)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The fused scores of the whole catalogue, [B * I]."""
        return self.rank(interaction[self.USER_ID]).reshape(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        """The fused score of each (user, item) row, [B]."""
        scores = self.rank(interaction[self.USER_ID])
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def check_fusion(settings: FusedSettings, heads: tuple[str, ...]) -> None:
    """Refuse weights and funnels that name no head, and methods that cannot be."""
    settings.check("FusedRecommender")
    if not heads:
        raise DataError("FusedRecommender: there are no heads to fuse.")
    for setting in ("weights", "funnel"):
        for name in getattr(settings, setting):
            if name not in heads:
                raise SettingError(
                    f"FusedRecommender: '{setting}' names the objective '{name}', which no head "
                    f"has. {nearest(name, heads)}"
                )
    if not any(settings.weights.get(name, 1.0) for name in heads):
        raise SettingError("FusedRecommender: all 'weights' are 0.")
    if settings.funnel and sorted(settings.funnel) != sorted(heads):
        raise SettingError(
            f"FusedRecommender: 'funnel' must name each head once: {', '.join(heads)}."
        )


def objective_heads(model: Any, objectives: tuple[str, ...]) -> dict[str, Head]:
    """The objectives of one model as heads."""
    return {name: Head(model, name) for name in objectives}
