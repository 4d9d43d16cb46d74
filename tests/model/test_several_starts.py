"""SeveralStarts against its copies: their mean, and the training that each would have alone."""

import pytest
import torch

from recbole_meta.compat import contained
from recbole_meta.errors import SettingError
from recbole_meta.model.multitask.several_starts import SeveralStarts
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_objectives,
    objective_config,
    train_set,
)

FEW = {"epochs": 2, "eval_step": 1, "train_batch_size": 8}
COPY = {"embedding_size": 4, "copy": {"click": 0.7}}


def built(shop, **settings) -> SeveralStarts:
    torch.manual_seed(0)
    values = check_objective_settings("SeveralStarts", settings, tuple(shop.objectives))
    with contained():
        config = objective_config("SeveralStarts", shop, 1, values)
        return SeveralStarts(config, train_set(shop))


def test_one_copy_is_the_model_itself(shop):
    alone = fit_objectives("MTA", shop, 3, FEW | COPY)
    whole = fit_objectives("SeveralStarts", shop, 3, FEW | {"member": {"MTA": COPY}, "copies": 1})
    assert alone.history == whole.history and alone.valid.means() == whole.valid.means()
    users = torch.arange(1, 9)
    with torch.no_grad():
        assert torch.equal(alone.model.rank(users, "click"), whole.model.rank(users, "click"))


def test_the_mean_ranks(shop):
    linear = COPY | {"linear": {"purchase": 3.0}}
    fit = fit_objectives(
        "SeveralStarts", shop, 3, FEW | {"member": {"LinearMTA": linear}, "copies": 3}
    )
    model, users = fit.model, torch.arange(1, 9)
    with torch.no_grad():
        for name in shop.objectives:
            each = [copy.rank(users, name) for copy in model.copies]
            assert not torch.allclose(each[0], each[1])
            torch.testing.assert_close(model.rank(users, name), torch.stack(each).mean(0))


def test_each_copy_has_the_gradient_that_it_would_have_alone(shop):
    model = built(shop, member={"MTA": COPY | {"dropout": 0.0, "sampled_items": None}}, copies=2)
    users = {"user_id": torch.tensor([4, 17, 9, 30])}
    model.train().calculate_loss(users).backward()
    for copy in model.copies:
        together = {name: p.grad.clone() for name, p in copy.named_parameters()}
        copy.zero_grad()
        copy.calculate_loss(users).backward()
        for name, p in copy.named_parameters():
            assert p.grad.abs().max() > 0 or name == "query"
            torch.testing.assert_close(p.grad, together[name])


BAD = [
    ({}, "must name one model, found 0"),
    ({"MTA": {}, "LinearMTA": {}}, "must name one model, found 2"),
    ({"MTAA": {}}, "no member can be 'MTAA'.*MTA"),
    ({"ObjectiveEASE": {}}, "no member can be 'ObjectiveEASE'"),
    ({"SeveralStarts": {}}, "no member can be 'SeveralStarts'"),
    ({"MTA": {"learning_rate": 0.1}}, "'learning_rate' is a setting of the whole"),
    ({"MTA": {"embeding_size": 4}}, "embeding_size"),
    ({"MTA": {"average": 0.9}}, "'average' must be 0"),
]


@pytest.mark.parametrize(("member", "said"), BAD)
def test_members_that_cannot_be(shop, member, said):
    """Refused before anything is built, so that a page is refused when it is read."""
    with pytest.raises(SettingError, match=said):
        check_objective_settings("SeveralStarts", {"member": member}, tuple(shop.objectives))


def test_a_member_that_names_no_objective(shop):
    with pytest.raises(SettingError, match="'copy' names the objective 'clik'"):
        built(shop, member={"MTA": {"copy": {"clik": 1.0}}})
