r"""
SharedBottom
################################################
Reference:
    Rich Caruana. "Multitask Learning." in Machine Learning 1997.
    https://doi.org/10.1023/A:1007379606734
"""

from dataclasses import dataclass

from torch import Tensor

from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.perceptrons import Experts
from recbole_meta.settings import Size


@dataclass(frozen=True)
class SharedBottomSettings(MultiTaskSettings):
    bottom_sizes: tuple[Size, ...]  # widths of the layers that all objectives share


class SharedBottom(MultiTaskRecommender):
    r"""One bottom for all objectives, and a tower each.

    .. math:: z_t = s_t(f(x))

    f: ReLU layers; s_t: the tower. The paper's bottom is one layer; here the settings say.
    """

    settings: SharedBottomSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        sizes = self.settings.bottom_sizes
        self.embed = self.embedder(dataset)
        self.bottom = Experts(1, self.embed.size, sizes)
        self.towers = self.make_towers(sizes[-1])

    def logits(self, x: Tensor, names) -> dict[str, Tensor]:
        (h,) = self.bottom(x)  # [B, H]
        return {name: self.towers[name](h) for name in names}
