r"""A multilayer perceptron as functions of named parameters.

.. math::
    z = x W_0 + u W_u + b_0, \qquad h_l = ReLU(z_{l-1}), \qquad z_l = h_l W_l + b_l, \qquad
    score = z_L

x [N, D]: the items; u [D_t]: the task's own vector, which all rows share, so that its product is
taken once. Together they are the perceptron of the concatenation [u; x].
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def make_mlp(
    task_size: int, size: int, hidden: Sequence[int], start: float | Tensor = 0.0
) -> nn.ParameterDict:
    """Parameters drawn as ``nn.Linear`` draws them, uniform within 1 / sqrt(inputs); ``start`` is
    added to the last bias.
    """
    parameters = make_body(task_size, size, [*hidden, 1])
    with torch.no_grad():
        parameters[f"bias_{len(hidden)}"] += start
    return parameters


def make_body(task_size: int, size: int, widths: Sequence[int]) -> nn.ParameterDict:
    """The same without a score: layers of these widths, for `body`."""
    parameters = nn.ParameterDict()
    parameters["task_weight"] = _uniform(task_size + size, task_size, widths[0])
    inputs, rows = task_size + size, size
    for layer, outputs in enumerate(widths):
        parameters[f"weight_{layer}"] = _uniform(inputs, rows, outputs)
        parameters[f"bias_{layer}"] = _uniform(inputs, outputs)
        inputs = rows = outputs
    return parameters


def _uniform(inputs: int, *shape: int) -> nn.Parameter:
    bound = 1 / math.sqrt(max(1, inputs))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def task_part(params: Mapping[str, Tensor], task: Tensor) -> Tensor:
    """What all rows of a task share of the first layer, u W_u + b_0, [H]."""
    return task @ params["task_weight"] + params["bias_0"]


def deeper(params: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """Scores [N] from the first layer's output z [N, H]."""
    h = hidden(params, z)
    last = depth(params)
    return h @ params[f"weight_{last}"].squeeze(-1) + params[f"bias_{last}"]


def hidden(params: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """The last hidden layer [N, H] from the first layer's output z [N, H]."""
    return _through(params, z, depth(params))


def body(params: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """The last layer [N, H] of a perceptron without a score, from the first one's output z."""
    return _through(params, z, depth(params) + 1)


def _through(params: Mapping[str, Tensor], z: Tensor, layers: int) -> Tensor:
    h = torch.relu(z)
    for layer in range(1, layers):
        h = torch.relu(h @ params[f"weight_{layer}"] + params[f"bias_{layer}"])
    return h


def depth(params: Mapping[str, Tensor]) -> int:
    """The number L of the last layer."""
    return sum(name.startswith("bias_") for name in params if name != "bias_0")
