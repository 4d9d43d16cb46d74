r"""
AITM
################################################
Reference:
    Dongbo Xi et al. "Modeling the Sequential Dependence among Audience Multi-step Conversions with
    Multi-task Learning in Targeted Display Advertising." in KDD 2021.
    https://arxiv.org/abs/2105.08489
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from recbole_meta.data.objectives import Objective
from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.perceptrons import Experts, together
from recbole_meta.model.row_recommender import row_loss
from recbole_meta.settings import Size, Weight


@dataclass(frozen=True)
class AITMSettings(MultiTaskSettings):
    bottom_sizes: tuple[Size, ...]  # widths of an objective's own layers
    calibrator: Weight  # alpha, on a later step that is more probable than the one before


class AITM(MultiTaskRecommender):
    r"""What is known of a step of a funnel is handed to the next one by attention.

    .. math::
        q_t = f_t(x), \qquad p_t = ReLU(g_t(z_{t-1})), \qquad
        z_1 = q_1, \qquad
        z_t = \sum_{u \in \{p_t, q_t\}} softmax_u\Big(\frac{h_1(u) h_2(u)'}{\sqrt d}\Big) h_3(u)

        L = \sum_t BCE(y_t, \hat y_t) + \alpha \, mean(\max(\hat y_t - \hat y_{t-1}, 0))

    The step before is what an objective is ``given``, else the one that is named before it;
    :math:`h_1, h_2, h_3` are an objective's own. Labels and probabilities are of the whole space,
    as in the paper; inside its space an objective has :math:`\min(1, \hat y_t / \hat y_{t-1})`. The
    calibrator is of steps that are ``given`` the one before: of others nothing says which is rarer.
    """

    settings: AITMSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size, names = self.settings.bottom_sizes[-1], list(self.objectives)
        self.embed = self.embedder(dataset)
        self.bottoms = nn.ModuleDict(
            {name: Experts(1, self.embed.size, self.settings.bottom_sizes) for name in names}
        )
        self.before = steps_before(self.objectives)
        later = [name for name in names if self.before[name]]
        self.handed = nn.ModuleDict({name: nn.Linear(size, size) for name in later})
        self.attention = nn.ModuleDict({n: nn.Linear(size, 3 * size, bias=False) for n in later})
        self.towers = self.make_towers(size)

    def transfer(self, name: str, z: Tensor, q: Tensor) -> Tensor:
        """z_t of the step before's z and the own q, [B, H]."""
        both = torch.stack([torch.relu(self.handed[name](z)), q], 1)  # [B, 2, H]
        key, query, value = self.attention[name](both).chunk(3, -1)
        share = ((key * query).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])).softmax(1)
        return (share * value).sum(1)

    def logits(self, x: Tensor, names) -> dict[str, Tensor]:
        q = dict(zip(self.objectives, together([self.bottoms[n] for n in self.objectives], x)))
        z: dict[str, Tensor] = {}
        for name in sorted(self.objectives, key=self._steps):
            before = self.before[name]
            z[name] = q[name] if before is None else self.transfer(name, z[before], q[name])
        return {name: self.towers[name](z[name]) for name in names}

    def _steps(self, name: str) -> int:
        before = self.before[name]
        return 0 if before is None else 1 + self._steps(before)

    def whole(self, outputs, objective: str) -> Tensor:
        return torch.sigmoid(outputs[objective])

    def inside(self, outputs) -> dict[str, Tensor]:
        found = super().inside(outputs)
        whole = dict(found)
        for name in outputs:
            given = self.objectives[name].given
            if given is not None and self.objectives[name].type == "binary":
                found[name] = (whole[name] / whole[given].clamp(min=1e-12)).clamp(max=1)
        return found

    def row_losses(self, interaction):
        outputs = self.outputs(interaction[self.USER_ID], interaction[self.ITEM_ID])
        found = {}
        for name, label in self.whole_labels(interaction).items():
            loss, there = row_loss(self.objectives[name].type, outputs[name], label)
            given = self.objectives[name].given
            if given is not None and self.objectives[name].type == "binary":
                more = torch.sigmoid(outputs[name]) - torch.sigmoid(outputs[given])
                loss = loss + torch.where(there, self.settings.calibrator * more.relu(), 0.0)
            found[name] = loss, there
        return found

    def own_modules(self, name: str) -> list[nn.Module]:
        """What comes before another step is learned by that one's loss, too."""
        if name in self.before.values():
            calibrated = any(
                each.given == name and each.type == "binary" for each in self.objectives.values()
            )
            return [] if calibrated else [self.towers[name]]
        found = [self.towers[name], self.bottoms[name]]
        return found + [part[name] for part in (self.handed, self.attention) if name in part]


def steps_before(objectives: dict[str, Objective]) -> dict[str, str | None]:
    """What each is given, else the one named before it unless that one comes after it."""
    found = {name: objective.given for name, objective in objectives.items()}
    names = list(objectives)
    for previous, name in pairwise(names):
        passed: str | None = previous
        while passed is not None and passed != name:
            passed = found[passed]
        if found[name] is None and passed is None:
            found[name] = previous
    return found
