"""The rows of a data set: by user, and inside a user in order of time or of a seeded hash."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from recbole_meta.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """The input rows: codes of users and items (codes follow the tokens sorted as strings)."""

    user: Ints  # [N]
    item: Ints  # [N]
    time: Floats | None  # [N] seconds
    user_key: npt.NDArray[np.uint64]  # [users] a hash of the token
    item_key: npt.NDArray[np.uint64]  # [items]
    item_value: Floats | None = None  # [items] the field that a protocol asks for
    cold_user: Mask | None = None  # [users] as a given file says
    cold_item: Mask | None = None  # [items]

    def turned(self) -> "Rows":
        """Users and items change places."""
        return Rows(self.item, self.user, self.time, self.item_key, self.user_key)

    def of(self, chosen: Ints) -> "Rows":
        """These rows of the same users and items."""
        time = None if self.time is None else self.time[chosen]
        return replace(self, user=self.user[chosen], item=self.item[chosen], time=time)


class History:
    """The rows by user, and inside a user in the protocol's order."""

    def __init__(self, rows: Rows, order: str, seed: int, task: str = "user") -> None:
        self._task = task
        keys: list[npt.NDArray[np.generic]] = [pair_hash(rows, seed)]
        if order == "time":
            if rows.time is None:
                raise DataError("order 'time' needs a time field, and the data set has none.")
            keys.append(rows.time)
        self.n_users = len(rows.user_key)
        self._order = np.lexsort((*keys, rows.user))  # [N]
        self.user = rows.user[self._order]
        self.time: Floats = np.empty(0) if rows.time is None else rows.time[self._order]
        self.length = np.bincount(self.user, minlength=self.n_users)  # [users]
        start = np.cumsum(self.length) - self.length
        self.position = np.arange(len(self.user)) - start[self.user]  # [N], from 0
        self.n_eligible = 0

    def eligible(self, least: int, most: int | None = None) -> Ints:
        """Users with ``least`` to ``most`` rows, ascending."""
        users = np.flatnonzero((self.length >= least) & (self.length <= (most or np.inf)))
        if not len(users):
            wanted = f"{least} rows" if most is None else f"{least} to {most} rows"
            raise DataError(
                f"No {self._task} has the {wanted} that this protocol needs: the longest "
                f"history has {self.length.max(initial=0)}."
            )
        self.n_eligible = len(users)
        return users

    def first_time(self) -> Floats:
        """The time of each user's first row, [users]."""
        first: Floats = self.time[np.cumsum(self.length) - self.length]
        return first

    def belongs(self, users: Ints) -> Mask:
        """Which rows are of these users, [N]."""
        return members(users, self.n_users)[self.user]

    def rows(self, chosen: Mask) -> Ints:
        """Row numbers of the input."""
        return self._order[chosen]

    def cold_files(self, cold: dict[str, Ints], reserve: int) -> dict[str, Ints]:
        """The reserve of both phases, and each phase's rows after it."""
        early = self.position < reserve
        is_cold = self.belongs(cold["valid"]) | self.belongs(cold["test"])
        files = {"reserved": self.rows(is_cold & early)}
        for phase, users in cold.items():
            files[phase] = self.rows(self.belongs(users) & ~early)
        return files


def pair_hash(rows: Rows, seed: int) -> npt.NDArray[np.uint64]:
    """A seeded hash of (user, item), equal on every platform, [N]."""
    salt = _mix(np.array([seed], dtype=np.uint64))
    return _mix(_mix(rows.user_key ^ salt)[rows.user] + rows.item_key[rows.item])


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def members(users: Ints, n_users: int) -> Mask:
    """Which users are among these, [users]."""
    member = np.zeros(n_users, dtype=bool)
    member[users] = True
    return member
