r"""
LinearMTA
################################################
Reference:
    Vancura, Kordik. "Deep Variational Autoencoder with Shallow Parallel Path for Top-N
    Recommendation (VASP)." ICANN 2021. arXiv:2102.05774
    Steck. "Embarrassingly Shallow Autoencoders for Sparse Data." WWW 2019. arXiv:1905.03375
"""

from dataclasses import dataclass
from typing import Literal

from scipy import sparse
from torch import Tensor

from recbole_meta.errors import SettingError
from recbole_meta.model.item_ridge import ItemRidge, weighted_union
from recbole_meta.model.multitask.mta import MTA, MTASettings
from recbole_meta.settings import Positive, Weight


@dataclass(frozen=True)
class LinearMTASettings(MTASettings):
    linear: dict[str, Weight]  # s of an objective, on the linear path; 0 where one is not named
    linear_target: dict[str, Literal["union", "own"]]  # what W predicts; own: not named
    linear_weights: dict[str, Weight]  # of the behaviours that the path reads; 1: not named
    reg_weight: Positive  # lambda of the path, in users


class LinearMTA(MTA):
    r"""MTA with a linear path from item to item beside the latent one.

    .. math:: score^{(t)} = D_t z^{(t)} + e_t + (c_t + a_t o^{(t)}) \odot x_\cup + s_t \, W_t' x_w

    :math:`W_t` is ObjectiveEASE's closed form from the weighted union :math:`x_w` to the
    objective's own behaviour, or to the union, with a diagonal of zeros, of train alone. Like
    :math:`c_t`, :math:`s_t` is a setting, read when ranking only: W was fitted on the very users of
    a batch, so that in training it would know the items that are hidden from the encoder. Nothing
    else differs from MTA, and with all :math:`s_t = 0` nothing does.

    What differs from VASP: a sum, not a product of probabilities; a closed form, not a trained
    matrix.
    """

    settings: LinearMTASettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        s = self.settings
        self.check_objectives(s.linear, "linear")
        self.check_objectives(s.linear_target, "linear_target")
        self.check_objectives(s.linear_weights, "linear_weights")
        if self.own:
            raise SettingError(
                f"{type(self).__name__}: the linear path reads other behaviours: 'inputs' must be "
                "all."
            )
        self.ridge: ItemRidge | None = None

    def prepare(self, train_data) -> None:
        s = self.settings
        if any(s.linear.values()):
            where, source = type(self).__name__, self.weighted()
            known = self.history | {"union": source}
            targets = {name: known[name] for name in self._targets().values()}
            self.ridge = ItemRidge(train_data._dataset, source, targets, s.reg_weight, where)

    def weighted(self) -> sparse.csr_matrix:
        """The source of the path, x_w [U, I]."""
        where = f"{type(self).__name__}: 'linear_weights'"
        return weighted_union(self.history, self.settings.linear_weights, where)

    def _targets(self) -> dict[str, str]:
        """What W predicts for each objective that has a path."""
        s = self.settings
        own = {name for name in self.objectives if s.linear_target.get(name, "own") == "own"}
        return {name: name if name in own else "union" for name, x in s.linear.items() if x}

    def rank(self, users: Tensor, objective: str) -> Tensor:
        scores = super().rank(users, objective)  # a distribution has no path
        if s := self.settings.linear.get(objective):
            scores += s * self.ridge.scores(users, self._targets()[objective])
        return scores
