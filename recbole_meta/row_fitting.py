"""Fitting a multi-task model of rows, and judging it per objective."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from tempfile import gettempdir
from typing import Any, get_type_hints

import numpy as np

from recbole_meta.balancing import check_balancer
from recbole_meta.compat import contained, recbole_config
from recbole_meta.data.objectives import described
from recbole_meta.data.row_loader import LabelledRows, RowDataLoader
from recbole_meta.data.row_splits import SPLITS, RowSplits
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.rows import (
    RANKING,
    RowJudge,
    RowsJudged,
    check_row_metric,
    direction,
)
from recbole_meta.model import row_models
from recbole_meta.settings import load_properties, properties_folder, read_settings
from recbole_meta.trainer import Trainer

_log = logging.getLogger(__name__)
_HELD_OUT = 0.1  # of train, what a balancer learns its weights from


def row_model(name: str) -> type:
    """The class of a model of rows by its name."""
    if name not in row_models():
        raise SettingError(f"Unknown model of rows '{name}'. {nearest(name, row_models())}")
    return row_models()[name]


def check_row_settings(name: str, given: Mapping[str, Any], folder: RowSplits) -> dict[str, Any]:
    """All settings of a model: those given over its page, refused where they cannot be."""
    kind = get_type_hints(row_model(name))["settings"]
    values = load_properties("model", name) | dict(given)
    settings = read_settings(kind, values, name)
    if "stop_by" in values:
        check_row_metric(values["stop_by"], folder.objectives, f"{name}: 'stop_by'")
    if "balancer" in values:
        check_balancer(values["balancer"], values["balancer_settings"], list(folder.objectives))
    return {each.name: getattr(settings, each.name) for each in fields(settings)}


@dataclass
class RowFit:
    """A fitted model of rows, and how it is judged."""

    model: Any
    valid: RowsJudged
    settings: dict[str, Any]
    seconds: dict[str, float]
    epochs: int = 0  # of the judged model
    history: list[dict[str, float]] = field(default_factory=list)

    def test(self, folder: RowSplits, most_users: int | None = None) -> RowsJudged:
        """Judged on test, by the same model; so many users rank, ~: all."""
        start = time.perf_counter()
        self.model.eval()
        judged = judge_of(folder, "test", most_users).judge(self.model)
        self.seconds["evaluate"] = time.perf_counter() - start
        return judged


def row_config(
    name: str, folder: RowSplits, seed: int, settings: Mapping[str, Any], device: str = "cpu"
) -> Any:
    """RecBole's Config of a model of rows; labels are no columns of its dataset."""
    values = {
        "seed": seed,
        "reproducibility": True,
        "show_progress": False,
        **settings,
        "objectives": described(folder.objectives),
        "data_path": str(folder.path.parent),
        "benchmark_filename": list(SPLITS),
        "checkpoint_dir": gettempdir(),
    }
    files = [properties_folder() / "model" / f"{name}.yaml", folder.path / "recbole.yaml"]
    return recbole_config(row_model(name), folder.name, files, values, device)


@cache
def row_dataset(folder: RowSplits) -> Any:
    """RecBole's dataset of train alone; its ids are those of all splits."""
    config = row_config("ObjectiveRate", folder, 0, {})
    with contained():
        from recbole.data import create_dataset

        return create_dataset(config).build()[0]


@cache
def judge_of(folder: RowSplits, split: str, most_users: int | None) -> RowJudge:
    """Of a split; the ranking users capped where epochs are chosen."""
    return RowJudge(folder, split, row_dataset(folder), most_users)


def fit_rows(
    name: str,
    folder: RowSplits,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
    most_users: int | None = None,
) -> RowFit:
    """Fitted on train; the epoch is chosen on valid by the setting 'stop_by'.

    ``most_users``: how many users rank on valid between epochs; ~: all.
    """
    used = check_row_settings(name, settings, folder)
    dataset = row_dataset(folder)
    start = time.perf_counter()
    config = row_config(name, folder, seed, used, device)
    config["categories"] = {
        each: dataset.num(objective.label) - 1
        for each, objective in folder.objectives.items()
        if objective.type == "distribution"
    }
    with contained():
        from recbole.utils import init_seed

        init_seed(config["seed"], config["reproducibility"])
        model = row_model(name)(config, dataset).to(config["device"])
        trainer = Trainer(config, model)
        rows = LabelledRows(folder, "train", dataset)
        if trainer.epochs:
            _check_classes(rows, used.get("negatives", 0), name)
        loader = RowDataLoader(
            rows, used.get("train_batch_size", 1), used.get("negatives", 0), seed, dataset.item_num
        )
        if used.get("balancer") == "BiLevel":
            trainer.held_out = loader.hold_out(_HELD_OUT)
        if trainer.epochs:
            judge = judge_of(folder, "valid", most_users)
            validation = _Validation(judge, model, trainer, used["stop_by"])
            trainer.validate = validation.score
            trainer.after_epoch = lambda entry: _log.info("%s %s", name, entry)
        trainer.fit(loader)
    seconds = {"fit": time.perf_counter() - start}
    valid = validation.best if trainer.epochs else None
    if valid is None:
        valid = judge_of(folder, "valid", most_users).judge(model)
    return RowFit(model, valid, used, seconds, trainer.best_epoch, trainer.history)


class _Validation:
    """Judges on valid between epochs, and keeps what the best one did where all was judged."""

    def __init__(self, judge: RowJudge, model: Any, trainer: Trainer, metric: str) -> None:
        self.judge, self.model, self.trainer, self.metric = judge, model, trainer, metric
        self.ranks = metric.split("/")[1] in RANKING
        self.best: RowsJudged | None = None

    def score(self) -> float:
        """What chooses the epoch, bigger: better; refused where valid has none."""
        judged = self.judge.judge(self.model, rankings=self.ranks)
        value = direction(self.metric) * judged.means()[self.metric]
        if np.isnan(value):
            raise SettingError(
                f"'{self.metric}' cannot choose: valid has one class, so no user has it."
            )
        if self.ranks and value > self.trainer.best_score:
            self.best = judged
        return value


def _check_classes(rows: LabelledRows, negatives: int, name: str) -> None:
    """Refuse an objective whose rows are all 1 where no row is drawn that would be 0."""
    for objective, about in rows.objectives.items():
        if about.type == "binary" and about.given is None and not negatives:
            label = rows.labels[objective]
            if not (label == 0).any():
                raise SettingError(
                    f"{name}: 'negatives' is 0, and objective '{objective}' is 1 in all rows of "
                    "train: nothing would say what is not. It must be at least 1."
                )
