"""A model by the name a user types, and which settings it takes: ours and RecBole's alike."""

import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from recbole_meta.compat import recbole_model, recbole_model_names
from recbole_meta.errors import SettingError, nearest
from recbole_meta.model import our_models
from recbole_meta.settings import (
    Least,
    load_properties,
    load_yaml,
    names,
    properties_folder,
    read_settings,
)

_RECBOLE = "recbole."  # prefix of RecBole's model where we have one of the same name

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

    def reads(self, settings: Mapping[str, Any], feedback: str, side: str) -> str:
        """What it reads beside the pairs with these settings, all of them; ``side``: of a task."""
        if self.ours:
            return self.cls.reads_with(self._read(settings), feedback, side)
        return "+ratings +user fields +item fields" if self.cls.type.name == "CONTEXT" else "ids"

    def has_seed(self, settings: Mapping[str, Any]) -> bool:
        """Whether it depends on the seed with these settings over its page: it trains, or draws."""
        if not is_closed_form(self, settings):
            return True
        return bool(self.ours and self._read(model_page(self) | dict(settings)).draws_at_random)

    def _read(self, settings: Mapping[str, Any]) -> Any:
        kind = typing.get_type_hints(self.cls)["settings"]
        wanted = {field.name: settings[field.name] for field in fields(kind)}
        return read_settings(kind, wanted, self.name)

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
    "eval_args", "metrics", "topk", "benchmark_filename", "load_col", "prepared", "phase",
    "checkpoint_dir", "state",
    "save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path",
    "config_file", "show_progress", "log_wandb", "valid_metric", "valid_metric_bigger",
    "repeatable",
)  # fmt: skip
# What RecBole's files of settings hold and ours do not.
_ARGUMENTS = {"gpu_id": "device", "use_gpu": "device"} | {
    name: name for name in ("model", "dataset", "protocol", "seed", "data_path", "device")
}
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")  # trainer.py:181-207
# Bounds of RecBole's numbers; any other whose default is not negative must not be, either.
_FROM_ONE = (
    "eval_step", "train_batch_size", "eval_batch_size", "sample_num", "k", "n_heads", "num_layers",
)  # fmt: skip
_WIDTHS = ("_size", "_dimension", "_dim")  # endings of names of widths, which are at least 1
_ABOVE_ZERO = ("learning_rate", "max_norm", "norm_type")
_NEGATIVE_SAMPLES = {"distribution": ("uniform", "popularity"), "sample_num": 1, "alpha": 1.0,
                     "dynamic": False, "candidate_num": 0}  # fmt: skip
_CLIPPING = {"max_norm": 1.0, "norm_type": 2.0, "error_if_nonfinite": False}
_REAL = ("reg_weight", "q", "w_max")  # integers on some of RecBole's pages


def common_settings() -> set[str]:
    """RecBole's settings of every model: what batches are made of, and how it trains."""
    from recbole.utils.argument_list import (
        evaluation_arguments,
        general_arguments,
        training_arguments,
    )

    return {*general_arguments, *evaluation_arguments, *training_arguments} - {*_OWNED, *_ARGUMENTS}


def _training_settings() -> set[str]:
    from recbole.utils.argument_list import training_arguments

    return set(training_arguments)


def is_closed_form(choice: ModelChoice, settings: Mapping[str, Any] | None = None) -> bool:
    """Whether nothing is trained by epochs, with these settings over the model's page."""
    if choice.ours:
        return bool((model_page(choice) | dict(settings or {}))["epochs"] == 0)
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
        if key in _ARGUMENTS:
            raise SettingError(
                f"'{key}' is no setting but an argument of the command and of run(): "
                f"--{_ARGUMENTS[key]}."
            )
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
    """Refuse settings as `check_keys` does, and values out of bounds or of another
    type than the default's.
    """
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
            _check_value(key, value, defaults[key], where)
        if key == "learner" and value not in _LEARNERS:
            raise SettingError(f"{where} is {value!r}. {nearest(value, _LEARNERS)}")
        if key == "epochs" and not choice.ours:
            Least(1).check(value, where)
        if key == "train_neg_sample_args":
            _check_mapping(value, _NEGATIVE_SAMPLES, where)
        if key == "clip_grad_norm":
            _check_mapping(value, _CLIPPING, where)


def _check_mapping(value: Any, known: Mapping[str, Any], where: str) -> None:
    """Settings inside a setting; a tuple in ``known`` holds what is allowed."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise SettingError(f"{where} must be 'name: value' pairs or ~, found {value!r}.")
    for key, entry in value.items():
        if key not in known:
            raise SettingError(f"{where} has no '{key}'. {nearest(str(key), known)}")
        inside, allowed = f"{where}: '{key}'", known[key]
        if not isinstance(allowed, tuple):
            _check_value(key, entry, allowed, inside)
        elif entry not in allowed:
            raise SettingError(f"{inside} is {entry!r}. {nearest(str(entry), allowed)}")


def _check_value(key: str, value: Any, default: Any, where: str) -> None:
    """RecBole's settings have no types but those of their defaults; None may become anything."""
    if default is None or isinstance(default, dict):
        return
    if isinstance(default, list) and isinstance(value, list) and default:
        for entry in value:
            _check_value(key, entry, default[0], where)
        return
    wanted = float if key in _REAL else type(default)
    kinds = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted is not bool):
        raise SettingError(f"{where} must be of type {wanted.__name__}, found {value!r}.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise SettingError(f"{where} must be a finite number, found {value!r}.")
    if key in _FROM_ONE or key.endswith(_WIDTHS):
        Least(1).check(value, where)
    elif key in _ABOVE_ZERO:
        Least(0, above=True).check(value, where)
    elif default >= 0:
        Least(0).check(value, where)


def check_feedback(choice: ModelChoice, feedback: str, side: str) -> None:
    """Refuse a model that cannot be judged on this kind of feedback, or with such tasks."""
    if choice.ours and side not in choice.cls.sides:
        raise SettingError(f"{choice.name} has no task that is a {side}: choose another protocol.")
    if feedback not in choice.feedback():
        raise SettingError(
            f"{choice.name} cannot be judged on feedback '{feedback}', only on "
            f"{', '.join(choice.feedback())}."
        )


@cache
def load_recbole_page(name: str, kind: str = "model") -> dict[str, Any]:
    """RecBole's own ``properties/<kind>/<name>.yaml``."""
    import recbole

    path = Path(recbole.__file__).parent / "properties" / kind / f"{name}.yaml"
    return load_yaml(path) if path.is_file() else {}


def model_page(choice: ModelChoice) -> dict[str, Any]:
    """The default settings of a model: RecBole's page below ours."""
    if choice.ours:
        return load_properties("model", choice.name)
    path = choice.defaults()
    return load_recbole_page(choice.cls.__name__) | (load_yaml(path) if path else {})
