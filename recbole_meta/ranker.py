"""RecBole's own models, unmodified, under a judge of ours that asks for rankings of the catalogue.

RecBole's class and trainer fit the model; its evaluation is replaced by the judge of our models,
which chooses the epoch on valid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from recbole_meta.choice import ModelChoice, choose_model
from recbole_meta.compat import contained, load_recbole_checkpoint
from recbole_meta.errors import SettingError
from recbole_meta.outcome import named_errors
from recbole_meta.recbole_fitting import recbole_trainer

USERS = 256  # per batch of RecBole's own loaders, which are made and not used


def choose_ranker(name: str) -> ModelChoice:
    """A model of RecBole's that ranks a catalogue."""
    from recbole.model.abstract_recommender import AbstractRecommender

    choice = choose_model(name)
    if choice.ours:
        raise SettingError(f"{name} is of cold users or items: it has no place here.")
    ranks = choice.cls.full_sort_predict is not AbstractRecommender.full_sort_predict
    if not ranks or "implicit" not in choice.feedback():
        raise SettingError(f"{name} has no full_sort_predict: it does not rank a whole catalogue.")
    return choice


class Ranker:
    """A fitted model of RecBole's: its scores, whatever objective is asked."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device

    def eval(self) -> None:
        """As it is judged."""
        self.model.eval()

    def parameters(self) -> list[Any]:
        """Of the model."""
        return list(self.model.parameters())

    def rank(self, users: Tensor, objective: str) -> Tensor:
        """Scores [B, I] of the catalogue for these users, by the ids of its own dataset."""
        from recbole.data.interaction import Interaction

        batch = Interaction({self.model.USER_ID: users}).to(self.device)
        return self.model.full_sort_predict(batch).reshape(len(users), -1)

    def rank_all(self, users: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The same for each of these objectives."""
        scores = self.rank(users, names[0])
        return dict.fromkeys(names, scores)


@dataclass
class RankerFit:
    """A fitted ranker, its dataset, and the epoch (from 1) that valid chose; 0: none."""

    ranker: Ranker
    dataset: Any
    epochs: int
    history: list[dict[str, float]] = field(default_factory=list)


def fit_ranker(
    choice: ModelChoice,
    config: Any,
    loaders: Callable[[], tuple[Any, Any]],
    score: Callable[[Ranker, Any], float],
) -> RankerFit:
    """RecBole's model fitted by RecBole's trainer.

    ``loaders``: of train and valid, made once seeds are set; ``score`` of a ranker and the dataset
    of train chooses the epoch, bigger is better.
    """
    history: list[dict[str, float]] = []
    one_shot = choice.cls.type.name == "TRADITIONAL"
    with TemporaryDirectory() as folder, contained(), named_errors(choice, config):
        from recbole.utils import init_seed

        config["checkpoint_dir"] = folder
        init_seed(config["seed"], config["reproducibility"])
        train, valid = loaders()
        trainer = recbole_trainer(choice, config, train._dataset)
        ranker = Ranker(trainer.model)
        metric = config["valid_metric"].lower()

        def evaluate(*_: Any, **__: Any) -> dict[str, float]:
            ranker.eval()
            return {metric: score(ranker, train._dataset)}

        def after_epoch(epoch: int, score: float) -> None:
            history.append({"epoch": epoch + 1, "valid": score})

        trainer.evaluate = evaluate  # all that its fit asks for on valid
        if one_shot:
            trainer.epochs = 1
        trainer.fit(train, valid, verbose=False, saved=not one_shot, callback_fn=after_epoch)
        if not one_shot:
            load_recbole_checkpoint(trainer.saved_model_file, trainer.model)
    ranker.eval()
    best = [entry["epoch"] for entry in history if entry["valid"] == trainer.best_valid_score]
    return RankerFit(ranker, train._dataset, int(best[-1]) if best else 0, history)
