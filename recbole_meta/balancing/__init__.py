r"""Balancers: how the losses of K objectives become one step.

By name, three kinds. A *scalarizer* makes one loss of them (TorchJD's ``torchjd.scalarization``):

.. math:: \nabla_\theta \, s(L_1, .., L_K)

An *aggregator* makes one gradient of theirs by the shared parameters (``torchjd.aggregation``);
what is an objective's own gets the gradient of its own loss:

.. math::
    \theta_{shared} : A(J), \quad J_k = \nabla_{shared} L_k, \qquad \theta_k : \nabla_{\theta_k} L_k

``BiLevel`` (bilevel.py) learns weights of the losses by held-out rows.

EW, Fixed and RLW are TorchJD's Sum, Constant and Random (Lin et al., TMLR 2022; weights that sum to
1). All losses come with the weight that the objective has in the data set's page.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torchjd.aggregation as aggregation
import torchjd.scalarization as scalarization
from torch import Tensor, nn

from recbole_meta.balancing.balancer import Balancer
from recbole_meta.balancing.bilevel import BiLevel, BiLevelSettings
from recbole_meta.balancing.of_torchjd import Aggregated, Scalarized
from recbole_meta.errors import SettingError, nearest
from recbole_meta.settings import read_settings

_SHORT = {"EW": "Sum", "Fixed": "Constant", "RLW": "Random"}
_BASES = ("Aggregator", "GramianWeightedAggregator", "Scalarizer", "WeightedAggregator")
_COUNTS = ("shape", "n_tasks")  # the number of objectives, which we fill in
_VECTORS = ("weights", "pref_vector", "min_losses", "reference", "leak")  # one per objective
_CODE = ("f", "projector", "weighting")  # no values that a page can say
_INSTALL = 'pip install -c constraints.txt -e ".[balance]"'


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


def make_balancer(name: str, settings: Mapping[str, Any], model: Any) -> Balancer:
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
