"""What the oracles of models have in common."""

import numpy as np
import torch

from recbole_meta.objective_fitting import train_set


def dense(shop, name: str) -> np.ndarray:
    """0/1 of a behaviour in train, [U, I]."""
    ids = train_set(shop).field2token_id
    x = np.zeros((len(ids["user_id"]), len(ids["item_id"])))
    rows = shop.positives("train", name)
    x[rows["user"].map(ids["user_id"]), rows["item"].map(ids["item_id"])] = 1
    return x


def same_gradients(
    model, fast: torch.Tensor, slow: torch.Tensor, nothing: float = 0.0, least: float = 1e-8
) -> set[str]:
    """The parameters that the plain loop's loss reaches by more than ``least``.

    Every gradient must be that of the plain loop; where that reaches nothing, it is ``nothing``.
    """
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(fast, parameters.values(), allow_unused=True)
    wanted = torch.autograd.grad(slow, parameters.values(), allow_unused=True)
    reached = set()
    for key, one, other in zip(parameters, found, wanted, strict=True):
        if other is None:
            assert one is None or not one.any() or one.abs().max() < nothing, key
            continue
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=key)
        reached |= {key} if other.abs().max() > least else set()
    return reached
