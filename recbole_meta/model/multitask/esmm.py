r"""
ESMM
################################################
Reference:
    Xiao Ma et al. "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
    Conversion Rate." in SIGIR 2018. https://doi.org/10.1145/3209978.3210104
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_meta.errors import SettingError
from recbole_meta.model.multitask_recommender import MultiTaskRecommender, MultiTaskSettings
from recbole_meta.model.row_recommender import row_loss


@dataclass(frozen=True)
class ESMMSettings(MultiTaskSettings):
    """tower_sizes: widths of each objective's perceptron; embeddings are all that is shared."""


class ESMM(MultiTaskRecommender):
    r"""An objective inside another one's space is learned over all rows, by the product.

    .. math::
        p_{ctcvr} = p_{ctr} \, p_{cvr}, \qquad
        L = BCE(click, p_{ctr}) + BCE(click \cdot conversion, p_{ctcvr})

    No loss is on :math:`p_{cvr}`, whose rows are the clicked ones alone. Here for chains of any
    length: click is what conversion is ``given``.
    """

    settings: ESMMSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        if not any(objective.given for objective in self.objectives.values()):
            raise SettingError(
                "ESMM: no objective is 'given' another one, so there is no space to learn outside "
                "of. Write 'given: <objective>' on the page of the data set, or take SharedBottom."
            )
        self.embed = self.embedder(dataset)
        self.towers = self.make_towers(self.embed.size)

    def logits(self, x: Tensor, names) -> dict[str, Tensor]:
        return {name: self.towers[name](x) for name in names}

    def row_losses(self, interaction):
        outputs = self.outputs(interaction[self.USER_ID], interaction[self.ITEM_ID])
        found = {}
        for name, label in self.whole_labels(interaction).items():
            chain = self.chain(name)
            if self.objectives[name].type != "binary" or len(chain) == 1:
                found[name] = row_loss(self.objectives[name].type, outputs[name], label)
                continue
            there = ~label.isnan()
            yes, no = log_product([outputs[each] for each in chain])
            loss = -torch.where(label == 1, yes, no)
            found[name] = torch.where(there, loss, 0.0), there
        return found

    def own_modules(self, name: str) -> list[nn.Module]:
        """What another one is given is learned by that one's loss, too."""
        given = {each for other in self.objectives for each in self.chain(other)[:-1]}
        return [] if name in given else [self.towers[name]]


def log_product(logits: list[Tensor]) -> tuple[Tensor, Tensor]:
    r"""log p and log(1 - p) of :math:`p = \prod_t \sigma(z_t)`, finite for all z.

    :math:`1 - p_{1..t} = (1 - p_{1..t-1}) + p_{1..t-1} (1 - \sigma(z_t))`.
    """
    yes, no = logsigmoid(logits[0]), logsigmoid(-logits[0])
    for z in logits[1:]:
        no = torch.logaddexp(no, yes + logsigmoid(-z))
        yes = yes + logsigmoid(z)
    return yes, no
