"""Fitting and judging a learner of ours, once for all k, since it adapts.

`judge_all` takes RecBole's models, too.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recbole_meta.checkpoint import Checkpoints, read_checkpoint
from recbole_meta.choice import ModelChoice, model_page
from recbole_meta.compat import contained
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepared import Prepared
from recbole_meta.data.support import read_support
from recbole_meta.errors import DataError
from recbole_meta.evaluation.controls import Control
from recbole_meta.evaluation.judge import Judged
from recbole_meta.outcome import (
    Outcome,
    Progress,
    named_errors,
    silent,
    used_settings,
    valid_metric,
)
from recbole_meta.recbole_fitting import judge_recbole
from recbole_meta.stage import Stage, load_stage
from recbole_meta.tracking import versions
from recbole_meta.trainer import Trainer, judge_model


def judge_all(
    choice: ModelChoice,
    prepared: Prepared,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
    progress: Progress = silent,
    folder: Path | None = None,
    keep: Callable[[Trainer, Stage], None] | None = None,
) -> Iterator[Outcome]:
    """Fit and judge a model at every k of the protocol, on valid and on test.

    ``folder``: where a learner that trains keeps its checkpoints. ``keep`` gets a learner that is
    fitted for test.
    """
    if choice.ours:
        yield from _judge_learner(choice, prepared, seed, settings, device, progress, folder, keep)
        return
    for k in prepared.shots:
        yield judge_recbole(choice, prepared, k, seed, settings, device, progress)


def _judge_learner(
    choice: ModelChoice,
    prepared: Prepared,
    seed: int,
    settings: Mapping[str, Any],
    device: str,
    progress: Progress,
    folder: Path | None,
    keep: Callable[[Trainer, Stage], None] | None,
) -> Iterator[Outcome]:
    """Fitted once per training file without support (for valid, and for test where it has its
    own).
    """
    progress("fit")
    stages: dict[str, Stage] = {}
    for phase in ("valid", "test"):
        shared = stages["valid"] if "valid" in stages and phase in stages["valid"].data else None
        stages[phase] = shared or load_stage(
            choice, prepared, phase, prepared.shots[0], seed, settings, device
        )
    fitted = fit_both(choice, stages, folder, progress)
    if keep is not None:
        keep(fitted["test"].trainer, stages["test"])
    used = used_settings(choice, stages["test"].config, settings)
    for k in prepared.shots:
        progress(f"k = {k}")
        judged, seconds = {}, {"fit": fitted["test"].seconds}
        if fitted["test"] is not fitted["valid"]:
            seconds["fit_valid"] = fitted["valid"].seconds
        for phase, stage in stages.items():
            start = time.perf_counter()
            judged[phase] = judge_learner(fitted[phase].trainer, choice, stage, phase, k)
            seconds["evaluate"] = time.perf_counter() - start
        trainer = fitted["valid"].trainer
        yield Outcome(
            k, judged["valid"], judged["test"], seconds, used, trainer.best_epoch, trainer.history
        )


@dataclass(frozen=True)
class Fit:
    """A fitted learner, and how long that took."""

    trainer: Trainer
    seconds: float


def fit_both(
    choice: ModelChoice,
    stages: Mapping[str, Stage],
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Fit]:
    """Fitted for valid, where the epochs are chosen, and for test: as long, on its own file."""
    start = time.perf_counter()
    trainer = fit_learner(choice, stages["valid"], folder=folder, progress=progress)
    fits = {"valid": Fit(trainer, time.perf_counter() - start)}
    fits["test"] = fits["valid"]
    if stages["test"] is not stages["valid"]:
        start = time.perf_counter()
        again = None if folder is None else folder / "refit"
        refit = fit_learner(choice, stages["test"], trainer.best_epoch, again, progress)
        fits["test"] = Fit(refit, time.perf_counter() - start)
    return fits


def fit_learner(
    choice: ModelChoice,
    stage: Stage,
    stop_after: int | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
    config: Any = None,
) -> Trainer:
    """A learner of ours, fitted on the stage's training file.

    The epoch is chosen on valid by the mean over k, or there are ``stop_after`` of them. With a
    ``folder`` it writes checkpoints there and goes on from them. ``config``: other settings than
    the stage's.
    """
    config = stage.config if config is None else config
    with contained(), named_errors(choice, config):
        from recbole.utils import init_seed

        init_seed(config["seed"], config["reproducibility"])
        model = choice.cls(config, stage.dataset).to(config["device"])
        trainer = Trainer(config, model)
        if trainer.epochs == 0:
            trainer.fit(stage.train)
            return trainer
        if stop_after is None:
            trainer.validate = partial(_mean_over_shots, trainer, choice, stage)
        trainer.stop_after = stop_after
        if folder is not None:
            trainer.checkpoints = Checkpoints(folder, _identity(choice, stage, config, stop_after))
        metric = valid_metric(stage.prepared).name
        trainer.after_epoch = lambda entry: progress(_said(entry, metric))
        trainer.fit(
            EpisodeDataLoader(
                stage.dataset, config["train_batch_size"], config["seed"], config["query_rows"]
            )
        )
    return trainer


def _said(entry: Mapping[str, float], metric: str) -> str:
    score = f", valid {metric} {abs(entry['valid']):.4f}" if "valid" in entry else ""
    return f"epoch {entry['epoch']}, loss {entry['loss']:.4f}{score}"


def _mean_over_shots(trainer: Trainer, choice: ModelChoice, stage: Stage) -> float:
    """The mean over k of what chooses, on valid; bigger is better."""
    metric = valid_metric(stage.prepared)
    scores = [
        judge_learner(trainer, choice, stage, "valid", k).means()[metric.name]
        for k in stage.prepared.shots
    ]
    return (1 if metric.bigger else -1) * sum(scores) / len(scores)


def _identity(
    choice: ModelChoice, stage: Stage, config: Any, stop_after: int | None
) -> dict[str, Any]:
    """What the bits of a training depend on."""
    return {
        "model": choice.name,
        "data": stage.prepared.sha256,
        "phases": sorted(stage.data),
        "seed": config["seed"],
        "settings": json.loads(json.dumps(used_settings(choice, config))),
        "trainer": {key: config[key] for key in ("learner", "clip_grad_norm", "eval_step",
                                                 "enable_amp", "enable_scaler")},
        "stop_after": stop_after,
        "device": str(config["device"]),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }  # fmt: skip


def load_learner(choice: ModelChoice, stage: Stage, path: Path) -> Trainer:
    """The learner of a checkpoint, trained on the stage's folder with the stage's settings; what
    it does not say was no setting then, and is what the model's page says.
    """
    found = read_checkpoint(path)
    wanted = _identity(choice, stage, stage.config, None)
    page = {key: value for key, value in model_page(choice).items() if key in wanted["settings"]}
    found["identity"]["settings"] = json.loads(json.dumps(page)) | found["identity"]["settings"]
    for key in ("model", "data", "phases", "seed", "settings"):
        if found["identity"][key] != wanted[key]:
            raise DataError(
                f"{path} is of another training: '{key}' is {found['identity'][key]}, not "
                f"{wanted[key]}."
            )
    with contained():
        trainer = Trainer(stage.config, choice.cls(stage.config, stage.dataset))
        trainer.model.load_state_dict(found["model"])
        trainer.model.to(stage.config["device"]).eval()
    return trainer


def judge_learner(
    trainer: Trainer,
    choice: ModelChoice,
    stage: Stage,
    phase: str,
    k: int,
    control: Control | None = None,
) -> Judged:
    """The fitted learner, adapted to the first k rows of each task of a phase, or to what a
    control makes of them.
    """
    dataset, model = stage.dataset, trainer.model
    ids = dataset.field2token_id
    tasks, others = ids[model.TASK_ID], ids[model.OTHER_ID]
    support = read_support(stage.prepared, phase, k, tasks, others, model.reads_ratings)
    model.observe(support)
    if control is not None:
        judged = torch.tensor([tasks[task] for task in stage.prepared.tasks(phase)])
        model.support = control(model.support, judged.to(model.device))
    with contained():
        return judge_model(trainer, stage.judge(phase, choice.name), stage.data[phase])
