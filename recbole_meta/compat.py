"""RecBole 1.2.1 as a guest: the fixes it needs, a room it leaves as found, its Config and models.

``recbole.quick_start`` is never imported (it imports ray), ``get_model`` and ``init_logger`` are
never called: one reports a misspelt name as a missing lightgbm, the other writes ``log/``.
Numbers behind a file name are lines of RecBole 1.2.1.
"""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recbole_meta.errors import SettingError, nearest

if TYPE_CHECKING:  # torch and RecBole are imported where they are used: they take seconds
    import torch
    from recbole.config import Config


def numpy_config_aliases() -> None:
    """``float_``, ``complex_`` and ``unicode_``, gone in numpy 2: every Config reads them.

    config/configurator.py:629,631,635
    """
    import numpy

    for alias, kept in (("float_", "float64"), ("complex_", "complex128"), ("unicode_", "str_")):
        if not hasattr(numpy, alias):
            setattr(numpy, alias, getattr(numpy, kept))


def numpy_float() -> None:
    """``numpy.float``, gone in numpy 1.24: read by Interaction and metrics, set only by a Config.

    data/interaction.py:31, evaluator/metrics.py:90,128,131,190,196
    """
    import numpy

    if not hasattr(numpy, "float"):
        numpy.float = numpy.float64


def scipy_dok_update() -> None:
    """``dok_matrix._update``, gone in scipy 1.13: how LightGCN and its kin fill their graphs.

    general_recommender: lightgcn.py:111, ngcf.py:110, ncl.py:131, gcmc.py:174, spectralcf.py:123
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


FIXES: tuple[Callable[[], None], ...] = (numpy_config_aliases, numpy_float, scipy_dok_update)


def apply_fixes() -> None:
    """Every fix of `FIXES`; each adds what is missing and touches nothing that is there."""
    for fix in FIXES:
        fix()


# (kind, start of the message, start of the module's name). Harmless with pandas 2, whose chained
# assignments still work; pandas 3, where they do not, warns by another kind, which is not silenced.
_HARMLESS = (
    (FutureWarning, "", r"recbole\."),  # data/dataset/dataset.py:501,648,650,1217; trainer.py:235
    (DeprecationWarning, "", r"recbole\."),
    (UserWarning, r"torch\.sparse\.SparseTensor", r"recbole\."),  # lightgcn.py:125
    (DeprecationWarning, "__array_wrap__ must accept", r"numpy\."),  # numpy called on a tensor
)


class NullWriter:
    """Stands where RecBole's trainers expect a TensorBoard writer, and writes nothing."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """RecBole's loss of an epoch, or its validation score."""

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        """RecBole's settings and best validation score."""


@contextmanager
def contained() -> Iterator[None]:
    """Inside, RecBole may be used; on the way out the following is exactly as it was.

    - ``sys.argv`` holds the program's name alone: a Config takes, and evaluates, what follows it.
    - ``os.environ`` is restored: a Config overwrites ``CUDA_VISIBLE_DEVICES``.
    - Trainers made inside have a `NullWriter`, not a folder ``log_tensorboard``.
    - ``yaml.FullLoader`` reads numbers as before: every Config adds a resolver to it.
    - Warnings of known harmless kinds are silent.

    Nests. What it changes belongs to the whole process, so it is not for two threads at once.
    """
    apply_fixes()
    with warnings.catch_warnings():
        for kind, message, module in _HARMLESS:
            warnings.filterwarnings("ignore", message, kind, module)
        # Before the environment is noted down: what imports leave there (scikit-learn's) may stay.
        import recbole.trainer.trainer as trainer

        resolvers = {
            key: list(pairs) for key, pairs in yaml.FullLoader.yaml_implicit_resolvers.items()
        }
        with (
            _environment_kept(),
            _replaced(sys, "argv", sys.argv[:1] or [""]),
            _replaced(yaml.FullLoader, "yaml_implicit_resolvers", resolvers),
            _replaced(trainer, "get_tensorboard", lambda logger: NullWriter()),
        ):
            yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside; what was inherited before is inherited again after."""
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


def recbole_config(
    model: type,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> "Config":
    """RecBole's Config of a model class; later files win over earlier ones, ``settings`` over all.

    A string in ``settings`` arrives as it is; RecBole alone would evaluate it. ``device`` (cpu,
    cuda or cuda:<n>) decides alone: ``gpu_id`` and ``use_gpu`` of files and settings do not.
    """
    found = _checked_device(device)
    # A Config evaluates every string (configurator.py:131) and writes into dictionaries (436).
    given = {
        key: str.__repr__(value) if isinstance(value, str) else deepcopy(value)
        for key, value in {**(settings or {}), "gpu_id": ""}.items()
    }
    with contained():
        from recbole.config import Config

        config = Config(model, dataset, config_file_list=list(config_files), config_dict=given)
    config["device"] = found
    config["use_gpu"] = found.type == "cuda"
    return config


def _checked_device(name: str) -> "torch.device":
    import torch

    if name != "cpu":  # asking for CUDA fixes for good which GPUs this process sees
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        allowed = ["cpu", "cuda", *(f"cuda:{n}" for n in range(count))] if count else ["cpu"]
        if name not in allowed:
            raise SettingError(f"No device '{name}' here. Allowed: {', '.join(allowed)}.")
    return torch.device(name)


def recbole_model_names() -> list[str]:
    """RecBole's own general and context-aware models, sorted; imports none of them."""
    return sorted(_model_modules())


def recbole_model(name: str) -> type:
    """RecBole's own model class by its exact name; its siblings' modules are imported with it."""
    if name not in _model_modules():
        raise SettingError(f"RecBole has no model '{name}'. {nearest(name, _model_modules())}")
    from importlib import import_module

    return getattr(import_module(_model_modules()[name]), name)


@cache
def _model_modules() -> dict[str, str]:
    """Name of a model -> its module, read from the text of RecBole's two ``__init__`` files."""
    import recbole

    models = Path(recbole.__file__).parent / "model"
    return {
        name: module
        for package in ("general_recommender", "context_aware_recommender")
        for module, name in re.findall(
            r"^from (\S+) import (\w+)$",
            (models / package / "__init__.py").read_text("utf-8"),
            re.M,
        )
    }


def load_recbole_checkpoint(path: str | Path, model: "torch.nn.Module") -> None:
    """Put what RecBole's trainer saved (trainer.py:299-308) into ``model``, on the model's device.

    The file is a pickle that can run code (torch's safe reading refuses the Config in it): only
    for a file that this process has just written.
    """
    import torch

    device = next(model.parameters()).device
    checkpoint = torch.load(path, map_location=device, weights_only=False)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint["other_parameter"])
