"""Run a model on a protocol: the one way around RecBole's own ``quick_start``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recbole_meta.checkpoint import finish
from recbole_meta.choice import ModelChoice, check_feedback, check_settings, choose_model
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.protocol import ColdStart
from recbole_meta.errors import DataError, SettingError
from recbole_meta.fitting import judge_all
from recbole_meta.outcome import Progress, silent, thread_limit, valid_metric
from recbole_meta.saved_model import model_bytes
from recbole_meta.settings import load_properties, load_yaml
from recbole_meta.stage import Stage, check_device
from recbole_meta.tracking import (
    check_writable,
    commit,
    training_folder,
    versions,
    write_atomically,
    write_run,
)
from recbole_meta.trainer import Trainer


def run(
    model: str,
    dataset: str = "ml-100k",
    protocol: str = "user_cold_5",
    *,
    config_files: Sequence[str | Path] | str | Path = (),
    settings: Mapping[str, Any] | None = None,
    seed: int = 2020,
    data_path: str | Path = "dataset",
    prepared_path: str | Path = "dataset/prepared",
    results: str | Path = "runs",
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = silent,
    save: bool = False,
) -> dict[str, Any]:
    """Prepare, fit, judge and write one model: RecBole's keys, and ``runs``, one entry per k.

    ``settings`` win over ``config_files``, later files over earlier ones; a key of the protocol
    (``order``, ``split``, ``shots``, ..) changes the protocol, any other must be one of the
    model. ``seed`` is the model's. ``best_valid_score``, ``valid_score_bigger``,
    ``best_valid_result`` and ``test_result`` are those of the largest k. Every entry of ``runs``
    has ``shots``, ``folder``, ``valid`` and ``test``. With ``save`` the learner is kept in the file
    ``saved``, for `recbole_meta.load`.
    """
    given: dict[str, Any] = {}
    for file in [config_files] if isinstance(config_files, str | Path) else config_files:
        given |= load_yaml(Path(file))
    given |= dict(settings or {})
    choice, made, theirs = check_run(model, protocol, given, device, threads, save)
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise SettingError(f"'seed' must be from 0 to {2**32 - 1}, found {seed}.")
    check_writable(Path(results))
    prepared = open_prepared(prepare(dataset, made, protocol, data_path, prepared_path))
    runs = []
    with thread_limit(threads):
        training = training_folder(Path(results), choice.name, prepared, seed)
        saved = training / "model.pt" if save else None
        keep = None if saved is None else partial(_save, saved)
        for outcome in judge_all(choice, prepared, seed, theirs, device, progress, training, keep):
            folder = write_run(Path(results), choice, prepared, seed, outcome)
            runs.append({
                "shots": outcome.k, "folder": str(folder),
                "valid": outcome.valid.means(), "test": outcome.tested.means(),
            })  # fmt: skip
        finish(training)
    metric = valid_metric(prepared)
    return {
        "best_valid_score": runs[-1]["valid"][metric.name],
        "valid_score_bigger": metric.bigger,
        "best_valid_result": runs[-1]["valid"],
        "test_result": runs[-1]["test"],
        "model": model,
        "prepared": str(prepared.path),
        "runs": runs,
        "saved": None if saved is None else str(saved),
    }


def _save(path: Path, trainer: Trainer, stage: Stage) -> None:
    """The file of a learner that was fitted for test."""
    prepared, config = stage.prepared, stage.config
    about = {key: prepared.description[key] for key in ("dataset", "protocol")}
    about |= {"prepared": prepared.name, "sha256": prepared.sha256, "seed": config["seed"]}
    about |= {"versions": versions(), "commit": commit()}
    if prepared.side == "user":
        candidates = prepared.candidates("test")
    else:
        candidates = set(prepared.warm_rows("test")["user"])
    content = model_bytes(trainer.model, stage.dataset, prepared.feedback, candidates, about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"Cannot write the model {path}: {error}") from error


def check_run(
    model: str,
    protocol: str,
    given: Mapping[str, Any],
    device: str = "cpu",
    threads: int | None = None,
    save: bool = False,
) -> tuple[ModelChoice, ColdStart, dict[str, Any]]:
    """The model, the protocol and the model's settings, checked before any data is read."""
    ours, theirs = split_settings(protocol, given)
    choice = choose_model(model)
    check_settings(choice, theirs, protocol_settings(protocol))
    made = read_protocol(protocol, **ours)
    check_feedback(choice, made.feedback, made.task)
    if save and not choice.ours:
        raise SettingError(f"{model} cannot be saved: RecBole's models do not adapt to newcomers.")
    if save and made.task not in choice.cls.newcomers:
        raise SettingError(f"{model} cannot be saved: it knows the {made.task}s of its data only.")
    check_device(device)
    with thread_limit(threads):
        return choice, made, theirs


def protocol_settings(protocol: str) -> set[str]:
    """The names of a protocol's settings that a user may change."""
    return load_properties("protocol", protocol).keys() - {"kind", "seed"}


def split_settings(
    protocol: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the protocol, and the others; a ``seed`` is the model's."""
    known = protocol_settings(protocol)
    return (
        {key: value for key, value in given.items() if key in known},
        {key: value for key, value in given.items() if key not in known},
    )
