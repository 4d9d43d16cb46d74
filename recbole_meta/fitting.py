"""Fitting and judging one model: two ways, one outcome per k.

A learner of ours is fitted once for all k, since it adapts; a model of RecBole's is trained once
per k, since the support is in its training file.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from recbole_meta.checkpoint import Checkpoints, read_checkpoint
from recbole_meta.choice import ModelChoice, model_page
from recbole_meta.compat import contained, load_recbole_checkpoint
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepared import Prepared
from recbole_meta.data.support import read_support
from recbole_meta.errors import DataError, RecboleMetaError, SettingError
from recbole_meta.evaluation.controls import Control
from recbole_meta.evaluation.judge import Judged
from recbole_meta.stage import Stage, load_stage
from recbole_meta.tracking import versions
from recbole_meta.trainer import Trainer, judge_model, judge_with

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """No progress."""


@dataclass
class Outcome:
    """One model judged at one k."""

    k: int
    valid: Judged
    test: Judged | None
    seconds: dict[str, float]  # fit, evaluate; fit_valid where test has its own training file
    settings: dict[str, Any]
    epochs: int = 0  # epochs of the judged model
    history: list[dict[str, float]] = field(default_factory=list)  # of each epoch, for learners

    @property
    def tested(self) -> Judged:
        """What was judged on test; an error where only valid was."""
        if self.test is None:
            raise SettingError(f"Only valid was judged at k = {self.k}.")
        return self.test


@dataclass(frozen=True)
class Metric:
    """What chooses settings and epochs."""

    name: str
    bigger: bool


def valid_metric(prepared: Prepared) -> Metric:
    """NDCG@10 of rankings, MAE of ratings, AUC of labels."""
    return {
        "implicit": Metric("ndcg@10", True),
        "rating": Metric("mae", False),
        "label": Metric("auc", True),
    }[prepared.feedback]


@contextmanager
def thread_limit(threads: int | None) -> Iterator[None]:
    """At most this many threads of torch inside; None: as it is."""
    if threads is not None and threads < 1:
        raise SettingError(f"'threads' must be at least 1, found {threads}.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def named_errors(choice: ModelChoice, config: Any) -> Iterator[None]:
    """What a model raises names the model and its settings; the traceback is kept as the cause."""
    try:
        yield
    except RecboleMetaError:
        raise
    except Exception as error:
        used = ", ".join(f"{key} = {config[key]}" for key in model_page(choice))
        raise RecboleMetaError(
            f"{choice.name} stopped with {type(error).__name__}: {error} (settings: {used})"
        ) from error


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


def used_settings(
    choice: ModelChoice, config: Any, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The model's settings, and what else was given, as the Config holds them."""
    return {key: config[key] for key in model_page(choice) | dict(given or {})}
