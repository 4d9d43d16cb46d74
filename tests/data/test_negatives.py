"""Negatives: outside of the set, the same for the same set, spread over the pool."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from recbole_meta.data import negatives
from recbole_meta.episode import Examples

MASK = 2**64 - 1


def with_negatives(examples: Examples, each: int, choice: Tensor) -> Examples:
    """Without the padding at their end, with as few items as there may be."""
    n_items = int(torch.maximum(examples.x.max(), choice.max())) + 1
    found = negatives.with_negatives(examples, each, choice, n_items)
    assert found.x.shape[1] == (1 + each) * examples.x.shape[1], "sizes alone decide the shape"
    return found.cut(found.width())


def draw_outside(key: Tensor, known: Tensor, number: int, choice: Tensor) -> tuple[Tensor, Tensor]:
    return negatives.draw_outside(key, known, number, choice, 1001)


def task(*items: int, width: int | None = None, label: float = 1.0) -> Examples:
    """One task [1, S], packed left."""
    empty = (width or max(1, len(items))) - len(items)
    mask = [1.0] * len(items) + [0.0] * empty
    return Examples(
        torch.tensor([[*items, *[0] * empty]]),
        torch.tensor([[label * one for one in mask]]),
        torch.tensor([mask]),
        torch.tensor([7]),
    )


def stack(*tasks: Examples) -> Examples:
    return Examples(*(torch.cat(parts) for parts in zip(*tasks)))


def drawn(examples: Examples, row: int = 0) -> list[int]:
    """The negatives of a task: label 0, mask 1."""
    there = (examples.mask[row] > 0) & (examples.label[row] == 0)
    return examples.x[row][there].tolist()


def pool(*, first: int = 1, last: int) -> Tensor:
    return torch.arange(first, last + 1)


def splitmix64(x: int) -> int:
    """The finaliser alone, in Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_draws_are_those_of_splitmix64() -> None:
    """Seed = the sum of the items' hashes; four draws a place, the first one outside stays."""
    items, choice = [3, 9, 4], list(range(1, 13))
    seed = sum(splitmix64(item + 1) for item in items) & MASK
    expected = []
    for place in range(6):
        draws = [4 * place + attempt for attempt in range(1, 5)]
        stream = [splitmix64((seed + d * 0x9E3779B97F4A7C15) & MASK) % 2**63 for d in draws]
        free = [choice[value % 12] for value in stream if choice[value % 12] not in items]
        expected += free[:1]
    assert len(expected) == 6
    assert drawn(with_negatives(task(*items), 2, pool(last=12))) == expected


sets = st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True)
each = st.integers(1, 4)


@settings(deadline=None)
@given(sets, each)
def test_from_the_pool_never_of_the_set_and_as_many_as_wanted(items: list[int], each: int) -> None:
    choice = pool(first=20, last=400)  # four draws all inside of the set: once in 10^6
    found = with_negatives(task(*items, label=3.5), each, choice)
    negatives = drawn(found)
    assert len(negatives) == each * len(items)
    assert set(negatives) <= set(range(20, 401)) - set(items)
    assert found.x[0, : len(items)].tolist() == items
    assert found.label[0, : len(items)].tolist() == [3.5] * len(items)
    assert found.mask.sum() == found.width() == len(items) * (1 + each)
    assert found.task.tolist() == [7]


@settings(deadline=None)
@given(sets, each, st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_set_alone_decides(items: list[int], each: int, more: int, random) -> None:
    """Neither its order, nor padding at its end or inside, nor the tasks beside it."""
    choice = pool(last=400)
    expected = drawn(with_negatives(task(*items), each, choice))
    order = random.sample(items, len(items))
    assert drawn(with_negatives(task(*order), each, choice)) == expected
    wide = task(*items, width=len(items) + more)
    assert drawn(with_negatives(wide, each, choice)) == expected
    place = torch.tensor([random.sample(range(wide.x.shape[1]), wide.x.shape[1])])
    holes = Examples(*(field.gather(1, place) for field in wide[:3]), wide.task)
    assert drawn(with_negatives(holes, each, choice)) == expected
    junk = wide._replace(x=wide.x + (wide.mask == 0).long() * 33)
    assert drawn(with_negatives(junk, each, choice)) == expected
    beside = stack(task(5, width=wide.x.shape[1]), wide)
    assert drawn(with_negatives(beside, each, choice), 1) == expected


def test_padding_is_no_part_of_the_set() -> None:
    """An item that only stands in padding may be drawn."""
    choice = pool(last=2)
    examples = Examples(
        torch.tensor([[1, 2]]), torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    )
    assert set(drawn(with_negatives(examples, 3, choice))) == {2}


def test_other_sets_other_negatives() -> None:
    """One item more, one less, another one; and sets of equal sum."""
    choice = pool(last=10**6)
    tasks = [(1, 2, 3), (1, 2, 4), (1, 2), (1, 2, 3, 4), (2,), (10**6 - 1,)]
    found = [set(drawn(with_negatives(task(*items), 4, choice))) for items in tasks]
    for one in range(len(tasks)):
        for two in range(one):
            assert not found[one] & found[two]
    pairs = [(1, 6), (2, 5), (3, 4)]
    found = [set(drawn(with_negatives(task(*items), 4, choice))) for items in pairs]
    assert len(found[0] | found[1] | found[2]) == 24


def test_every_item_of_the_pool_is_as_likely() -> None:
    """Over many sets, and at each place: chi-square of 60,000 draws; the set is left out."""
    n_tasks, choice = 3000, pool(first=3, last=32)
    random = np.random.default_rng(0)
    sets = torch.from_numpy(random.integers(100, 10**6, (n_tasks, 5)))
    sets[:, 0] = 17
    key = torch.from_numpy(random.integers(0, 2**62, n_tasks))
    examples = Examples(sets, torch.ones(n_tasks, 5), torch.ones(n_tasks, 5), key)
    found = with_negatives(examples, 4, choice)
    negatives = found.x[:, 5:].numpy()
    assert negatives.shape == (n_tasks, 20) and (negatives != 17).all()
    items = [item for item in range(3, 33) if item != 17]
    for draws in (negatives, negatives[:, 0], negatives[:, 19], negatives[: n_tasks // 2]):
        counts = [(draws == item).sum() for item in items]
        assert sum(counts) == draws.size
        assert chisquare(counts).pvalue > 0.001
    after_three = negatives[:, 1:][negatives[:, :-1] == 3]  # neighbours do not know each other
    assert chisquare([(after_three == item).sum() for item in items]).pvalue > 0.001


def test_a_pool_without_an_item_outside_gives_none() -> None:
    found = with_negatives(task(1, 2, 3, width=6), 5, pool(last=3))
    assert drawn(found) == []
    assert found.x.tolist() == [[1, 2, 3]] and found.mask.tolist() == [[1, 1, 1]]


def test_a_pool_that_is_nearly_exhausted_gives_fewer() -> None:
    """A place stays empty with the chance that four draws are inside, (9/10)^4 = .656."""
    tasks = [task(*items) for items in np.array([np.arange(1, 10) + 10 * n for n in range(200)])]
    number = 0
    for n, one in enumerate(tasks):
        found = with_negatives(one, 5, pool(first=10 * n + 1, last=10 * n + 10))
        assert set(drawn(found)) <= {10 * n + 10}
        assert found.mask.sum() == found.width()  # packed, no holes
        number += len(drawn(found))
    assert abs(number / (200 * 45) - (1 - 0.9**4)) < 0.02


def test_tasks_of_different_size_are_packed_left_and_padded_with_nothing() -> None:
    """Padding holds item 0, label 0: what a padded set means everywhere else."""
    examples = stack(task(1, 2, width=4), task(width=4), task(3, 4, 5, 6), task(9, width=4))
    found = with_negatives(examples, 2, pool(last=500))
    assert found.x.shape == (4, 12)
    assert found.mask.sum(1).tolist() == [6, 0, 12, 3]
    for row, size in enumerate([6, 0, 12, 3]):
        assert found.mask[row, :size].all() and not found.mask[row, size:].any()
        assert not found.x[row, size:].any() and not found.label[row, size:].any()
        assert found.label[row].sum() == size / 3


def test_an_empty_support_gets_none() -> None:
    found = with_negatives(task(width=3), 4, pool(last=50))
    assert found.x.tolist() == [[0]] and found.mask.tolist() == [[0.0]]


def test_draws_follow_the_key_not_the_batch() -> None:
    keys = torch.tensor([5, 2**62 - 1, -3, 5])
    known = torch.tensor([[1, 2], [3, 0], [4, 4], [1, 2]])
    items, free = draw_outside(keys, known, 8, pool(last=1000))
    assert free.all() and items.shape == free.shape == (4, 8)
    assert items[0].tolist() == items[3].tolist() != items[1].tolist()
    for row in range(4):
        alone, _ = draw_outside(keys[row : row + 1], known[row : row + 1], 3, pool(last=1000))
        assert alone[0].tolist() == items[row, :3].tolist()  # the first places, whatever is asked
    other, _ = draw_outside(keys + 1, known, 8, pool(last=1000))
    assert (other == items).float().mean() < 0.2
