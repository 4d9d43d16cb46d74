"""RecBole's own models, unmodified, where several behaviours are judged.

A model learns one behaviour, from that behaviour's files alone, or the union of all of them: the
setting ``behaviour`` says which. RecBole's class and trainer fit it; its evaluation is replaced by
the judge of our models, which chooses the epoch by NDCG@10 on valid and hides the same items of the
same users. A model of one behaviour is judged on that one; a model of the union gives every
objective the same scores, and its epoch is chosen by the mean over objectives.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from tempfile import gettempdir
from typing import Any

from recbole_meta.choice import ModelChoice, check_settings, model_page
from recbole_meta.compat import contained, recbole_config
from recbole_meta.data.behaviours import SPLITS, Behaviours
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.objectives import ALL, NOVEL, ObjectiveJudge
from recbole_meta.objective_fitting import ObjectiveFit
from recbole_meta.ranker import USERS, Ranker, choose_ranker, fit_ranker

BEHAVIOUR = "behaviour"  # the setting: an objective, or
UNION = "union"
_METRIC = "ndcg@10"  # chooses the epoch, on valid


def check_behaviour_settings(
    name: str, given: Mapping[str, Any], objectives: tuple[str, ...]
) -> dict[str, Any]:
    """All settings of a model of RecBole's: those given over its page, and the behaviour that it
    learns; refused where they cannot be.
    """
    choice = choose_ranker(name)
    settings = dict(given)
    behaviour = settings.pop(BEHAVIOUR, None)
    if behaviour not in (*objectives, UNION):
        known = (*objectives, UNION)
        raise SettingError(
            f"{name}: '{BEHAVIOUR}' is {behaviour!r}: it says what the model learns. "
            f"{nearest(str(behaviour), known)}"
        )
    check_settings(choice, settings)
    return model_page(choice) | settings | {BEHAVIOUR: behaviour}


def judged_objectives(settings: Mapping[str, Any], objectives: tuple[str, ...]) -> tuple[str, ...]:
    """What a model with these settings is judged on."""
    behaviour = settings.get(BEHAVIOUR, UNION)
    return objectives if behaviour == UNION else (behaviour,)


@dataclass
class BehaviourFit(ObjectiveFit):
    """A fitted model of RecBole's; its ids are those of its own dataset."""

    dataset: Any = None

    def judge(self, behaviours: Behaviours) -> ObjectiveJudge:
        judged = judged_objectives(self.settings, tuple(behaviours.objectives))
        return ObjectiveJudge(behaviours, "test", self.dataset, (ALL, NOVEL), judged)


def behaviour_config(
    choice: ModelChoice,
    behaviours: Behaviours,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> Any:
    """RecBole's Config of a model on the files of the behaviour that it learns."""
    behaviour = settings[BEHAVIOUR]
    files = [split if behaviour == UNION else f"{split}_{behaviour}" for split in SPLITS]
    values = {
        "eval_batch_size": (len(behaviours.catalogue) + 1) * USERS,
        "seed": seed,
        "reproducibility": True,
        "show_progress": False,
        **{key: value for key, value in settings.items() if key != BEHAVIOUR},
        "data_path": str(behaviours.path.parent),
        "benchmark_filename": files,
        "checkpoint_dir": gettempdir(),
    }
    pages = [path for path in (choice.defaults(), behaviours.path / "recbole.yaml") if path]
    return recbole_config(choice.cls, behaviours.name, pages, values, device)


def fit_behaviour(
    name: str,
    behaviours: Behaviours,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> BehaviourFit:
    """RecBole's model fitted by RecBole's trainer, and judged on valid."""
    start = time.perf_counter()
    objectives = tuple(behaviours.objectives)
    used = check_behaviour_settings(name, settings, objectives)
    choice, judged = choose_ranker(name), judged_objectives(used, objectives)
    config = behaviour_config(choice, behaviours, seed, used, device)

    def loaders() -> tuple[Any, Any]:
        from recbole.data import create_dataset, data_preparation

        return data_preparation(config, create_dataset(config))[:2]

    def score(ranker: Ranker, dataset: Any) -> float:
        return _judge(dataset).judge(ranker.rank, name).means()[f"mean/{_METRIC}"]

    @cache
    def _judge(dataset: Any) -> ObjectiveJudge:
        return ObjectiveJudge(behaviours, "valid", dataset, (ALL,), judged)

    fit = fit_ranker(choice, config, loaders, score)
    seconds = {"fit": time.perf_counter() - start}
    whole = ObjectiveJudge(behaviours, "valid", fit.dataset, (ALL, NOVEL), judged)
    with contained():
        found = whole.judge(fit.ranker.rank, name)
    return BehaviourFit(
        fit.ranker, found, used, seconds, fit.epochs, fit.history, dataset=fit.dataset
    )
