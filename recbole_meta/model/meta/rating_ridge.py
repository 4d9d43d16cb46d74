r"""
RatingRidge
################################################
Reference:
    Rasmussen, Williams. "Gaussian Processes for Machine Learning." MIT Press 2006, section 2.1 (the
    posterior). McCullagh. "Regression Models for Ordinal Data." J. R. Statist. Soc. B 1980 (the
    cut points).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from recbole_meta.data.facts import MOST_GRADES
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError
from recbole_meta.model.feature_recommender import FeatureRecommender, LearnerSettings
from recbole_meta.model.meta_recommender import State
from recbole_meta.model.mlp import deeper, make_mlp, task_part
from recbole_meta.settings import Least, Positive, Share, Size


@dataclass(frozen=True)
class RatingRidgeSettings(LearnerSettings):
    hidden_size: Annotated[tuple[Size, ...], Least(1)]  # of the shared predictor
    directions: Size  # d, in which users differ, beside their level
    noise: Positive  # where sigma^2 starts, the variance of a rating around the user's mean
    id_dropout: Share  # of the ids in a batch that are hidden, so that fields speak for new ones
    link: Literal["identity", "stairs"]  # how a mean becomes a rating
    width: Positive  # where tau starts, of a stair's edge
    pseudo_count: Positive  # where c starts, ratings of the population in a user's shares
    average: Share  # decay of the moving average of all weights, which is judged; 0: the last ones


class RatingRidge(FeatureRecommender):
    r"""A Gaussian posterior over what a user's ratings add to a shared predictor, and stairs.

    .. math::
        m(x) &= \Psi(x; u) + \phi(x)' w, \qquad \phi(x) = s \odot [V' x; 1], \quad w \sim N(0, I) \\
        w &= (\Phi' \Phi + \sigma^2 I)^{-1} \Phi' (y - \Psi) \\
        rating &= g_1 + \sum_c (g_{c+1} - g_c) \, sigmoid((m - t_c) / \tau), \qquad
        t = t^0 + A' (p_u - p), \qquad p_u = \frac{\sum_j 1[y_j] + c \, p}{n + c}

    x [D], u: the embeddings of an item's and a user's fields; :math:`\Phi` [S, d + 1]: the support;
    :math:`\Psi`: a perceptron; g [G]: the grades that were given in training, p their shares. All
    else is learned through the solve, on the absolute error of queries. The median of a rating lies
    on a grade, so a sure prediction should, too: t are cut points of the ordinal regression, which
    a user moves by how often he gives each grade, and tau says how steep the stairs are. A nearly
    flat stair still rises, so that items keep their order. An item that was not met in training has
    its fields alone; ``id_dropout`` prepares them for it.
    """

    feedback = ("rating",)
    settings: RatingRidgeSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s, sizes = self.settings, (self.task_embedding.size, self.other_embedding.size)
        self.shared = make_mlp(*sizes, s.hidden_size, self.label_mean)
        self.vectors = nn.Parameter(torch.randn(sizes[1], s.directions) / s.directions**0.5)
        self.log_scale = nn.Parameter(torch.zeros(s.directions + 1))
        self.log_noise = nn.Parameter(torch.tensor(s.noise).log())
        self.has_id = bool(self.other_fields) and self.other_fields[0].name == self.OTHER_ID
        if s.link == "stairs":
            self._build_stairs()

    def _build_stairs(self) -> None:
        s, grades = self.settings, self.facts.grades
        if len(grades) < 2:
            raise DataError(
                f"RatingRidge: link 'stairs' needs 2 to {MOST_GRADES} different ratings "
                "in training, and there are not. Set link to 'identity'."
            )
        kind = torch.get_default_dtype()
        self.register_buffer("grades", grades.to(kind))
        self.register_buffer("grade_share", self.facts.grade_share.to(kind))
        self.cuts = nn.Parameter((self.grades[1:] + self.grades[:-1]) / 2)
        self.moved = nn.Parameter(torch.zeros(len(grades), len(grades) - 1))  # A
        self.log_width = nn.Parameter(torch.tensor(s.width).log())
        self.log_count = nn.Parameter(torch.tensor(s.pseudo_count).log())

    def encode(self, items: Tensor) -> Tensor:
        x = self.other_embedding(items)
        if not (self.training and self.has_id and self.settings.id_dropout):
            return x
        kept = torch.rand(self.n_others, device=x.device) >= self.settings.id_dropout
        size = self.settings.embedding_size
        return torch.cat([x[..., :size] * kept[items].unsqueeze(-1), x[..., size:]], dim=-1)

    def adapt(self, support: Examples) -> State:
        state = {"offset": task_part(self.shared, support.task)}
        phi = self._directions(support.x) * support.mask.unsqueeze(-1)  # [S, d + 1]
        residual = (support.label - self._predicted(state, support.x)) * support.mask
        ridge = self.log_noise.exp() * torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
        factors = torch.linalg.lu_factor(phi.T @ phi + ridge)  # `solve` in two: can be exported
        solved = torch.linalg.lu_solve(*factors, (phi.T @ residual).unsqueeze(-1))
        state["w"] = solved.squeeze(-1)  # [d + 1]
        if self.settings.link == "stairs":
            state["cuts"] = self.cuts + (self._shares(support) - self.grade_share) @ self.moved
        return state

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.rating(*self.before_stairs(state, x))

    def before_stairs(self, state: State, x: Tensor) -> tuple[Tensor, ...]:
        """m [N], and where there are stairs t [G - 1] and tau."""
        m = self._predicted(state, x) + self._directions(x) @ state["w"]
        return (m, state["cuts"], self.log_width.exp()) if "cuts" in state else (m,)

    def rating(self, m: Tensor, *stairs: Tensor) -> Tensor:
        """What a user gives whose mean is m [N]."""
        if not stairs:
            return m
        cuts, width = stairs
        steps = torch.sigmoid((m.unsqueeze(-1) - cuts) / width)
        return self.grades[0] + steps @ (self.grades[1:] - self.grades[:-1])

    def _predicted(self, state: State, x: Tensor) -> Tensor:
        """Psi [N]."""
        return deeper(self.shared, x @ self.shared["weight_0"] + state["offset"])

    def _directions(self, x: Tensor) -> Tensor:
        """phi [N, d + 1]."""
        return pad(x @ self.vectors, (0, 1), value=1.0) * self.log_scale.exp()

    def _shares(self, support: Examples) -> Tensor:
        """How often a user gives each grade, p_u [G]; a rating between two is of the nearer one."""
        above = support.label.unsqueeze(-1) > (self.grades[1:] + self.grades[:-1]) / 2
        place = above.sum(-1, keepdim=True)  # [S, 1] of a rating's grade
        given = place == torch.arange(len(self.grades), device=place.device)
        count = self.log_count.exp()
        given = given * support.mask.unsqueeze(-1)  # [S, G]
        return (given.sum(0) + count * self.grade_share) / (support.mask.sum() + count)
