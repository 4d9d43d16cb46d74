r"""
STEM
################################################
Reference:
    Liangcai Su et al. "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation."
    in AAAI 2024. https://arxiv.org/abs/2308.13537
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.perceptrons import Experts, mixed, together
from recbole_meta.settings import Size


@dataclass(frozen=True)
class STEMSettings(MultiTaskSettings):
    specific_experts: Size  # of each objective
    shared_experts: Size
    expert_sizes: tuple[Size, ...]  # widths of an expert
    gate_sizes: tuple[Size, ...]  # widths of a gate below its softmax; none: linear


class STEM(MultiTaskRecommender):
    r"""Embedding tables of each objective beside shared ones: all forward, own backward.

    .. math::
        h_t = \sum_{e \in own_t} g_{t,e} E_e(x_t) + \sum_{e \in shared} g_{t,e} E_e(x_s)
            + \sum_{j \ne t} \sum_{e \in own_j} g_{t,e} \, sg(E_e(x_j)), \qquad
        g_t = softmax(G_t(x_t + x_s))

    sg stops the gradient: an objective reads the others' experts and tables and trains none of
    them. One level, as in the paper's experiments.
    """

    settings: STEMSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, names = self.settings, list(self.objectives)
        self.tables = nn.ModuleDict({name: self.embedder(dataset) for name in names})
        self.shared_table = self.embedder(dataset)
        size = self.shared_table.size
        self.own = nn.ModuleDict(
            {name: Experts(s.specific_experts, size, s.expert_sizes) for name in names}
        )
        self.shared = Experts(s.shared_experts, size, s.expert_sizes)
        total = s.specific_experts * len(names) + s.shared_experts
        self.gate = self.gates(size, total, s.gate_sizes)
        self.towers = self.make_towers(s.expert_sizes[-1])

    def inputs(self, users: Tensor, items: Tensor, with_items: bool) -> Tensor:
        """x of every objective's tables and of the shared ones, last, [K + 1, B, D]."""
        tables = [*(self.tables[name] for name in self.objectives), self.shared_table]
        return torch.stack([table(users, items, with_items) for table in tables])

    def logits(self, x: Tensor, names) -> dict[str, Tensor]:
        n, k = self.settings.specific_experts, len(self.objectives)
        own = x[:-1].repeat_interleave(n, 0)
        common = x[-1:].expand(self.settings.shared_experts, -1, -1)
        groups = [*(self.own[name] for name in self.objectives), self.shared]
        experts = together(groups, torch.cat([own, common]))  # [E, B, H]
        still, found = experts[: n * k].detach(), {}
        for place, name in enumerate(self.objectives):
            if name in names:
                before, after = n * place, n * (place + 1)
                seen = [still[:before], experts[before:after], still[after:], experts[n * k :]]
                gate = self.gate[name](x[place] + x[-1]).softmax(-1)
                found[name] = self.towers[name](mixed(gate, torch.cat(seen)))
        return found

    def own_modules(self, name: str) -> list[nn.Module]:
        return [self.towers[name], self.gate[name], self.own[name], self.tables[name]]
