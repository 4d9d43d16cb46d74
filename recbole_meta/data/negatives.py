r"""Negatives of a task: items that are not in a set.

Of a support they are drawn by a hash of a key: the same key and set give the same items, whatever
the batch, the padding and the order of the set, so a newcomer's state stays a function of his
support.
"""

import torch
from torch import Tensor

from recbole_meta.episode import Examples

_ATTEMPTS = 4  # draws until one is outside of the set; after them the place stays empty
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer


def with_negatives(examples: Examples, each: int, pool: Tensor, n_items: int) -> Examples:
    """T tasks with ``each`` negatives from the pool [P] per example, labelled 0; packed left.

    There are fewer where the set leaves little of the pool. All ids are below ``n_items``.
    """
    x, mask = examples.x, examples.mask > 0
    key = (_mix(x + 1) * mask).sum(dim=1)  # [T]
    drawn, found = draw_outside(key, torch.where(mask, x, 0), each * x.shape[1], pool, n_items)
    wanted = torch.arange(drawn.shape[1], device=x.device) < each * mask.sum(1, keepdim=True)
    found = (found & wanted).to(examples.mask.dtype)
    joined = Examples(
        torch.cat([x * mask, drawn * (found > 0)], dim=1),
        torch.cat([examples.label * mask, torch.zeros_like(found)], dim=1),
        torch.cat([examples.mask, found], dim=1),
        examples.task,
    )
    place = (joined.mask == 0).long().argsort(dim=1, stable=True)
    return Examples(
        joined.x.gather(1, place), joined.label.gather(1, place), joined.mask.gather(1, place),
        examples.task,
    )  # fmt: skip


def draw_outside(
    key: Tensor, known: Tensor, number: int, pool: Tensor, n_items: int
) -> tuple[Tensor, Tensor]:
    """Items [T, number] of the pool outside of ``known`` [T, K], and where one was found.

    All ids are below ``n_items``.
    """
    draw = torch.arange(1, number * _ATTEMPTS + 1, device=key.device)
    hashed = _mix(key[:, None] + draw * _GOLDEN) & torch.iinfo(torch.int64).max
    item = pool[hashed % len(pool)]  # [T, N A]
    taken = torch.zeros(key.shape[0], n_items, dtype=torch.bool, device=key.device)
    taken.scatter_(1, known, True)
    free = ~taken.gather(1, item).view(key.shape[0], number, _ATTEMPTS)
    first = free.long().argmax(-1, keepdim=True)
    item = item.view(key.shape[0], number, _ATTEMPTS)
    return item.gather(-1, first).squeeze(-1), free.any(-1)


def sample_outside(
    known: Tensor, number: int, pool: Tensor, n_items: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Different random items [T, N] of the pool outside of ``known`` [T, K], N <= ``number``;
    where there is one, [T, N]; and how many there are, [T, 1].
    """
    chance = torch.zeros(len(known), n_items)
    chance[:, pool.cpu()] = 1 + torch.rand(len(known), len(pool))
    chance = chance.to(known.device).scatter_(1, known, 0.0)
    value, item = chance.topk(min(number, n_items), dim=1)
    return item, value > 0, (chance > 0).sum(1, keepdim=True)


def among_all(query: Examples, hidden: Tensor, pool: Tensor, items: Tensor) -> Examples:
    """The query among all items [I] of the pool [I] (true or false), less what is hidden [T, H] of
    a task: labels and mask [T, I], 0 where there is no row of the query.
    """
    label = query.label.new_zeros(len(query.label), len(pool))
    mask = pool.to(label.dtype).repeat(len(label), 1)
    mask.scatter_(1, hidden, 0.0).scatter_(1, query.x, query.mask)
    label.scatter_(1, query.x, query.label * (query.mask > 0))
    label[:, 0] = mask[:, 0] = 0
    return query._replace(x=items, label=label, mask=mask)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), on signed integers."""
    x = (x ^ _shifted(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shifted(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The logical right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
