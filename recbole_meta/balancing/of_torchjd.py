"""TorchJD's scalarizers and aggregators as balancers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torchjd.scalarization as scalarization
from torch import Tensor, nn

from recbole_meta.balancing.balancer import Balancer, Scale


class _OfTorchJD(Balancer):
    core: nn.Module  # TorchJD's object, which has a state

    def state_dict(self) -> dict[str, Any]:
        return {path: _state_of(module) for path, module in self.core.named_modules()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for path, module in self.core.named_modules():
            _restore(module, state[path])


class Scalarized(_OfTorchJD):
    """One loss of all, for all parameters."""

    core: scalarization.Scalarizer

    def __init__(self, core: scalarization.Scalarizer, model: Any) -> None:
        super().__init__(model)
        self.core = core.to(model.device)

    def parameters(self) -> list[nn.Parameter]:
        learns_itself = isinstance(self.core, scalarization.FAMO)
        return [] if learns_itself else list(self.core.parameters())

    def backward(self, losses: Tensor, scale: Scale) -> None:
        scale(self.core(losses)).backward()

    def after_step(self, interaction: Any) -> None:
        if isinstance(self.core, scalarization.FAMO):
            with torch.no_grad():
                self.core.update(self.vector(self.model.losses(interaction)))

    def end_epoch(self) -> None:
        if isinstance(self.core, scalarization.DWA):
            self.core.step()


class Aggregated(_OfTorchJD):
    """One gradient of all for the shared parameters, its own for what is an objective's own.

    An objective without a row in a batch has no gradient there. It is left out where the balancer
    keeps nothing per objective: else MGDA, the shortest mean of gradients, would stand still.
    """

    def __init__(self, core: nn.Module, model: Any, per_objective: bool) -> None:
        super().__init__(model)
        self.core = core.to(model.device)
        self.shared = model.shared_parameters()
        self.own = {name: model.objective_parameters(name) for name in self.names}
        stateful = any(hasattr(module, "reset") for module in core.modules())
        self.leaves_out = not (stateful or per_objective)

    def jacobian(self, losses: Tensor) -> Tensor:
        """Gradients [K, P] by the shared parameters; those by its own ones go where they belong."""
        rows = []
        for place, name in enumerate(self.names):
            wanted = [*self.shared, *self.own[name]]
            if not wanted:
                continue
            found = torch.autograd.grad(
                losses[place], wanted, retain_graph=place < len(self.names) - 1,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            shared, own = found[: len(self.shared)], found[len(self.shared) :]
            _add(self.own[name], own)
            rows.append(torch.cat([each.flatten() for each in shared]) if shared else losses[:0])
        return torch.stack(rows)

    def backward(self, losses: Tensor, scale: Scale) -> None:
        jacobian = self.jacobian(scale(losses))
        if not jacobian.shape[1]:
            return
        if self.leaves_out:
            there = jacobian.any(1)
            jacobian = jacobian[there]
        if len(jacobian):
            whole = self.core(jacobian).split([each.numel() for each in self.shared])
            _add(self.shared, [g.view_as(p) for g, p in zip(whole, self.shared)])


def _add(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients):
        old = parameter.grad
        parameter.grad = gradient.clone() if old is None else old + gradient


_PLAIN = (bool, int, float, str, torch.dtype, torch.device, Tensor)
_OF_EVERY_MODULE = set(vars(nn.Module()))


def _state_of(module: nn.Module) -> dict[str, Any]:
    """What TorchJD's object remembers, as tensors and plain values: some is in plain attributes,
    which its ``state_dict`` leaves out.
    """
    tensors = {**module._parameters, **module._buffers}
    found = {name: None if t is None else t.detach().clone() for name, t in tensors.items()}
    for name, value in vars(module).items():
        if name in _OF_EVERY_MODULE:
            continue
        if isinstance(value, np.ndarray):
            found[name] = {"array": torch.from_numpy(value.copy())}
        elif isinstance(value, torch.optim.Optimizer):
            found[name] = {"optimizer": value.state_dict()}
        elif value is None or _is_plain(value):
            found[name] = value
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(each is None or _is_plain(each) for each in value)
    return isinstance(value, _PLAIN)


def _restore(module: nn.Module, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if name in module._parameters:
            module._parameters[name].data.copy_(value)  # type: ignore[union-attr]
        elif name in module._buffers:
            module._buffers[name] = value
        elif isinstance(value, dict) and "array" in value:
            setattr(module, name, value["array"].numpy())
        elif isinstance(value, dict):  # FAMO makes its optimiser at its first update
            optimizer = torch.optim.Adam(
                [module._w], lr=module.lr, weight_decay=module.weight_decay
            )
            optimizer.load_state_dict(value["optimizer"])
            setattr(module, name, optimizer)
        else:
            vars(module)[name] = value
    if getattr(module, "step", 0) and hasattr(module, "_init_optim_problem"):
        module._init_optim_problem()  # Nash-MTL makes its problem at its first step alone
