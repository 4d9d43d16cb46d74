"""A training file of a prepared folder and the tasks judged from it, as RecBole's Config,
dataset and loaders.
"""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from recbole_meta import compat
from recbole_meta.choice import ModelChoice, check_feedback
from recbole_meta.compat import contained, recbole_config
from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import DataError, RecboleMetaError
from recbole_meta.evaluation.judge import Judge

_log = logging.getLogger(__name__)

_USERS_PER_BATCH = 256  # of full ranking


def check_device(device: str) -> None:
    """Refuse a device that is not here."""
    compat._checked_device(device)


@dataclass
class Stage:
    """RecBole's objects for one training file."""

    prepared: Prepared
    config: Any
    dataset: Any
    train: Any
    data: dict[str, Any]  # phase -> loader of its tasks
    judges: dict[str, Judge] = field(default_factory=dict)  # of a phase, made once for all epochs

    def judge(self, phase: str, model: str) -> Judge:
        """Of the tasks of a phase, as new; ``model`` is named in its errors."""
        if phase not in self.judges:
            self.judges[phase] = Judge(self.prepared, phase, self.dataset, model)
        judge = self.judges[phase]
        judge.model = model
        judge.reset()
        return judge


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
    check_feedback(choice, prepared.feedback, prepared.side)
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


@contextmanager
def _reading(choice: ModelChoice, prepared: Prepared) -> Iterator[None]:
    """What RecBole raises while it reads names the model and the prepared folder."""
    try:
        yield
    except RecboleMetaError:
        raise
    except Exception as error:
        raise RecboleMetaError(
            f"{choice.name}: RecBole cannot read the prepared folder {prepared.path}: "
            f"{type(error).__name__}: {error}"
        ) from error


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
    start = time.perf_counter()
    with _reading(choice, prepared):
        config = stage_config(choice, prepared, phase, k, seed, settings, device)
        judged_from = _judged_from(prepared, phase)
        if prepared.feedback == "implicit":
            _check_histories(prepared, {prepared.train_name(phase, k), *judged_from})
        with contained():
            from recbole.data import create_dataset, data_preparation
            from recbole.utils import init_seed

            init_seed(config["seed"], config["reproducibility"])
            dataset = create_dataset(config)
            loaders = data_preparation(config, dataset)
    named = dict(zip(judged_from, loaders[1:], strict=True))
    train = loaders[0]._dataset
    tasks = ", ".join(f"{len(prepared.tasks(phase))} {phase}" for phase in named)
    _log.info(
        "%s reads %s of %s: %d rows, %d users, %d items, tasks: %s (%.1f s)",
        choice.name, prepared.train_name(phase, k), prepared.name, len(train),
        train.user_num - 1, train.item_num - 1, tasks, time.perf_counter() - start,
    )  # fmt: skip
    return Stage(prepared, config, train, loaders[0], named)


def _check_histories(prepared: Prepared, files: set[str]) -> None:
    """Refuse a user who has every item: RecBole draws an item that a user has not, also for
    models that need none.
    """
    n_items = prepared.description["counts"]["items"]
    items_of = pd.concat([prepared.rows(name)["user"] for name in files]).value_counts()
    if items_of.iloc[0] >= n_items:
        raise DataError(
            f"{prepared.name}: user '{items_of.index[0]}' has all {n_items} items, and RecBole "
            "needs one that the user has not. Leave the user out of the data set."
        )
