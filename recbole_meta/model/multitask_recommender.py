r"""Trained multi-task models of rows: embeddings of users and items, and a tower per objective.

x [B, D]: the embeddings of a user's id and fields and of an item's, side by side. The tower of a
distribution reads the user's part alone, the rest is zero: an item's categories are its label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recbole_meta.data.features import FieldEmbedding, read_fields
from recbole_meta.model.perceptrons import perceptron
from recbole_meta.model.row_recommender import RowRecommender, RowSettings
from recbole_meta.settings import Count, Positive, Size, Weight


@dataclass(frozen=True)
class MultiTaskSettings(RowSettings):
    eval_step: Size  # epochs between validations
    stopping_step: Count  # validations without a better one before training stops
    stop_by: str  # the metric that chooses the epoch on valid, e.g. mean/ndcg@10, like/auc
    train_batch_size: Size  # rows per step, before negatives
    learning_rate: Positive
    weight_decay: Weight  # L2 on all parameters
    schedule: Literal["constant", "cosine"]  # of the learning rate, over ``epochs``
    negatives: Count  # unknown items per row of train
    balancer: str  # how the objectives' losses become one step
    balancer_settings: dict[str, Any]  # of the balancer, passed on
    embedding_size: Size  # d, of each field
    embedding_std: Positive  # deviation of the embeddings' start
    user_fields: bool  # whether the data set's user features are read
    item_fields: bool  # whether the data set's item features are read
    product: bool  # whether the towers also read the product of the ids' embeddings
    tower_sizes: tuple[Size, ...]  # widths of an objective's tower below its output


class Embedder(nn.Module):
    r"""Rows x [B, D] of users and items.

    With ``product`` they end with :math:`p_u \odot q_i / \sigma`, of the embeddings of the ids and
    their deviation at the start: what a dot product adds up, which perceptrons learn slowly (Rendle
    et al., "Neural Collaborative Filtering vs. Matrix Factorization Revisited", RecSys 2020).
    """

    def __init__(
        self, dataset: Any, size: int, std: float, user: bool, item: bool, product: bool
    ) -> None:
        super().__init__()
        parts = []
        for field, wanted in ((dataset.uid_field, user), (dataset.iid_field, item)):
            known = torch.zeros(dataset.num(field), dtype=torch.bool)
            known[dataset.inter_feat[field]] = True
            parts.append(
                FieldEmbedding(read_fields(dataset, field, known, True, wanted), size, std)
            )
        self.user, self.item = parts
        self.ids, self.std = size if product else 0, std
        self.size = self.user.size + self.item.size + self.ids

    def forward(self, users: Tensor, items: Tensor, with_items: bool = True) -> Tensor:
        user = self.user(users)
        if not with_items:
            return torch.cat([user, user.new_zeros(len(user), self.size - self.user.size)], dim=1)
        item = self.item(items)
        product = user[:, : self.ids] * item[:, : self.ids] / self.std  # a side's id comes first
        return torch.cat([user, item, product], dim=1)


class MultiTaskRecommender(RowRecommender):
    """Base of the architectures; one defines ``logits`` of inputs x, and which modules are an
    objective's own.
    """

    settings: MultiTaskSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.alike = [n for n, o in self.objectives.items() if o.type != "distribution"]
        self.of_users = [n for n, o in self.objectives.items() if o.type == "distribution"]

    def embedder(self, dataset: Any, size: int | None = None) -> Embedder:
        """Tables of the size that the settings say, or of this one."""
        s = self.settings
        size = size or s.embedding_size
        read = s.user_fields, s.item_fields, s.product
        return Embedder(dataset, size, s.embedding_std, *read)

    def make_towers(self, inputs: int, hidden: Sequence[int] | None = None) -> nn.ModuleDict:
        """One per objective, with as many outputs as it has."""
        hidden = self.settings.tower_sizes if hidden is None else hidden
        return nn.ModuleDict(
            {
                name: perceptron(inputs, hidden, self.categories.get(name, 1))
                for name in self.objectives
            }
        )

    def gates(self, inputs: int, experts: int, hidden: Sequence[int]) -> nn.ModuleDict:
        """One per objective, from inputs to the logits of its experts."""
        return nn.ModuleDict({n: perceptron(inputs, hidden, experts) for n in self.objectives})

    def inputs(self, users: Tensor, items: Tensor, with_items: bool) -> Any:
        """What ``logits`` reads of these rows; x [B, D] of one embedder."""
        return self.embed(users, items, with_items)

    def logits(self, x: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """The outputs [B, C] of these objectives, C = 1 but of a distribution."""
        raise NotImplementedError(f"{type(self).__name__} must define logits(x, names).")

    def outputs(
        self, users: Tensor, items: Tensor, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        wanted = list(self.objectives if names is None else names)
        found: dict[str, Tensor] = {}
        if alike := [name for name in self.alike if name in wanted]:
            said = self.logits(self.inputs(users, items, True), alike)
            found |= {name: said[name].squeeze(-1) for name in alike}
        if of_users := [name for name in self.of_users if name in wanted]:
            each, place = users.unique(return_inverse=True)  # a user has one distribution
            said = self.logits(self.inputs(each, torch.zeros_like(each), False), of_users)
            found |= {name: said[name][place] for name in of_users}
        return {name: found[name] for name in wanted}

    def own_modules(self, name: str) -> list[nn.Module]:
        return [self.towers[name]]
