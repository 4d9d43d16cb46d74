r"""Experts and towers: many perceptrons as one product, and a small one by itself.

.. math:: h^{(0)} = x, \qquad h^{(l)}_e = ReLU(h^{(l-1)}_e W^{(l)}_e + b^{(l)}_e)

Weights are drawn as ``nn.Linear`` draws them, uniform within 1 / sqrt(inputs).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """E perceptrons of the same widths, every layer a ReLU; their layers' parameters in stacks."""

    def __init__(self, number: int, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bias = nn.ParameterList(), nn.ParameterList()
        for width in widths:
            bound = 1 / math.sqrt(inputs)
            for stack, shape in (
                (self.weight, (number, inputs, width)),
                (self.bias, (number, width)),
            ):
                stack.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
            inputs = width

    def forward(self, x: Tensor) -> Tensor:
        """[E, B, H] of rows x [B, D] that all experts read, or [E, B, D]."""
        return together([self], x)


def together(groups: Sequence[Experts], x: Tensor) -> Tensor:
    """All experts of these groups in their order, one product per layer: [E, B, H].

    x: rows [B, D] that all read, or [E, B, D], each expert's own.
    """
    h = x
    for weights, biases in zip(
        zip(*(group.weight for group in groups)), zip(*(group.bias for group in groups))
    ):
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)  # [E, D, H]
        bias = biases[0] if len(biases) == 1 else torch.cat(biases)  # [E, H]
        if h.dim() == 2:  # the same rows: one flat product
            flat = weight.transpose(0, 1).reshape(h.shape[1], -1)
            z = torch.addmm(bias.flatten(), h, flat).view(len(h), *bias.shape).transpose(0, 1)
        else:
            z = torch.baddbmm(bias.unsqueeze(1), h, weight)
        h = torch.relu(z)  # [E, B, H]
    return h


def mixed(gate: Tensor, experts: Tensor) -> Tensor:
    """The sum of experts [E, B, H] by weights [B, E]: [B, H]."""
    return (gate.T.unsqueeze(-1) * experts).sum(0)  # faster than B products of a row


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Hidden layers with a ReLU and a linear one; of no hidden layer the linear one alone."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
