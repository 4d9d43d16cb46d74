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
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from torch import Tensor

from recbole_meta.choice import ModelChoice, check_settings, choose_model, model_page
from recbole_meta.compat import contained, load_recbole_checkpoint, recbole_config
from recbole_meta.data.behaviours import SPLITS, Behaviours
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.objectives import ALL, NOVEL, ObjectiveJudge
from recbole_meta.fitting import named_errors, recbole_trainer
from recbole_meta.objective_fitting import ObjectiveFit

BEHAVIOUR = "behaviour"  # the setting: an objective, or
UNION = "union"
_METRIC = "ndcg@10"  # chooses the epoch, on valid
_USERS = 256  # per batch of RecBole's own loaders, which are made and not used


def check_behaviour_settings(
    name: str, given: Mapping[str, Any], objectives: tuple[str, ...]
) -> dict[str, Any]:
    """All settings of a model of RecBole's: those given over its page, and the behaviour that it
    learns; refused where they cannot be.
    """
    choice = _choice(name)
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


def _choice(name: str) -> ModelChoice:
    """A model of RecBole's that ranks a catalogue."""
    from recbole.model.abstract_recommender import AbstractRecommender

    choice = choose_model(name)
    if choice.ours:
        raise SettingError(f"{name} is of cold users or items: it has no place here.")
    ranks = choice.cls.full_sort_predict is not AbstractRecommender.full_sort_predict
    if not ranks or "implicit" not in choice.feedback():
        raise SettingError(f"{name} has no full_sort_predict: it does not rank a whole catalogue.")
    return choice


def judged_objectives(settings: Mapping[str, Any], objectives: tuple[str, ...]) -> tuple[str, ...]:
    """What a model with these settings is judged on."""
    behaviour = settings.get(BEHAVIOUR, UNION)
    return objectives if behaviour == UNION else (behaviour,)


class BehaviourModel:
    """A model of RecBole that learned one behaviour: its scores, whatever objective is asked."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def eval(self) -> None:
        """As it is judged."""
        self.model.eval()

    def rank(self, users: Tensor, objective: str) -> Tensor:
        """Scores [B, I] of the catalogue for these users, by the ids of its own dataset."""
        from recbole.data.interaction import Interaction

        batch = Interaction({self.model.USER_ID: users}).to(self.model.device)
        return self.model.full_sort_predict(batch).reshape(len(users), -1)


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
        "eval_batch_size": (len(behaviours.catalogue) + 1) * _USERS,
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
    choice, judged = _choice(name), judged_objectives(used, objectives)
    one_shot = choice.cls.type.name == "TRADITIONAL"
    config = behaviour_config(choice, behaviours, seed, used, device)
    history: list[dict[str, float]] = []
    with TemporaryDirectory() as folder, contained(), named_errors(choice, config):
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import init_seed

        config["checkpoint_dir"] = folder
        init_seed(config["seed"], config["reproducibility"])
        train, valid, _ = data_preparation(config, create_dataset(config))
        trainer = recbole_trainer(choice, config, train._dataset)
        ranker = BehaviourModel(trainer.model)
        each = ObjectiveJudge(behaviours, "valid", train._dataset, (ALL,), judged)

        def evaluate(*_: Any, **__: Any) -> dict[str, float]:
            ranker.eval()
            return {_METRIC: each.judge(ranker.rank, name).means()[f"mean/{_METRIC}"]}

        def after_epoch(epoch: int, score: float) -> None:
            history.append({"epoch": epoch + 1, "valid": score})

        trainer.evaluate = evaluate  # all that its fit asks for on valid
        if one_shot:
            trainer.epochs = 1
        trainer.fit(train, valid, verbose=False, saved=not one_shot, callback_fn=after_epoch)
        if not one_shot:
            load_recbole_checkpoint(trainer.saved_model_file, trainer.model)
        seconds = {"fit": time.perf_counter() - start}
        ranker.eval()
        whole = ObjectiveJudge(behaviours, "valid", train._dataset, (ALL, NOVEL), judged)
        found = whole.judge(ranker.rank, name)
    best = [entry["epoch"] for entry in history if entry["valid"] == trainer.best_valid_score]
    return BehaviourFit(
        ranker, found, used, seconds, int(best[-1]) if best else 0, history, train._dataset
    )
