r"""Cold items: rows of items that training never met, or of their first raters alone.

- ``ItemCold``: a task is an item. The first ``reserve`` rows of a cold item are never judged,
  support = the first k of them; every user with a later row ranks the cold items of the phase.
  With shots [0] and reserve 0 nothing but its content is known of an item.
- ``BothCold``: a task is a user. Training sees warm users on warm items; a cold user's first k rows
  on warm items are his support, and he ranks the cold items of the phase: nobody is known who had
  them.
"""

from dataclasses import dataclass

import numpy as np

from recbole_meta.data.history import History, Rows
from recbole_meta.data.protocol import PHASES, Reserved, Split, check_draw, draw, order_seed


@dataclass(frozen=True)
class ItemCold(Reserved):
    """Tasks are items; test = a fifth of them, valid = a tenth, or in folds."""

    folds: int  # number of disjoint folds of items; 0: 70/10/20 by seed + split

    kind = "item_cold"
    task = "item"
    candidates = "cold"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draw(max(self.shots), self.folds, self.split)

    def apply(self, rows: Rows) -> Split:
        seed = order_seed(self.seed, self.split, self.folds)
        history = History(rows.turned(), self.order, seed, self.task)
        cold = draw(history.eligible(self.reserve + 1), self.seed, self.split, self.folds)
        train = dict.fromkeys(PHASES, "train_{k}")
        return Split(self.files(history, cold), train, cold, {}, history.n_eligible, cold)


@dataclass(frozen=True)
class BothCold(Reserved):
    """Tasks are users; 70/10/20 of the users and 70/10/20 of the items, by seed + split."""

    kind = "both_cold"
    candidates = "cold"

    def apply(self, rows: Rows) -> Split:
        seed = self.seed + self.split
        items = draw(np.arange(len(rows.item_key)), seed, 0, 0)
        group = np.zeros(len(rows.item_key), dtype=np.int64)  # 0: warm
        for number, phase in enumerate(PHASES, start=1):
            group[items[phase]] = number
        warm = np.flatnonzero(group[rows.item] == 0)
        known = History(rows.of(warm), self.order, seed)
        enough = known.eligible(max(1, self.reserve))
        for number in (1, 2):
            enough = np.intersect1d(enough, rows.user[group[rows.item] == number])
        users = draw(enough, seed, 0, 0)
        cold = known.belongs(users["valid"]) | known.belongs(users["test"])
        files = {"reserved": warm[known.rows(cold & (known.position < self.reserve))]}
        for number, phase in enumerate(PHASES, start=1):
            asked = np.flatnonzero(group[rows.item] == number)
            history = History(rows.of(asked), self.order, seed)
            files[phase] = asked[history.rows(history.belongs(users[phase]))]
        for k in self.support_sizes:
            files[f"train_{k}"] = warm[known.rows(~cold | (known.position < k))]
        return Split(files, dict.fromkeys(PHASES, "train_{k}"), users, {}, len(enough), items)
