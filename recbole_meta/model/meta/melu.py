r"""
MeLU
################################################
Reference:
    Lee et al. "MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation."
    KDD 2019. arXiv:1908.00413
"""

from recbole_meta.model.meta.maml import MAML


class MeLU(MAML):
    r"""MAML on the fields of users and items, without ids, trained on squared errors.

    .. math:: x = [U_i; I_j], \qquad h_1 = ReLU(W_1 x + b_1), \qquad h_2 = ReLU(W_2 h_1 + b_2)

    A field with several values is the mean of theirs; the decision layers adapt. Its page has the
    inner rate of the paper, which hardly adapts. Unlike the authors' code the meta-gradient is of
    second order, as in the paper; the output starts at the mean rating; training stops by valid.
    """

    feedback = ("rating", "label")
    usual_loss = MAML.usual_loss | {"rating": "mse"}
