"""A training file of a prepared folder and the tasks judged from it, as RecBole's Config,
dataset and loaders.
"""

import tempfile
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from recbole_meta import compat
from recbole_meta.compat import contained, recbole_config, recbole_model, recbole_model_names
from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import SettingError, nearest
from recbole_meta.model import our_models
from recbole_meta.settings import (
    load_properties,
    load_yaml,
    names,
    properties_folder,
    read_settings,
)

_RECBOLE = "recbole."  # prefix of RecBole's model where we have one of the same name
_USERS_PER_BATCH = 256  # of full ranking

# What RecBole silently ignores on files that are already split.
IGNORED = (
    "val_interval",
    "filter_inter_by_user_or_item",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "unused_col",
    "unload_col",
    "rm_dup_inter",
)


@dataclass(frozen=True)
class ModelChoice:
    """A model by the name a user types."""

    name: str
    cls: type
    ours: bool

    @property
    def group(self) -> str:
        """The group it stands in in a table."""
        return self.cls.group if self.ours else "recbole"

    @property
    def reads(self) -> str:
        """What it reads beside the pairs."""
        if self.ours:
            return self.cls.reads
        return "+ratings +user fields +item fields" if self.cls.type.name == "CONTEXT" else "ids"

    def feedback(self) -> tuple[str, ...]:
        """The kinds of feedback that it can be judged on."""
        if self.ours:
            return self.cls.feedback
        return ("label",) if self.cls.type.name == "CONTEXT" else ("implicit",)

    def defaults(self) -> Path | None:
        """Its page of settings; None where RecBole's own page is all there is."""
        kind, name = ("model", self.name) if self.ours else ("recbole", self.cls.__name__)
        return properties_folder() / kind / f"{name}.yaml" if name in names(kind) else None


def choose_model(name: str) -> ModelChoice:
    """Ours by its name, else RecBole's; ``recbole.Pop`` is RecBole's where both have one."""
    if name in our_models():
        return ModelChoice(name, our_models()[name], True)
    plain = name.removeprefix(_RECBOLE)
    if plain not in recbole_model_names():
        known = [*our_models(), *recbole_model_names()]
        raise SettingError(f"Unknown model '{name}'. {nearest(plain, known)}")
    return ModelChoice(name, recbole_model(plain), False)


# What a prepared folder, the command or the judge decides.
_OWNED = (
    "eval_args", "metrics", "topk", "benchmark_filename", "load_col", "dataset", "data_path",
    "prepared", "phase", "checkpoint_dir", "device", "gpu_id", "use_gpu", "seed", "state",
    "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path",
    "config_file", "show_progress", "log_wandb", "valid_metric", "valid_metric_bigger",
    "repeatable",
)  # fmt: skip
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")  # trainer.py:181-207
_FROM_ONE = ("eval_step", "train_batch_size", "eval_batch_size")
_REAL = ("reg_weight", "q", "w_max")  # integers on some of RecBole's pages


def common_settings() -> set[str]:
    """RecBole's settings of every model: what batches are made of, and how it trains."""
    from recbole.utils.argument_list import (
        evaluation_arguments,
        general_arguments,
        training_arguments,
    )

    return {*general_arguments, *evaluation_arguments, *training_arguments} - set(_OWNED)


def _training_settings() -> set[str]:
    from recbole.utils.argument_list import training_arguments

    return set(training_arguments)


def is_closed_form(choice: ModelChoice) -> bool:
    """Whether nothing is trained by epochs."""
    if choice.ours:
        return bool(model_page(choice)["epochs"] == 0)
    return bool(choice.cls.type.name == "TRADITIONAL")


def _known(choice: ModelChoice) -> set[str]:
    """The settings that a model reads."""
    page, common = set(model_page(choice)), common_settings()
    if is_closed_form(choice):
        return (page | common) - _training_settings()
    return page | common


def knows(choice: ModelChoice, key: str) -> bool:
    """Whether a model reads the setting."""
    return key in _known(choice)


def check_keys(
    choices: Sequence[ModelChoice], keys: Iterable[str], others: Iterable[str] = ()
) -> None:
    """Refuse a setting that no model reads, that RecBole would ignore, or that is not the user's.

    ``others``: names that may be meant, too.
    """
    for key in map(str, keys):
        check_ignored(key)
        if key in _OWNED:
            raise SettingError(f"'{key}' is set by the prepared folder or the command, not here.")
        if any(knows(choice, key) for choice in choices):
            continue
        who = f"{choices[0].name} has no" if len(choices) == 1 else "None of the models has a"
        if key in _training_settings() and all(is_closed_form(choice) for choice in choices):
            closed = "it is a closed form" if len(choices) == 1 else "they are closed forms"
            raise SettingError(f"{who} setting '{key}': {closed}, nothing is trained.")
        known = set(others).union(*(_known(choice) for choice in choices))
        raise SettingError(f"{who} setting '{key}'. {nearest(key, known)}")


def check_ignored(key: str) -> None:
    """Refuse a setting that RecBole silently ignores on files that are already split."""
    if key in IGNORED or key.endswith("_inter_num_interval"):
        raise SettingError(
            f"'{key}' is ignored by RecBole on a prepared folder. "
            "Filter the data set, or set 'threshold' of the protocol."
        )


def check_settings(
    choice: ModelChoice, settings: Mapping[str, Any], others: Iterable[str] = ()
) -> None:
    """Refuse settings as `check_keys` does, and values of another type than the default's."""
    check_keys([choice], settings, others)
    page, wanted = model_page(choice), set()
    if choice.ours:
        kind = typing.get_type_hints(choice.cls)["settings"]
        wanted = {field.name for field in fields(kind)}
        values = {key: value for key, value in (page | dict(settings)).items() if key in wanted}
        read_settings(kind, values, choice.name)
    defaults = load_recbole_page("overall", "") | page
    for key, value in settings.items():
        where = f"{choice.name}: '{key}'"
        if key in defaults and key not in wanted:
            _check_type(value, defaults[key], where, real=key in _REAL)
        if key == "learner" and value not in _LEARNERS:
            raise SettingError(f"{where} is {value!r}. {nearest(value, _LEARNERS)}")
        if (key in _FROM_ONE or (key == "epochs" and not choice.ours)) and value < 1:
            raise SettingError(f"{where} must be at least 1, found {value}.")


def _check_type(value: Any, default: Any, where: str, real: bool = False) -> None:
    """RecBole's settings have no types but those of their defaults; None may become anything."""
    if default is None or (isinstance(default, dict) and value is None):
        return
    wanted = float if real else type(default)
    kinds = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted is not bool):
        raise SettingError(f"{where} must be of type {wanted.__name__}, found {value!r}.")


def check_feedback(choice: ModelChoice, feedback: str) -> None:
    """Refuse a model that cannot be judged on this kind of feedback."""
    if feedback not in choice.feedback():
        raise SettingError(
            f"{choice.name} cannot be judged on feedback '{feedback}', only on "
            f"{', '.join(choice.feedback())}."
        )


def check_device(device: str) -> None:
    """Refuse a device that is not here."""
    compat._checked_device(device)


@cache
def load_recbole_page(name: str, kind: str = "model") -> dict[str, Any]:
    """RecBole's own ``properties/<kind>/<name>.yaml``."""
    import recbole

    path = Path(recbole.__file__).parent / "properties" / kind / f"{name}.yaml"
    return load_yaml(path) if path.is_file() else {}


@dataclass
class Stage:
    """RecBole's objects for one training file."""

    prepared: Prepared
    config: Any
    dataset: Any
    train: Any
    data: dict[str, Any]  # phase -> loader of its tasks


def _judged_from(prepared: Prepared, phase: str) -> list[str]:
    """The two phases that RecBole loads beside a training file."""
    about = prepared.description["train"]
    shared = all(name == about[phase] for name in about.values())
    return ["valid", "test"] if shared else [phase, phase]


def stage_config(
    choice: ModelChoice,
    prepared: Prepared,
    phase: str,
    k: int,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> Any:
    """RecBole's Config of a model on the training file of (phase, k)."""
    check_feedback(choice, prepared.feedback)
    n_items = prepared.description["counts"]["items"] + 1
    values = {
        "eval_batch_size": n_items * _USERS_PER_BATCH
        if prepared.feedback == "implicit"
        else 65_536,
        "seed": seed,
        "reproducibility": True,
        "show_progress": False,
        **settings,
        "data_path": str(prepared.path.parent),
        "benchmark_filename": [prepared.train_name(phase, k), *_judged_from(prepared, phase)],
        "checkpoint_dir": tempfile.gettempdir(),
        "prepared": str(prepared.path),
        "phase": phase,
    }
    files = [path for path in (choice.defaults(), prepared.path / "recbole.yaml") if path]
    return recbole_config(choice.cls, prepared.name, files, values, device)


def load_stage(
    choice: ModelChoice,
    prepared: Prepared,
    phase: str,
    k: int,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> Stage:
    """Read the training file of (phase, k) and the phases that are judged from it, as RecBole
    does.
    """
    config = stage_config(choice, prepared, phase, k, seed, settings, device)
    with contained():
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import init_seed

        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
    named = dict(zip(_judged_from(prepared, phase), loaders[1:], strict=True))
    return Stage(prepared, config, loaders[0]._dataset, loaders[0], named)


def model_page(choice: ModelChoice) -> dict[str, Any]:
    """The default settings of a model: RecBole's page below ours."""
    if choice.ours:
        return load_properties("model", choice.name)
    path = choice.defaults()
    return load_recbole_page(choice.cls.__name__) | (load_yaml(path) if path else {})
