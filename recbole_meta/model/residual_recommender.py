r"""Residual learners: a predictor that all tasks share, and what a support corrects of it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from recbole_meta.episode import Examples
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import body, deeper, make_body, make_mlp, task_part
from recbole_meta.settings import Least, Size


@dataclass(frozen=True)
class ResidualSettings(LearnerSettings):
    hidden_size: Annotated[tuple[Size, ...], Least(1)]  # of the shared predictor, and the encoder
    support_sizes: Size  # from 1 on that have a scale and a bias of their own; larger: the last


class ResidualRecommender(FeatureRecommender):
    r"""Base of RESUS: a learner says how residuals of a support become one of any item.

    .. math::
        r_j = y_j - p(\Psi(x_j)), \qquad score = \Psi(x) + s_n \, \Delta(\Phi(x)) + c_n

    :math:`\Psi`: the shared predictor; p: its expectation, a sigmoid except of ratings;
    :math:`\Delta`: of the residuals, by the encoder :math:`\Phi`; s, c: a scale and a bias for each
    size n of the support, 0 of an empty one, so that the prior is :math:`\Psi`.
    """

    scale_start: ClassVar[float]
    settings: ResidualSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, sizes = self.settings, (self.task_embedding.size, self.other_embedding.size)
        self.shared = make_mlp(*sizes, s.hidden_size, self.label_mean)
        self.encoder = make_body(*sizes, s.hidden_size)
        self.scale = nn.Parameter(torch.full((s.support_sizes,), self.scale_start))
        self.bias = nn.Parameter(torch.zeros(s.support_sizes))
        self.register_buffer("sizes", torch.arange(1, s.support_sizes + 1), persistent=False)

    def fit(self, h: Tensor, residual: Tensor, mask: Tensor) -> State:
        """What is known of a task from its support's encoding [S, H] and residuals [S]; those of
        padding are 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fit(h, residual, mask).")

    def residual(self, state: State, h: Tensor) -> Tensor:
        """The residuals [N] of rows with this encoding [N, H]."""
        raise NotImplementedError(f"{type(self).__name__} must define residual(state, h).")

    def adapt(self, support: Examples) -> State:
        offsets = {
            "shared": task_part(self.shared, support.task),
            "encoder": task_part(self.encoder, support.task),
        }
        score, h = self._shared_and_encoded(offsets, support.x)
        expected = score if self.judged == "rating" else torch.sigmoid(score)
        size = support.mask.sum().clamp(max=len(self.sizes)) == self.sizes  # [sizes]
        size = size.to(score.dtype)
        fitted = self.fit(h, (support.label - expected) * support.mask, support.mask)
        return {**offsets, "scale": size @ self.scale, "bias": size @ self.bias, **fitted}

    def score(self, state: State, x: Tensor) -> Tensor:
        score, h = self._shared_and_encoded(state, x)
        return score + state["scale"] * self.residual(state, h) + state["bias"]

    def _shared_and_encoded(self, offsets: State, x: Tensor) -> tuple[Tensor, Tensor]:
        """Psi [N] and Phi [N, H] of rows x [N, D]."""
        score = deeper(self.shared, x @ self.shared["weight_0"] + offsets["shared"])
        return score, body(self.encoder, x @ self.encoder["weight_0"] + offsets["encoder"])
