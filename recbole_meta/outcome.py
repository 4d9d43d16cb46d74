"""What comes out of fitting and judging a model, and what every way to do so shares."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from recbole_meta.choice import ModelChoice, model_page
from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import Diverged, RecboleMetaError, SettingError
from recbole_meta.evaluation.judge import Judged

_RECBOLE_DIVERGED = "Training loss is nan"  # recbole/trainer/trainer.py, _check_nan

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
        kind = Diverged if str(error) == _RECBOLE_DIVERGED else RecboleMetaError
        raise kind(
            f"{choice.name} stopped with {type(error).__name__}: {error} (settings: {used})"
        ) from error


def used_settings(
    choice: ModelChoice, config: Any, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The model's settings, and what else was given, as the Config holds them."""
    return {key: config[key] for key in model_page(choice) | dict(given or {})}
