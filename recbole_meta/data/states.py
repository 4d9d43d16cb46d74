r"""MeLU's four states: new or known users on new or known items, as ratings.

Reference:
    Lee et al. "MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation."
    KDD 2019. arXiv:1908.00413

Users are cold by chance or by a file; items by a file, and by the value of a field (later ones are
cold) where none names them. Training sees existing users on existing items only. A task is a user
with ``least`` to ``most`` rows in the state: ``query_size`` random ones are its query, the others
its support.

- ``cw`` cold users on existing items, ``wc`` existing users on cold items, ``cc`` cold users on
  cold items. Valid imitates the state inside of what exists, its cold users a tenth of the existing
  ones, its cold items the latest fifth; what is valid's is not trained on, the refit for test has
  it.
- ``ww`` existing users on existing items: a fifth of the users in range for test, a tenth for
  valid; only their query is held out of training, their support is trained on (the paper judges on
  its training set); valid's query is not held out of the refit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recbole_meta.data.history import Ints, Mask, Rows, pair_hash
from recbole_meta.data.protocol import ColdStart, Split, draw
from recbole_meta.errors import DataError, SettingError

_VALID_USERS = 0.1  # of the existing users
_VALID_ITEMS = 0.2  # of the existing items, the latest


@dataclass(frozen=True)
class FourStates(ColdStart):
    """One state; tasks are users."""

    state: Literal["ww", "cw", "wc", "cc"]  # users, then items: warm or cold
    warm_share: float  # of the users, where no file says who exists
    user_split: str | None  # file beside the data: the user's field, 'state' existing | cold
    item_split: str | None  # file beside the data: the item's field, 'state' existing | cold
    item_field: str  # what tells which items are late
    item_last: float  # items with a larger value are cold, where no file names them
    query_size: int  # rows of a task's query
    least: int  # rows of a task in the state
    most: int

    kind = "four_states"
    candidates = "catalogue"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.warm_share < 1:
            raise SettingError(f"'warm_share' must be between 0 and 1, found {self.warm_share}.")
        if not 1 <= self.query_size < self.least <= self.most:
            raise SettingError(
                "'query_size', 'least' and 'most' must ascend from 1, found "
                f"{self.query_size}, {self.least}, {self.most}."
            )
        if self.order != "random":
            raise SettingError("four_states has order 'random' only: its query is random.")

    @property
    def support_sizes(self) -> tuple[int, ...]:
        return (self.most - self.held_out,)

    @property
    def held_out(self) -> int:
        return self.query_size

    @property
    def query_start(self) -> int:
        return 0

    def apply(self, rows: Rows) -> Split:
        seed = self.seed + self.split
        cold_user, cold_item = self._cold_users(rows, seed), self._cold_items(rows)
        exists = ~cold_user[rows.user] & ~cold_item[rows.item]
        if self.state == "ww":
            valid = test = train = exists
        else:
            test = self._in_state(rows, cold_user, cold_item)
            valid, train = exists.copy(), exists.copy()
            if self.state[0] == "c":
                fresh = self._fresh(~cold_user, seed)[rows.user]
                valid &= fresh
                train &= ~fresh
            if self.state[1] == "c":
                late = self._latest(rows, ~cold_item, seed)[rows.item]
                valid &= late
                train &= ~late
        tasks = {
            "valid": self._tasks(rows, valid, "valid"),
            "test": self._tasks(rows, test, "test"),
        }
        eligible = len(tasks["test"])
        if self.state == "ww":
            tasks = draw(tasks["test"], seed, 0, 0)
        return self._split(rows, seed, {"valid": valid, "test": test}, tasks,
                           {"valid": train, "test": exists}, eligible)  # fmt: skip

    def _cold_users(self, rows: Rows, seed: int) -> Mask:
        if rows.cold_user is not None:
            return rows.cold_user
        n = len(rows.user_key)
        cold = np.ones(n, dtype=bool)
        cold[np.random.default_rng(seed).permutation(n)[: round(self.warm_share * n)]] = False
        return cold

    def _cold_items(self, rows: Rows) -> Mask:
        if rows.cold_item is not None:
            return rows.cold_item
        assert rows.item_value is not None, "prepare reads it"
        return rows.item_value > self.item_last

    def _fresh(self, exists: Mask, seed: int) -> Mask:
        """A tenth of the existing users."""
        there = np.flatnonzero(exists)
        fresh = np.zeros(len(exists), dtype=bool)
        chosen = np.random.default_rng(seed + 1).permutation(there)
        fresh[chosen[: round(_VALID_USERS * len(there))]] = True
        return fresh

    def _latest(self, rows: Rows, exists: Mask, seed: int) -> Mask:
        """The latest fifth of the existing items; ties by a seeded hash."""
        assert rows.item_value is not None, "prepare reads it"
        there = np.flatnonzero(exists)
        key = np.random.default_rng(seed + 2).permutation(len(there))
        order = there[np.lexsort((key, rows.item_value[there]))]
        late = np.zeros(len(exists), dtype=bool)
        late[order[len(order) - round(_VALID_ITEMS * len(order)) :]] = True
        return late

    def _in_state(self, rows: Rows, cold_user: Mask, cold_item: Mask) -> Mask:
        user, item = (letter == "c" for letter in self.state)
        inside: Mask = (cold_user[rows.user] == user) & (cold_item[rows.item] == item)
        return inside

    def _tasks(self, rows: Rows, mask: Mask, phase: str) -> Ints:
        """Users with as many rows there as a task has."""
        count = np.bincount(rows.user[mask], minlength=len(rows.user_key))
        users = np.flatnonzero((count >= self.least) & (count <= self.most))
        if not len(users):
            raise DataError(
                f"No user has {self.least} to {self.most} rows in state '{self.state}' of {phase}: "
                "no query."
            )
        return users

    def _split(
        self, rows: Rows, seed: int, state: dict[str, Mask], tasks: dict[str, Ints],
        train: dict[str, Mask], eligible: int,
    ) -> Split:  # fmt: skip
        """The files: a task's rows in hashed order, the first ``query_size`` are its query.

        No query is trained on before valid, test's never.
        """
        order = np.lexsort((pair_hash(rows, seed), rows.user))
        files: dict[str, Ints] = {}
        query = {phase: np.zeros(len(rows.user), dtype=bool) for phase in tasks}
        support: dict[str, Mask] = {}
        for phase, users in tasks.items():
            of_task = np.zeros(len(rows.user_key), dtype=bool)
            of_task[users] = True
            inside = order[(state[phase] & of_task[rows.user])[order]]  # by user
            user = rows.user[inside]
            start = np.searchsorted(user, user)
            held = np.arange(len(inside)) - start < self.held_out
            files[phase], files[f"support_{phase}"] = inside[held], inside[~held]
            query[phase][inside[held]] = True
            support[phase] = np.zeros(len(rows.user), dtype=bool)
            support[phase][inside[~held]] = True
        hidden = {"valid": query["valid"] | query["test"], "test": query["test"]}
        for phase, name in (("valid", "train"), ("test", "refit")):
            kept = (train[phase] & ~hidden[phase]) | support[phase]
            files[f"{name}_{self.support_sizes[0]}"] = order[kept[order]]
        names = {"valid": "train_{k}", "test": "refit_{k}"}
        return Split(files, names, tasks, {}, eligible)
