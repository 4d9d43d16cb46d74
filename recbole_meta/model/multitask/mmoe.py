r"""
MMoE
################################################
Reference:
    Jiaqi Ma et al. "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts." in KDD 2018. https://doi.org/10.1145/3219819.3220007
"""

from dataclasses import dataclass

from torch import Tensor, nn

from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.perceptrons import Experts, mixed
from recbole_meta.settings import Size


@dataclass(frozen=True)
class MMoESettings(MultiTaskSettings):
    experts: Size  # E, which all objectives share
    expert_sizes: tuple[Size, ...]  # widths of an expert
    gate_sizes: tuple[Size, ...]  # widths of a gate below its softmax; none: linear


class MMoE(MultiTaskRecommender):
    r"""Experts that all objectives share, mixed by a gate of each objective.

    .. math::
        g_t = softmax(G_t(x)), \qquad z_t = s_t\Big(\sum_e g_{t,e} E_e(x)\Big)

    G_t is linear in the paper, and has a bias here.
    """

    settings: MMoESettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s = self.settings
        self.embed = self.embedder(dataset)
        self.experts = Experts(s.experts, self.embed.size, s.expert_sizes)
        self.gate = self.gates(self.embed.size, s.experts, s.gate_sizes)
        self.towers = self.make_towers(s.expert_sizes[-1])

    def logits(self, x: Tensor, names) -> dict[str, Tensor]:
        experts = self.experts(x)  # [E, B, H]
        return {n: self.towers[n](mixed(self.gate[n](x).softmax(-1), experts)) for n in names}

    def own_modules(self, name: str) -> list[nn.Module]:
        return [self.towers[name], self.gate[name]]
