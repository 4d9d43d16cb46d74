"""Fitting a multi-task model of behaviours, and judging it per objective."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from tempfile import gettempdir
from typing import Any, get_type_hints

from recbole_meta.compat import contained, recbole_config
from recbole_meta.data.behaviours import SPLITS, Behaviours
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.objectives import (
    ALL,
    NOVEL,
    ObjectiveJudge,
    ObjectiveJudged,
    check_metric,
)
from recbole_meta.evaluation.rows import direction
from recbole_meta.model import multitask_models
from recbole_meta.settings import load_properties, properties_folder, read_settings
from recbole_meta.trainer import Trainer

_log = logging.getLogger(__name__)


def multitask_model(name: str) -> type:
    """The class of a multi-task model by its name."""
    if name not in multitask_models():
        raise SettingError(
            f"Unknown multi-task model '{name}'. {nearest(name, multitask_models())}"
        )
    return multitask_models()[name]


def check_objective_settings(
    name: str,
    given: Mapping[str, Any],
    objectives: tuple[str, ...],
    distributions: tuple[str, ...] = (),
) -> dict[str, Any]:
    """All settings of a model: those given over its page, refused where they cannot be."""
    kind = get_type_hints(multitask_model(name))["settings"]
    values = load_properties("model", name) | dict(given)
    settings = read_settings(kind, values, name)
    multitask_model(name).check_settings(settings)
    if "stop_by" in values:
        said = distributions if multitask_model(name).distributes else ()
        check_metric(values["stop_by"], objectives, f"{name}: 'stop_by'", said)
    return {each.name: getattr(settings, each.name) for each in fields(settings)}


@dataclass
class ObjectiveFit:
    """A fitted multi-task model, and how it is judged."""

    model: Any
    valid: ObjectiveJudged
    settings: dict[str, Any]
    seconds: dict[str, float]
    epochs: int = 0  # of the judged model
    history: list[dict[str, float]] = field(default_factory=list)

    def judge(self, behaviours: Behaviours) -> ObjectiveJudge:
        """Of test."""
        return judges(behaviours, train_set(behaviours))["test"]

    def test(self, behaviours: Behaviours) -> ObjectiveJudged:
        """Judged on test, by the same model."""
        judge = self.judge(behaviours)
        start = time.perf_counter()
        self.model.eval()
        judged = judge_model(judge, self.model, type(self.model).__name__)
        self.seconds["evaluate"] = time.perf_counter() - start
        return judged


def judge_model(judge: ObjectiveJudge, model: Any, name: str) -> ObjectiveJudged:
    """By its rankings, and by its distributions where it says any."""
    say = model.distribution if getattr(model, "distributes", False) else None
    return judge.judge(model.rank, name, say)


def objective_config(
    name: str, behaviours: Behaviours, seed: int, settings: Mapping[str, Any], device: str = "cpu"
) -> Any:
    """RecBole's Config of a multi-task model; labels are loaded beside users and items."""
    inter = [behaviours.fields.user, behaviours.fields.item]
    labels = {name: objective.label for name, objective in behaviours.objectives.items()}
    said = {
        name: {"label": objective.label, "given": objective.given}
        for name, objective in behaviours.distributions.items()
    }
    categories = dict.fromkeys(each["label"] for each in said.values())
    values = {
        "seed": seed,
        "reproducibility": True,
        "show_progress": False,
        **settings,
        "load_col": {
            "inter": [*inter, *labels.values()], "user": inter[:1],
            "item": [*inter[1:], *categories],
        },
        "objectives": labels,
        "distributions": said,
        "data_path": str(behaviours.path.parent),
        "benchmark_filename": list(SPLITS),
        "checkpoint_dir": gettempdir(),
    }  # fmt: skip
    files = [properties_folder() / "model" / f"{name}.yaml", behaviours.path / "recbole.yaml"]
    return recbole_config(multitask_model(name), behaviours.name, files, values, device)


@cache
def train_set(behaviours: Behaviours) -> Any:
    """RecBole's dataset of train alone; its ids are those of all splits."""
    config = objective_config("ObjectivePop", behaviours, 0, {})
    with contained():
        from recbole.data import create_dataset

        return create_dataset(config).build()[0]


@cache
def judges(behaviours: Behaviours, dataset: Any) -> dict[str, ObjectiveJudge]:
    """Of valid and test; of valid once more without the novel slice, where epochs are chosen."""
    said = tuple(behaviours.distributions)

    def judge(split: str, *queries: str) -> ObjectiveJudge:
        return ObjectiveJudge(behaviours, split, dataset, queries, distributions=said)

    found = {split: judge(split, ALL, NOVEL) for split in SPLITS[1:]}
    return found | {"epoch": judge("valid", ALL)}


def fit_objectives(
    name: str,
    behaviours: Behaviours,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> ObjectiveFit:
    """Fitted on train, and judged on valid."""
    start = time.perf_counter()
    model, trainer, used = fit_model(name, behaviours, seed, settings, device)
    seconds = {"fit": time.perf_counter() - start}
    judge = judges(behaviours, train_set(behaviours))["valid"]
    valid = judge_model(judge, model, name)
    return ObjectiveFit(model, valid, used, seconds, trainer.best_epoch, trainer.history)


def fit_model(
    name: str,
    behaviours: Behaviours,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
    validate: Callable[[Any], float] | None = None,
) -> tuple[Any, Trainer, dict[str, Any]]:
    """The model, its trainer and all its settings; the epoch is chosen on valid by 'stop_by', or
    by ``validate`` of the model.
    """
    used = check_objective_settings(
        name, settings, tuple(behaviours.objectives), tuple(behaviours.distributions)
    )
    dataset = train_set(behaviours)
    config = objective_config(name, behaviours, seed, used, device)
    with contained():
        from recbole.data.dataloader import UserDataLoader
        from recbole.utils import init_seed

        init_seed(config["seed"], config["reproducibility"])
        model = multitask_model(name)(config, dataset).to(config["device"])
        trainer = Trainer(config, model)
        if trainer.epochs:
            if config["learner"].lower() in ("adam", "adamw"):  # one pass over tables of all items
                trainer.optimizer.param_groups[0].update(fused=True, foreach=False)
            split = "valid" if used["stop_by"].endswith(NOVEL) else "epoch"
            each = judges(behaviours, dataset)[split]
            metric = used["stop_by"]
            trainer.validate = lambda: (
                direction(metric) * judge_model(each, model, name).means()[metric]
            )
            if validate is not None:
                trainer.validate = lambda: validate(model)
            trainer.after_epoch = lambda entry: _log.info("%s %s", name, entry)
        trainer.fit(UserDataLoader(config, dataset, None, shuffle=True))
    return model, trainer, used
