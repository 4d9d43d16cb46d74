"""What the oracles of learners have in common."""

import torch


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
