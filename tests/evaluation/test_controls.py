"""Controls: what they change of a support, and what they leave."""

import torch

from recbole_meta.episode import Examples
from recbole_meta.evaluation.controls import empty, shuffled, swapped


def supports(users: int = 40, size: int = 9) -> Examples:
    """Of each user 0 to ``size`` examples, told apart by their label."""
    length = torch.arange(users) % (size + 1)
    mask = (torch.arange(size) < length[:, None]).float()
    label = (torch.arange(users)[:, None] * 100.0 + torch.arange(size)) * mask
    x = (torch.arange(users)[:, None] * 1000 + torch.arange(size) + 1) * mask.long()
    return Examples(x, label, mask, torch.arange(users))


def test_shuffled_labels_are_those_of_the_same_user_at_other_examples() -> None:
    before, users = supports(), torch.arange(40)
    after = shuffled(before, users)
    assert torch.equal(after.x, before.x) and torch.equal(after.mask, before.mask)
    assert torch.equal(after.label.sort(dim=1).values, before.label.sort(dim=1).values)
    assert torch.equal(after.label * (1 - after.mask), torch.zeros_like(after.label))
    long = before.mask.sum(1) > 5
    moved = (after.label != before.label)[long].float().sum(1)
    assert moved.min() >= 2
    assert not torch.equal(shuffled(before, users, seed=1).label, after.label)


def test_a_label_goes_to_every_place_as_often() -> None:
    before = Examples(torch.ones(6000, 3), torch.tensor([[1.0, 2.0, 3.0]]).repeat(6000, 1),
                      torch.ones(6000, 3), torch.arange(6000))  # fmt: skip
    after = shuffled(before, torch.arange(6000))
    shares = (after.label == 1).float().mean(0)
    assert (shares - 1 / 3).abs().max() < 0.03


def test_a_shuffle_meets_only_examples_where_padding_lies_between() -> None:
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]])
    before = Examples(torch.ones(1, 5), torch.tensor([[1.0, 0.0, 2.0, 0.0, 3.0]]), mask,
                      torch.zeros(1))  # fmt: skip
    found = {tuple(shuffled(before, torch.zeros(1), seed).label[0].tolist()) for seed in range(60)}
    assert len(found) == 6 and all(label[1] == label[3] == 0 for label in found)


def test_swapped_gives_each_judged_user_the_support_of_another_judged_user() -> None:
    before, users = supports(), torch.arange(3, 33)
    after = swapped(before, users)
    others = torch.tensor([n for n in range(40) if n not in users.tolist()])
    for one, two in zip(before.of(others), after.of(others)):
        assert torch.equal(one, two)
    owners = []
    for user in users.tolist():
        same = [n for n in users.tolist() if torch.equal(before.x[n], after.x[user])
                and torch.equal(before.label[n], after.label[user])
                and torch.equal(before.mask[n], after.mask[user])]  # fmt: skip
        assert same and (before.mask[user].sum() == 0 or user not in same)
        owners.append(same[0] if before.mask[same[0]].sum() else None)
    known = [owner for owner in owners if owner is not None]
    assert len(known) == len(set(known)) == sum(bool(before.mask[n].sum()) for n in users)
    assert torch.equal(after.task, before.task)


def test_empty_leaves_no_example() -> None:
    before = supports()
    after = empty(before, torch.arange(40))
    assert after.mask.sum() == 0 and before.mask.sum() > 0
