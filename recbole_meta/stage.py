"""A training file of a prepared folder and the tasks judged from it, as RecBole's Config,
dataset and loaders.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_meta.compat import contained, recbole_config, recbole_model, recbole_model_names
from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import SettingError, nearest
from recbole_meta.model import our_models
from recbole_meta.settings import load_properties, load_yaml, names, properties_folder

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


_OWNED = (
    "eval_args", "metrics", "topk", "benchmark_filename", "load_col", "dataset", "data_path",
    "prepared", "phase", "checkpoint_dir", "device", "gpu_id", "use_gpu", "seed",
    "save_dataset", "save_dataloaders",
)  # fmt: skip


def _known(choice: ModelChoice) -> set[str]:
    """The settings that a model reads."""
    from recbole.utils.argument_list import (
        evaluation_arguments,
        general_arguments,
        training_arguments,
    )

    known = {*general_arguments, *evaluation_arguments} - set(_OWNED)
    page = set(model_page(choice))
    if choice.ours and model_page(choice)["epochs"] == 0:  # a closed form: nothing is trained
        return known | (page - {"epochs"})
    return known | page | set(training_arguments)


def knows(choice: ModelChoice, key: str) -> bool:
    """Whether a model reads the setting."""
    return key in _known(choice)


def check_settings(choice: ModelChoice, settings: Mapping[str, Any]) -> None:
    """Refuse settings that nothing reads, that RecBole would ignore, or that the prepared
    folder owns.
    """
    for key in settings:
        if key in IGNORED or key.endswith("_inter_num_interval"):
            raise SettingError(
                f"'{key}' is ignored by RecBole on a prepared folder. "
                "Filter the data set, or set 'threshold' of the protocol."
            )
        if key in _OWNED:
            raise SettingError(f"'{key}' is set by the prepared folder or the command, not here.")
        if not knows(choice, key):
            raise SettingError(
                f"{choice.name} has no setting '{key}'. {nearest(key, _known(choice))}"
            )


def load_recbole_page(name: str) -> dict[str, Any]:
    """RecBole's own ``properties/model/<name>.yaml``."""
    import recbole

    path = Path(recbole.__file__).parent / "properties" / "model" / f"{name}.yaml"
    return load_yaml(path) if path.is_file() else {}


@dataclass
class Stage:
    """RecBole's objects for one training file."""

    prepared: Prepared
    config: Any
    dataset: Any
    train: Any
    data: dict[str, Any]  # phase -> loader of its tasks


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
    if prepared.feedback not in choice.feedback():
        raise SettingError(
            f"{choice.name} cannot be judged on feedback '{prepared.feedback}', only on "
            f"{', '.join(choice.feedback())}."
        )
    train = prepared.train_name(phase, k)
    about = prepared.description["train"]
    shared = all(name == about[phase] for name in about.values())
    judged = ["valid", "test"] if shared else [phase, phase]
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
        "benchmark_filename": [train, *judged],
        "checkpoint_dir": tempfile.gettempdir(),
        "prepared": str(prepared.path),
        "phase": phase,
    }
    files = [path for path in (choice.defaults(), prepared.path / "recbole.yaml") if path]
    with contained():
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import init_seed

        config = recbole_config(choice.cls, prepared.name, files, values, device)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
    named = dict(zip(judged, loaders[1:], strict=True))
    return Stage(prepared, config, loaders[0]._dataset, loaders[0], named)


def model_page(choice: ModelChoice) -> dict[str, Any]:
    """The default settings of a model: RecBole's page below ours."""
    if choice.ours:
        return load_properties("model", choice.name)
    path = choice.defaults()
    return load_recbole_page(choice.cls.__name__) | (load_yaml(path) if path else {})
