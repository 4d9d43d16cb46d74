r"""Balancers: how the losses of K objectives become one step.

By name, three kinds. A *scalarizer* makes one loss of them (TorchJD's ``torchjd.scalarization``):

.. math:: \nabla_\theta \, s(L_1, .., L_K)

An *aggregator* makes one gradient of theirs by the shared parameters (``torchjd.aggregation``);
what is an objective's own gets the gradient of its own loss:

.. math::
    \theta_{shared} : A(J), \quad J_k = \nabla_{shared} L_k, \qquad \theta_k : \nabla_{\theta_k} L_k

``BiLevel`` learns weights w by what they do to the loss of held-out rows. After a step of SGD with
the rate alpha on the weighted losses, :math:`\theta' = \theta - \alpha \sum_k w_k \nabla L_k`,

.. math:: \frac{d L^{val}(\theta')}{d w_k} = -\alpha \, \nabla L^{val}(\theta') \cdot \nabla L_k

which is exact (Liu et al., Auto-Lambda, TMLR 2022, approximates it by finite differences). The
weights are a softmax times K, of one vector or of a linear map of the user's embedding.

EW, Fixed and RLW are TorchJD's Sum, Constant and Random (Lin et al., TMLR 2022; weights that sum to
1). All losses come with the weight that the objective has in the data set's page.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torchjd.aggregation as aggregation
import torchjd.scalarization as scalarization
from torch import Tensor, nn

from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.settings import Positive, Size, read_settings

_SHORT = {"EW": "Sum", "Fixed": "Constant", "RLW": "Random"}
_BASES = ("Aggregator", "GramianWeightedAggregator", "Scalarizer", "WeightedAggregator")
_COUNTS = ("shape", "n_tasks")  # the number of objectives, which we fill in
_VECTORS = ("weights", "pref_vector", "min_losses", "reference", "leak")  # one per objective
_CODE = ("f", "projector", "weighting")  # no values that a page can say
_INSTALL = 'pip install -c constraints.txt -e ".[balance]"'

Scale = Callable[[Tensor], Tensor]


def balancer_names() -> list[str]:
    """Every name that ``make_balancer`` knows, sorted."""
    return sorted({*_SHORT, "BiLevel", *_kinds()})


def _kinds() -> dict[str, type]:
    """TorchJD's by name; of two with the same name the scalarizer, which needs one backward."""
    found: dict[str, type] = {}
    for module, base in ((aggregation, aggregation.Aggregator),
                         (scalarization, scalarization.Scalarizer)):  # fmt: skip
        for name in module.__all__:
            kind = getattr(module, name)
            if issubclass(kind, base) and name not in _BASES:
                found[name] = kind
    return found


def make_balancer(name: str, settings: Mapping[str, Any], model: Any) -> "Balancer":
    """The balancer of this name for a model's objectives, refused where it cannot be."""
    made = check_balancer(name, settings, list(model.objectives), model.device)
    if isinstance(made, BiLevelSettings):
        return BiLevel(made, model)
    if isinstance(made, scalarization.Scalarizer):
        return Scalarized(made, model)
    return Aggregated(made, model, any(key in settings for key in _VECTORS))


def check_balancer(
    name: str, settings: Mapping[str, Any], objectives: list[str], device: Any = "cpu"
) -> Any:
    """TorchJD's object, or BiLevel's settings; refused where they cannot be."""
    if name == "BiLevel":
        return read_settings(BiLevelSettings, settings, "Balancer 'BiLevel'")
    kinds, known = _kinds(), _SHORT.get(name, name)
    if known not in kinds:
        said = nearest(name, balancer_names())
        raise SettingError(f"Unknown balancer '{name}'. {said}")
    return _make(name, kinds[known], dict(settings), objectives, device)


def _make(
    name: str, kind: type, settings: dict[str, Any], objectives: list[str], device: Any
) -> nn.Module:
    """TorchJD's object with these settings."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    taken = [key for key in parameters if key != "self"]
    allowed = [key for key in taken if key not in (*_COUNTS, *_CODE)]
    for key in settings:
        if key not in allowed:
            raise SettingError(f"Balancer '{name}' has no setting '{key}'. {nearest(key, allowed)}")
    for key in allowed:
        if key not in settings and parameters[key].default is inspect.Parameter.empty:
            raise SettingError(f"Balancer '{name}': missing setting '{key}'.")
    values = {
        key: _vector(name, key, value, objectives, device) if key in _VECTORS else value
        for key, value in settings.items()
    }
    values |= {key: len(objectives) for key in _COUNTS if key in taken}
    try:
        return kind(**values)
    except ImportError as error:
        raise SettingError(f"Balancer '{name}' needs an extra: {_INSTALL} ({error})") from error
    except (TypeError, ValueError) as error:
        raise SettingError(f"Balancer '{name}': {error}") from error


def _vector(name: str, key: str, value: Any, objectives: list[str], device: Any) -> Tensor | None:
    """One number per objective, in their order, from a mapping or a list."""
    if value is None:
        return None
    about = f"Balancer '{name}': '{key}'"
    if isinstance(value, Mapping):
        for each in value:
            if each not in objectives:
                raise SettingError(f"{about} names '{each}'. {nearest(str(each), objectives)}")
        missing = [each for each in objectives if each not in value]
        if missing:
            raise SettingError(f"{about} says nothing of the objective '{missing[0]}'.")
        value = [value[each] for each in objectives]
    numbers = isinstance(value, list | tuple) and all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value
    )
    if not numbers or len(value) != len(objectives):
        raise SettingError(
            f"{about} must be one number per objective, {', '.join(objectives)}; found {value!r}."
        )
    return torch.tensor([float(each) for each in value], device=device)


class Balancer:
    """What the trainer does with the losses of a batch; a subclass defines ``backward``."""

    core: nn.Module  # what has a state

    def __init__(self, model: Any) -> None:
        self.model = model
        self.names = list(model.objectives)

    def parameters(self) -> list[nn.Parameter]:
        """What the trainer's optimiser learns beside the model."""
        return []

    def losses(self, interaction: Any, held_out: Any = None) -> dict[str, Tensor]:
        """The losses of a batch; ``held_out``: labelled rows that the model is not trained on."""
        return self.model.losses(interaction)

    def vector(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K], each with its objective's weight."""
        weights = [self.model.objectives[name].weight for name in self.names]
        return torch.stack([w * losses[name] for w, name in zip(weights, self.names)])

    def backward(self, losses: Tensor, scale: Scale) -> None:
        """Add to the gradients of all parameters from losses [K]; ``scale``: of half precision."""
        raise NotImplementedError(f"{type(self).__name__} must define backward(losses, scale).")

    def after_step(self, interaction: Any) -> None:
        """The parameters have moved by the batch's step."""

    def end_epoch(self) -> None:
        """An epoch's last step is done."""

    def state_dict(self) -> dict[str, Any]:
        return {path: _state_of(module) for path, module in self.core.named_modules()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for path, module in self.core.named_modules():
            _restore(module, state[path])


class Scalarized(Balancer):
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


class Aggregated(Balancer):
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


@dataclass(frozen=True)
class BiLevelSettings:
    inner_lr: Positive  # alpha, of the step of SGD that the weights are judged by
    meta_lr: Positive  # of Adam on what makes the weights
    conditioned: Literal["none", "user"]  # none: one vector of weights | user: of his embedding
    rows: Size  # held-out rows that are drawn for a step


class BiLevel(Balancer):
    """Weights that are learned by the loss of held-out rows."""

    def __init__(self, settings: BiLevelSettings, model: Any) -> None:
        super().__init__(model)
        self.settings = settings
        width = self._user(torch.tensor([0], device=model.device)).shape[1]
        self.core = nn.Linear(width, len(self.names)).to(model.device)
        nn.init.zeros_(self.core.weight)
        nn.init.zeros_(self.core.bias)
        self.optimizer = torch.optim.Adam(self.core.parameters(), lr=settings.meta_lr)

    def _user(self, users: Tensor) -> Tensor:
        """What the weights of a user are made of, [B, W]; nothing, where they are all the same."""
        if self.settings.conditioned == "none":
            return next(self.model.parameters()).new_zeros(len(users), 0)
        table = getattr(self.model, "embed", None)
        if table is None:
            raise SettingError(
                f"Balancer 'BiLevel': 'conditioned' is user, but {type(self.model).__name__} has "
                "no table of users that all objectives share. Set it to none."
            )
        return table.user(users).detach()

    def weights(self, users: Tensor) -> Tensor:
        """[B, K] positive, with the sum K."""
        return len(self.names) * self.core(self._user(users)).softmax(-1)

    def weighted(self, interaction: Any) -> dict[str, Tensor]:
        """The losses, each row by the weights of its user."""
        users = interaction[self.model.USER_ID].to(self.model.device)
        return self._means(self.weights(users), self.model.row_losses(interaction))

    def _means(self, w: Tensor, found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {
            name: (w[:, place] * found[name][0]).sum() / found[name][1].sum().clamp(min=1)
            for place, name in enumerate(self.names)
        }

    def meta_gradient(self, interaction: Any, held_out: Any) -> list[Tensor]:
        """The gradient of the held-out loss after the step, by what makes the weights."""
        return self._meta_gradient(self.weighted(interaction), held_out)

    def _meta_gradient(self, weighted: Mapping[str, Tensor], held_out: Any) -> list[Tensor]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        loss = self.vector(weighted).sum()
        inner = torch.autograd.grad(
            loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        rate = self.settings.inner_lr
        with _moved(parameters, [-rate * each.detach() for each in inner]):
            outer = torch.autograd.grad(
                self.model.calculate_loss(held_out), parameters,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        product = sum((g * v).sum() for g, v in zip(inner, outer))
        # The graph stays: the step is taken by the same losses of rows.
        learned = list(self.core.parameters())
        return list(torch.autograd.grad(-rate * product, learned, retain_graph=True))

    def losses(self, interaction: Any, held_out: Any = None) -> dict[str, Tensor]:
        if held_out is None:
            raise DataError("Balancer 'BiLevel' learns from held-out rows, and none were given.")
        drawn = held_out[torch.randint(len(held_out), (self.settings.rows,))]
        users = interaction[self.model.USER_ID].to(self.model.device)
        found = self.model.row_losses(interaction)
        weighted = self._means(self.weights(users), found)
        gradients = self._meta_gradient(weighted, drawn.to(self.model.device))
        for parameter, gradient in zip(self.core.parameters(), gradients):
            parameter.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            w = self.weights(users)
        return self._means(w, found)

    def backward(self, losses: Tensor, scale: Scale) -> None:
        scale(losses.sum()).backward()

    def state_dict(self) -> dict[str, Any]:
        return {"core": self.core.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.core.load_state_dict(state["core"])
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _moved(parameters: list[nn.Parameter], steps: list[Tensor]) -> Any:
    """Parameters after these steps; the same bits as before when it is over."""
    kept = [each.data for each in parameters]
    try:
        for parameter, old, step in zip(parameters, kept, steps):
            parameter.data = old + step
        yield
    finally:
        for parameter, old in zip(parameters, kept):
            parameter.data = old


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
