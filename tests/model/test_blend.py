"""Blend against what its members say and learn alone."""

import numpy as np
import pytest
import torch

from recbole_meta.episode import Examples
from recbole_meta.errors import SettingError
from recbole_meta.model.meta.blend import scaled

CLOSED = {"PriorRidge": {"embedding_size": 4}, "KernelRidge": {"embedding_size": 4}}


def standard(scores: np.ndarray) -> np.ndarray:
    """[T, I], each row over all items but the padding's."""
    mean, std = (f(scores[:, 1:], axis=1, keepdims=True) for f in (np.mean, np.std))
    return (scores - mean) / std


def test_it_is_the_weighted_sum_of_standardised_scores(worlds, fit):
    supports = [[3], [5, 9], [1, 2, 7]]
    blend = fit(worlds["implicit"], "Blend", epochs=0, members=CLOSED, weights={"KernelRidge": 0.4})
    alone = {
        name: fit(worlds["implicit"], name, **given).scores_after(*supports)
        for name, given in CLOSED.items()
    }
    expected = standard(alone["PriorRidge"]) + 0.4 * standard(alone["KernelRidge"])
    np.testing.assert_allclose(blend.scores_after(*supports), expected, rtol=1e-4, atol=1e-4)


def test_who_says_the_same_of_all_items_adds_nothing():
    assert not scaled(torch.full((9,), 0.7)).any()
    scores = torch.tensor([99.0, 1.0, 2.0, 3.0])  # the padding's is not counted
    torch.testing.assert_close(scaled(1e-9 * scores), scaled(scores))
    torch.testing.assert_close(scaled(scores)[1:], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5)


def test_members_learn_what_they_would_alone(worlds, fit):
    """Parameters are apart, and so is every step of the optimiser."""
    given = {"learning_rate": 0.01, "train_batch_size": 8}
    size = {"embedding_size": 4}
    blend = fit(worlds["implicit"], "Blend", **given, epochs=1,
                members={"MetaRidge": size, "KernelRidge": size})  # fmt: skip
    alone = fit(worlds["implicit"], "MetaRidge", **given, **size, epochs=1)
    start = fit(worlds["implicit"], "MetaRidge", **given, **size, epochs=0)
    member = blend.model.members["MetaRidge"]
    for name, learned in alone.model.named_parameters():
        torch.testing.assert_close(member.get_parameter(name), learned, rtol=1e-5, atol=1e-6)
    assert (alone.model.item_vector - start.model.item_vector).abs().max() > 1e-3


def test_the_loss_is_the_sum_of_the_members_that_train(worlds, fit, monkeypatch):
    blend = fit(worlds["implicit"], "Blend", members={
        "MetaRidge": {}, "InContext": {"support_dropout": 0.0}, "KernelRidge": {},
        "EpisodicRidge": {}}).model  # fmt: skip
    asked = []
    for name, member in blend.members.items():
        monkeypatch.setattr(
            member, "calculate_loss", lambda batch, n=name: asked.append(n) or torch.tensor(1.5)
        )
    assert blend.calculate_loss(None) == 3.0
    assert asked == ["MetaRidge", "InContext"]


def test_adapting_one_task_at_a_time(worlds, fit):
    """A state is a ranking: nothing else is needed of the support."""
    blend = fit(worlds["implicit"], "Blend")
    x, mask = torch.tensor([4, 11, 0]), torch.tensor([1.0, 1.0, 0.0])
    with torch.no_grad():
        state = blend.model.adapt(Examples(x, mask, mask, torch.tensor(1)))
        found = blend.model.score(state, torch.tensor([2, 11]))
    assert set(state) == {"scores"}
    np.testing.assert_allclose(found, blend.scores_after([4, 11])[0, [2, 11]], rtol=1e-4, atol=1e-4)


REFUSED = [
    ({"members": {"MetaRige": {}}}, "no member can be 'MetaRige'. Did you mean 'MetaRidge'"),
    ({"members": {"Blend": {}}}, "no member can be 'Blend'"),
    ({"members": {"RatingRidge": {}}}, "no member can be 'RatingRidge'"),
    ({"members": {}}, "no member with a weight above 0"),
    ({"members": {"Pop": {}}, "weights": {"Pop": 0.0}}, "no member with a weight above 0"),
    ({"members": {"Pop": {}}, "weights": {"QueryPop": 1.0}}, "'weights' names 'QueryPop'"),
    ({"members": {"MetaRidge": {"user_fields": True}}}, "reads ids .user fields: members read ids"),
    ({"members": {"MetaRidge": {"noize": 1.0}}}, "Did you mean 'noise'"),
    ({"members": {"MetaRidge": {"noise": -1.0}}}, "member 'MetaRidge'"),
    ({"members": {"KernelRidge": {"fields": [0.2]}}}, "reads ids \\+user fields: members read ids"),
    ({"members": {"KernelRidge": {}}}, "no member trains, so 'epochs' must be 0"),
    ({"members": {"MetaRidge": {"epochs": 0}}}, "no member trains"),
    ({"members": {"InContext": {}, "CNP": {}}}, "InContext and CNP have fields"),
    ({"members": {"InContext": {"support_negatives": 2}}}, "without 'support_negatives'"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_be_is_refused(worlds, fit, settings, said):
    with pytest.raises(SettingError, match=said):
        fit(worlds["implicit"], "Blend", **settings)
