r"""The inner loop: losses of one task, and steps of gradient descent on them.

Exact second order needs no Hessian: the steps are differentiable functions of the prior, and
reverse mode through them costs about two more first-order passes. First order detaches the inner
gradient. All functions are of one task, without a batch axis; ``torch.func.vmap`` lifts them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import grad

Params = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of scores, labels and mask [N]: a number


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values [N] where mask [N] is 1; 0 where it is nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def mse(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error."""
    return masked_mean((score - label).square(), mask)


def mae(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """The mean absolute error."""
    return masked_mean((score - label).abs(), mask)


def bce(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """The binary cross-entropy of the logits ``score`` and labels in [0, 1]."""
    return masked_mean(torch.nn.functional.softplus(score) - label * score, mask)


def softmax(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    r"""The multinomial negative log-likelihood of the positives among all examples of the set.

    .. math:: -\sum_n y_n \log softmax(s)_n / \sum_n y_n

    0 without a positive.
    """
    lowest = torch.finfo(score.dtype).min
    log_p = torch.log_softmax(torch.where(mask > 0, score, lowest), dim=0)
    weight = label * mask
    return -(weight * torch.where(mask > 0, log_p, 0.0)).sum() / weight.sum().clamp(min=1)


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "bce": bce, "softmax": softmax}


def sgd_steps(
    loss: Callable[[Params], Tensor],
    prior: Mapping[str, Tensor],
    rates: float | Mapping[str, Tensor],
    steps: int,
    order: int = 2,
) -> Params:
    r"""Parameters after steps of gradient descent on ``loss``.

    .. math:: \theta_{j+1} = \theta_j - \alpha \odot \nabla L(\theta_j)

    ``rates``: one number, or a tensor for each parameter. ``order`` 1 stops the outer gradient at
    the inner one.
    """
    params = dict(prior)
    for _ in range(steps):
        gradient = _stopped(grad(loss)(params), order)
        params = {
            name: value - (rates if isinstance(rates, float) else rates[name]) * gradient[name]
            for name, value in params.items()
        }
    return params


def first_layer_steps(
    loss: Callable[[Tensor, Params], Tensor],
    first: Tensor,
    rows: Tensor,
    shared: Tensor,
    rest: Mapping[str, Tensor],
    rate: float,
    steps: int,
    order: int = 2,
) -> tuple[Tensor, Params]:
    r"""The same steps for a network whose first layer is linear, without ever forming its weights.

    The rows X [S, D] of the support do not change in the inner loop, so every gradient of the first
    weights is X'G and after j steps

    .. math::
        W_j = W_0 - X' A_j, \qquad A_{j+1} = A_j + \alpha \, \partial L / \partial Z_j, \qquad
        Z_j = Z_0 - (X X' + c) A_j

    ``first``: :math:`Z_0 = X W_0` and whatever all rows share [S, H]; ``shared``: c, the squared
    norm of what all rows share and what adapts, too (1 for a bias, u'u for a vector u); ``rest``:
    the deeper parameters, which take plain steps. Returns A [S, H] and the adapted rest. S D + S H
    numbers instead of D H, and no product with D H in it but those of :math:`Z_0`.
    """
    moved, params = torch.zeros_like(first), dict(rest)
    kernel = rows @ rows.T + shared if steps > 1 else rows  # [S, S]; not needed for one step
    for step in range(steps):
        z = first - kernel @ moved if step else first
        of_z, of_rest = grad(loss, argnums=(0, 1))(z, params)
        change = rate * (of_z if order == 2 else of_z.detach())
        moved = moved + change if step else change
        gradient = _stopped(of_rest, order)
        params = {name: value - rate * gradient[name] for name, value in params.items()}
    return moved, params


def _stopped(gradient: Params, order: int) -> Params:
    if order == 2:
        return gradient
    return {name: value.detach() for name, value in gradient.items()}
