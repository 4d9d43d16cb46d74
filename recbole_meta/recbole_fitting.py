"""Fitting and judging RecBole's own models, once per k: the support is in the training file."""

import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from recbole_meta.choice import ModelChoice
from recbole_meta.compat import contained, load_recbole_checkpoint
from recbole_meta.data.prepared import Prepared
from recbole_meta.evaluation.judge import Judged
from recbole_meta.outcome import (
    Outcome,
    Progress,
    named_errors,
    silent,
    used_settings,
    valid_metric,
)
from recbole_meta.stage import Stage, load_stage
from recbole_meta.trainer import judge_model, judge_with


def judge_recbole(
    choice: ModelChoice,
    prepared: Prepared,
    k: int,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
    progress: Progress = silent,
    test: bool = True,
) -> Outcome:
    """RecBole's own model and trainer on the training file of k shots; epochs are chosen on
    valid.
    """
    stage = load_stage(choice, prepared, "valid", k, seed, settings, device)
    start = time.perf_counter()
    trainer, valid, epochs = _fit_recbole(choice, stage, progress)
    seconds = {"fit": time.perf_counter() - start}
    judged = None
    if test:
        if "test" not in stage.data:  # fit again up to the cut, as long as valid said
            stage = load_stage(choice, prepared, "test", k, seed, settings, device)
            start = time.perf_counter()
            trainer = _refit_recbole(choice, stage, epochs)
            seconds = {"fit": time.perf_counter() - start, "fit_valid": seconds["fit"]}
        start = time.perf_counter()
        with contained():
            judge = stage.judge("test", choice.name)
            judged = judge_model(trainer, judge, stage.data["test"])
        seconds["evaluate"] = time.perf_counter() - start
    used = used_settings(choice, stage.config, settings)
    return Outcome(k, valid, judged, seconds, used, epochs)


def recbole_trainer(choice: ModelChoice, config: Any, dataset: Any) -> Any:
    """Seeded as RecBole's ``run_recbole`` does it."""
    from recbole.utils import get_trainer, init_seed

    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = choice.cls(config, dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def _fit_recbole(choice: ModelChoice, stage: Stage, progress: Progress) -> tuple[Any, Judged, int]:
    """The trainer with the best epoch's model, how it is judged on valid, and that epoch's
    number from 1.
    """
    metric = valid_metric(stage.prepared)
    sign = 1 if metric.bigger else -1
    best: list[float] = [-float("inf"), 0]

    def after_epoch(epoch: int, score: float) -> None:
        if sign * score >= best[0]:
            best[:] = [sign * score, epoch + 1]
        progress(f"epoch {epoch + 1}, valid {metric.name} {score:.4f}")

    one_shot = choice.cls.type.name == "TRADITIONAL"
    with TemporaryDirectory() as folder, contained(), named_errors(choice, stage.config):
        stage.config["checkpoint_dir"] = folder
        trainer = recbole_trainer(choice, stage.config, stage.dataset)
        if one_shot:
            trainer.epochs = 1
        judge = stage.judge("valid", choice.name)
        judge_with(trainer, judge)
        trainer.fit(
            stage.train,
            stage.data["valid"],
            verbose=False,
            saved=not one_shot,
            callback_fn=after_epoch,
        )
        if not one_shot:
            load_recbole_checkpoint(trainer.saved_model_file, trainer.model)
        valid = judge_model(trainer, judge, stage.data["valid"])
    return trainer, valid, int(best[1])


def _refit_recbole(choice: ModelChoice, stage: Stage, epochs: int) -> Any:
    """The trainer after a fixed number of epochs; test is not looked at."""
    with TemporaryDirectory() as folder, contained(), named_errors(choice, stage.config):
        stage.config["checkpoint_dir"] = folder
        trainer = recbole_trainer(choice, stage.config, stage.dataset)
        trainer.epochs = epochs
        trainer.fit(stage.train, None, verbose=False, saved=False)
    return trainer
