r"""
PLE
################################################
Reference:
    Hongyan Tang et al. "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations." in RecSys 2020. https://doi.org/10.1145/3383313.3412236
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.perceptrons import Experts, mixed, perceptron, together
from recbole_meta.settings import Size


@dataclass(frozen=True)
class PLESettings(MultiTaskSettings):
    levels: Size  # L; 1: the paper's CGC
    specific_experts: Size  # of each objective, per level
    shared_experts: Size  # per level
    expert_sizes: tuple[Size, ...]  # widths of an expert
    gate_sizes: tuple[Size, ...]  # widths of a gate below its softmax; none: linear


class PLE(MultiTaskRecommender):
    r"""Experts of each objective beside shared ones, in levels.

    .. math::
        h_t^{(l)} = \sum_{e \in own_t \cup shared} g^{(l)}_{t,e} E^{(l)}_e, \qquad
        h_s^{(l)} = \sum_{e \in all} g^{(l)}_{s,e} E^{(l)}_e, \qquad z_t = s_t(h_t^{(L)})

    An objective's experts and gate read its own stream :math:`h_t^{(l-1)}`, the shared ones
    :math:`h_s^{(l-1)}`; all streams start as x. The last level has no shared stream.
    """

    settings: PLESettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, self.embed = self.settings, self.embedder(dataset)
        own, shared, total = s.specific_experts, s.shared_experts, s.shared_experts
        total += own * len(self.objectives)
        self.own, self.shared = nn.ModuleList(), nn.ModuleList()
        self.gate, self.shared_gate = nn.ModuleList(), nn.ModuleList()
        size = self.embed.size
        for level in range(s.levels):
            groups = {name: Experts(own, size, s.expert_sizes) for name in self.objectives}
            self.own.append(nn.ModuleDict(groups))
            self.shared.append(Experts(shared, size, s.expert_sizes))
            self.gate.append(self.gates(size, own + shared, s.gate_sizes))
            if level < s.levels - 1:
                self.shared_gate.append(perceptron(size, s.gate_sizes, total))
            size = s.expert_sizes[-1]
        self.towers = self.make_towers(size)

    def level(self, level: int, streams: dict[str, Tensor], shared: Tensor, first: bool):
        """The next streams and the next shared one (none after the last level)."""
        n, groups = self.settings.specific_experts, self.own[level]
        x = shared
        if not first:
            own = [streams[name].expand(n, -1, -1) for name in self.objectives]
            x = torch.cat([*own, shared.expand(self.settings.shared_experts, -1, -1)])
        experts = together([*(groups[name] for name in self.objectives), self.shared[level]], x)
        common = experts[n * len(self.objectives) :]
        found = {}
        for place, name in enumerate(self.objectives):
            seen = torch.cat([experts[n * place : n * (place + 1)], common])
            gate = self.gate[level][name](streams[name]).softmax(-1)
            found[name] = mixed(gate, seen)
        if level == self.settings.levels - 1:
            return found, None
        return found, mixed(self.shared_gate[level](shared).softmax(-1), experts)

    def logits(self, x: Tensor, names) -> dict[str, Tensor]:
        streams, shared = dict.fromkeys(self.objectives, x), x
        for level in range(self.settings.levels):
            streams, shared = self.level(level, streams, shared, level == 0)
        return {name: self.towers[name](streams[name]) for name in names}

    def own_modules(self, name: str) -> list[nn.Module]:
        """Below the last level an objective's experts reach the others by the shared stream, and
        with them what made their inputs.
        """
        return [self.towers[name], self.own[-1][name], *(gate[name] for gate in self.gate[-2:])]
