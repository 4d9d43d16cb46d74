"""RecBole's objects for a training file: what it cannot read is said in our words."""

import shutil

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.choice import choose_model
from recbole_meta.errors import DataError, RecboleMetaError, SettingError
from recbole_meta.stage import load_stage

SHORT = {"shots": 2, "folds": 0}
GLOBAL = {"shots": [1], "reserve": 2, "horizon": 2, "eligible": 4, "blocks": 3, "split": 3}


def world(all_of: str | None = None) -> list[tuple]:
    """Eight of ten items for each of 30 users; ``all_of`` has every item."""
    return [
        (f"u{u:02}", f"i{i}", 1 + (u + i) % 5, 100 * u + i)
        for u in range(30)
        for i in range(10)
        if f"u{u:02}" == all_of or (u + i) % 10 < 8
    ]


def loaded(prepared, model: str = "Pop", **settings):
    return load_stage(choose_model(model), prepared, "test", prepared.shots[-1], 1, settings)


@pytest.mark.parametrize("model", ["Pop", "PriorRidge", "BPR"])
@pytest.mark.parametrize("role", ["warm", "test"])
def test_a_user_who_has_every_item_is_named(make_world, model, role):
    prepared = make_world(world(), "user_cold_5", **SHORT)
    cold = {*prepared.tasks("valid"), *prepared.tasks("test")}
    users = sorted({user for user, *_ in world()} - cold)
    users = prepared.tasks("test") if role == "test" else users
    whole = make_world(world(users[3]), "user_cold_5", **SHORT)
    with pytest.raises(DataError, match=f"user '{users[3]}' has all 10 items, and RecBole needs o"):
        loaded(whole, model)
    assert loaded(prepared, model).dataset.item_num == 11


def test_what_is_not_read_together_is_not_counted_together(make_world):
    """A test user's reserve is not read, nor are rows of warm users after the cut."""
    prepared = make_world(world("u29"), "user_cold_global", **GLOBAL)
    assert "u29" in prepared.tasks("test")
    assert loaded(prepared).dataset.item_num == 11


def test_labels_need_no_item_that_a_user_has_not(make_world):
    prepared = make_world(world("u07"), "user_cold_5_label", **SHORT)
    assert len(loaded(prepared, "Constant").train) > 0


def test_what_recbole_raises_names_the_model_and_the_folder(make_world, tmp_path):
    prepared = make_world(world(), "user_cold_5", **SHORT)
    shutil.rmtree(prepared.path)
    with pytest.raises(
        RecboleMetaError, match=rf"^BPR: RecBole .* {prepared.path}: \w+: "
    ) as found:
        loaded(prepared, "BPR")
    assert found.value.__cause__ is not None


def test_our_own_errors_stay_as_they_are(make_world):
    prepared = make_world(world(), "user_cold_5", **SHORT)
    with pytest.raises(
        SettingError, match=r"^UserItemBias cannot be judged on feedback 'implicit'"
    ):
        loaded(prepared, "UserItemBias")


def test_a_judge_is_made_once_for_a_phase_and_handed_out_as_new(make_world):
    """Nothing of an evaluation that was broken off, or of another model, is left."""
    prepared = make_world(world(), "user_cold_5", **SHORT)
    stage = loaded(prepared)
    judge = stage.judge("test", "Pop")
    users = torch.tensor(
        [stage.dataset.field2token_id["user_id"][u] for u in prepared.tasks("test")]
    )
    scores, batch = torch.rand(len(users), 11), Interaction({"user_id": users})
    judge.eval_batch_collect(scores.clone(), batch, None, None)
    whole = judge.get_data_struct()
    judge.eval_batch_collect(scores[:2].flip(1), batch[:2], None, None)  # and no more
    again = stage.judge("test", "Random")
    assert again is judge
    with pytest.raises(DataError, match=r"^Random was not evaluated yet"):
        again.last()
    with pytest.raises(DataError, match=r"^Random was not asked about task"):
        again.get_data_struct()
    again.eval_batch_collect(scores.clone(), batch, None, None)
    assert again.get_data_struct().means() == whole.means()
    assert stage.judge("test", "Pop") is not loaded(prepared).judge("test", "Pop")
