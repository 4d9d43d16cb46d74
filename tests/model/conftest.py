"""Small worlds as prepared folders, and models fitted on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.choice import ModelChoice, choose_model
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.episode import Examples
from recbole_meta.fitting import fit_learner
from recbole_meta.settings import load_properties
from recbole_meta.stage import Stage, load_stage
from recbole_meta.trainer import Trainer

SMALL = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}


@dataclass(frozen=True)
class Fitted:
    """A learner after ``fit`` on the training file of a prepared folder."""

    choice: ModelChoice
    stage: Stage
    trainer: Trainer

    @property
    def model(self) -> Any:
        return self.trainer.model

    @property
    def prepared(self) -> Prepared:
        return self.stage.prepared

    @property
    def reads(self) -> str:
        """What it reads beside the pairs, with its settings."""
        settings, feedback = self.model.settings, self.prepared.feedback
        return self.choice.cls.reads_with(settings, feedback, self.model.side)

    def id_of(self, side: str) -> dict[str, int]:
        """Token -> RecBole's id of 'user' or 'item'."""
        dataset = self.stage.dataset
        field = dataset.uid_field if side == "user" else dataset.iid_field
        return dataset.field2token_id[field]

    def scores(self, support: Examples) -> torch.Tensor:
        """Scores [T, I] of T made-up tasks with this support [T, S], by their ids."""
        model, tasks = self.model, support.task
        assert tasks.min() > 0 and tasks.max() < model.n_tasks
        place = torch.zeros(model.n_tasks, dtype=torch.long)
        place[tasks] = torch.arange(len(tasks))
        model.observe(support.of(place)._replace(task=torch.arange(model.n_tasks)))
        users = tasks if model.side == "user" else torch.arange(model.n_others)
        with torch.no_grad():
            scores = model.full_sort_predict(Interaction({model.USER_ID: users}))
        scores = scores.view(len(users), -1)
        return scores if model.side == "user" else scores[:, tasks].T

    def scores_after(self, *supports: list[int]) -> np.ndarray:
        """Scores [T, I] of T tasks that had these items, by id."""
        shape = len(supports), max(1, *map(len, supports))
        x, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        for task, items in enumerate(supports):
            x[task, : len(items)] = torch.tensor(items, dtype=torch.long)
            mask[task, : len(items)] = 1
        return self.scores(Examples(x, mask, mask, torch.arange(1, len(x) + 1))).numpy()


@pytest.fixture(scope="session")
def fit() -> Callable[..., Fitted]:
    """``fit(prepared, model, **settings)``: a model fitted for the test phase."""

    def fitted(prepared: Prepared, name: str, **settings: Any) -> Fitted:
        choice = choose_model(name)
        page = load_properties("model", name)
        few = {"epochs": 1} if page["epochs"] else {}
        ids = {"item_id": True, "user_id": True, "item_fields": False, "user_fields": False}
        if page.get("item_fields"):  # these worlds have no field of users
            few |= ids
        if "member" in page:
            few |= {"member": ids}
        if "item_fields" in page and prepared.side == "item":
            few |= {"item_fields": True}
        k = prepared.shots[0]
        stage = load_stage(choice, prepared, "test", k, 2020, few | settings)
        return Fitted(choice, stage, fit_learner(choice, stage))

    return fitted


@pytest.fixture(scope="session")
def worlds(make_world) -> dict[str, Prepared]:
    """60 users with a taste for some of 30 items: a prepared folder per kind of feedback, and
    one with items as tasks.
    """
    rng = np.random.default_rng(7)
    taste = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 30)) + rng.normal(size=30)
    rows = []
    for user, liking in enumerate(taste):
        chance = np.exp(liking) / np.exp(liking).sum()
        items = rng.choice(30, rng.integers(8, 16), replace=False, p=chance)
        for time, item in enumerate(items):
            rating = int(np.clip(np.round(3.4 + liking[item] + rng.normal()), 1, 5))
            rows.append((f"u{user}", f"i{item}", rating, 100 * time))
    genres = {f"i{item}": [f"g{item % 4}", f"h{item % 3}"] for item in range(30)}
    few_raters = {"shots": [0, 1, 3], "reserve": 3}
    return {
        "items": make_world(rows, "item_cold_curve", genres, **few_raters),
        "implicit": make_world(rows, "user_cold_curve", genres, **SMALL),
        "rating": make_world(rows, "user_cold_5_rating"),
        "label": make_world(rows, "user_cold_5_label"),
    }


@pytest.fixture(scope="session")
def tiny(sample_path, tmp_path_factory):
    """The sample data set, which has ratings and user features."""
    target = tmp_path_factory.mktemp("tiny")
    protocol = read_protocol("user_cold_curve", reserve=4, horizon=3, shots=(0, 1, 3), eligible=8)
    return open_prepared(prepare("tiny", protocol, "user_cold_curve", sample_path, target))
