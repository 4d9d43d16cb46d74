r"""Cold-start protocols: which rows are warm, support, reserved and query.

A protocol is a frozen dataclass and a pure function of the rows. A user's rows stand in *order*:
``time`` = timestamp, then a seeded hash of (user, item); ``random`` = the hash alone; never the
order of the file. Cold users come from ``default_rng(seed).permutation(eligible)`` with tokens
sorted as strings; users with too few rows are not eligible and stay warm.

- ``UserColdK``: support = the first k rows, query = all later rows. Plain RecBole can run it.
- ``UserColdRange``: the same, of users with ``least`` to ``most`` rows.
- ``UserColdCurve``: the first ``reserve`` rows are never candidates, support = the first k of them,
  so that all k share one query and one candidate set; the primary query is the ``horizon`` rows
  after the reserve.
- ``UserColdGlobal``: users in order of their first row, in equal blocks; the judged block sees the
  rows strictly before its own first event and nothing else.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from recbole_meta.data.history import History, Ints, Mask, Rows, members
from recbole_meta.errors import DataError, SettingError

PHASES = ("valid", "test")


@dataclass(frozen=True)
class Split:
    """Row numbers of each file, in the order in which they are written: by user and position."""

    files: dict[str, Ints]
    train: dict[str, str]  # phase -> name of its training file; '{k}' stands for the shots
    tasks: dict[str, Ints]  # phase -> cold users, ascending
    cut: dict[str, float]  # phase -> no training row is as late as this time (global only)
    eligible: int
    cold_items: dict[str, Ints] = field(default_factory=dict)  # phase -> items, where they are cold


@dataclass(frozen=True)
class ColdStart:
    """What every cold-start protocol says."""

    feedback: Literal["implicit", "rating", "label"]  # what is judged: a ranking, ratings or labels
    threshold: dict[str, float]  # rows below it are dropped first, e.g. {rating: 4}
    label: dict[str, float]  # feedback 'label': 1 where the field reaches the value
    duplicates: Literal["error", "first", "last"]  # which row of a repeated (user, item) pair stays
    order: Literal["time", "random"]
    seed: int
    split: int  # which fold, which seed of users (seed + split), or which block

    kind: ClassVar[str]
    task: ClassVar[Literal["user", "item"]] = "user"  # who is new, and adapts
    candidates: ClassVar[Literal["catalogue", "train", "cold"]]  # every item, those of warm rows,
    # or the cold items of the phase

    def __post_init__(self) -> None:
        if len(self.label) != (self.feedback == "label"):
            raise SettingError(
                "'label' names one field with feedback 'label', e.g. label: {rating: 4}, and none "
                f"otherwise; found {self.label} with feedback '{self.feedback}'."
            )
        if self.seed < 0 or self.split < 0:
            raise SettingError(f"'seed' and 'split' start at 0, found {self.seed}, {self.split}.")

    @property
    def support_sizes(self) -> tuple[int, ...]:
        """The shots k that are judged, ascending."""
        raise NotImplementedError(self.kind)

    @property
    def query_start(self) -> int:
        """The position (from 0) of a task's first query row."""
        raise NotImplementedError(self.kind)

    @property
    def held_out(self) -> int:
        """How many random rows of a task are its query; 0: its query goes by position."""
        return 0

    @property
    def query_horizon(self) -> int | None:
        """How many rows the primary query has; None: all."""
        return None

    def apply(self, rows: Rows) -> Split:
        """Which rows go into which file."""
        raise NotImplementedError(self.kind)


@dataclass(frozen=True)
class UserColdK(ColdStart):
    """Support = the first k rows of a cold user, query = all later ones."""

    shots: int
    folds: int  # number of disjoint folds; 0: 70/10/20 by seed + split

    kind = "user_cold_k"
    candidates = "catalogue"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draw(self.shots, self.folds, self.split)

    @property
    def support_sizes(self) -> tuple[int, ...]:
        return (self.shots,)

    @property
    def query_start(self) -> int:
        return self.shots

    @property
    def lengths(self) -> tuple[int, int | None]:
        """How many rows a cold user has, at least and at most."""
        return self.shots + 1, None

    def apply(self, rows: Rows) -> Split:
        history = History(rows, self.order, order_seed(self.seed, self.split, self.folds))
        cold = draw(history.eligible(*self.lengths), self.seed, self.split, self.folds)
        is_cold = history.belongs(cold["valid"]) | history.belongs(cold["test"])
        files = {"train": history.rows(~is_cold | (history.position < self.shots))}
        for phase, users in cold.items():
            files[phase] = history.rows(history.belongs(users) & (history.position >= self.shots))
        return Split(files, dict.fromkeys(PHASES, "train"), cold, {}, history.n_eligible)


@dataclass(frozen=True)
class UserColdRange(UserColdK):
    """The same, of users whose histories are neither short nor long."""

    least: int  # rows of a cold user
    most: int

    kind = "user_cold_range"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots < self.least <= self.most:
            raise SettingError(
                f"'shots', 'least' and 'most' must ascend, the first two strictly, found "
                f"{self.shots}, {self.least}, {self.most}."
            )

    @property
    def lengths(self) -> tuple[int, int | None]:
        return self.least, self.most


@dataclass(frozen=True)
class Reserved(ColdStart):
    """The supports of all k are heads of one reserve, so that they share one query."""

    shots: tuple[int, ...]
    reserve: int  # the first rows that a task's support is taken from, never judged

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots or len(set(self.shots)) < len(self.shots) or min(self.shots) < 0:
            raise SettingError(f"'shots' must be different numbers >= 0, found {self.shots}.")
        if max(self.shots) > self.reserve:
            raise SettingError(f"'shots' {max(self.shots)} is larger than reserve {self.reserve}.")

    @property
    def support_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self.shots))

    @property
    def query_start(self) -> int:
        return self.reserve

    def files(self, history: History, cold: dict[str, Ints]) -> dict[str, Ints]:
        """Both phases are judged from one training file per k: warm tasks and all supports."""
        files = history.cold_files(cold, self.reserve)
        is_cold = history.belongs(cold["valid"]) | history.belongs(cold["test"])
        for k in self.support_sizes:
            files[f"train_{k}"] = history.rows(~is_cold | (history.position < k))
        return files


@dataclass(frozen=True)
class _Curve(Reserved):
    horizon: int | None  # rows of the primary query after the reserve; ~: all
    eligible: int  # rows that a cold user has at least, >= reserve + horizon

    candidates = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.reserve + (1 if self.horizon is None else self.horizon)
        if (self.horizon is not None and self.horizon < 1) or self.eligible < least:
            raise SettingError(
                f"'eligible' is {self.eligible}, must be at least reserve + horizon = {least} "
                f"(horizon {self.horizon}, at least 1)."
            )

    @property
    def query_horizon(self) -> int | None:
        return self.horizon


@dataclass(frozen=True)
class UserColdCurve(_Curve):
    """One query for all k; users at random, in folds or 70/10/20."""

    folds: int  # number of disjoint folds; 0: 70/10/20 by seed + split

    kind = "user_cold_curve"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draw(max(self.shots), self.folds, self.split)

    def apply(self, rows: Rows) -> Split:
        history = History(rows, self.order, order_seed(self.seed, self.split, self.folds))
        cold = draw(history.eligible(self.eligible), self.seed, self.split, self.folds)
        files = self.files(history, cold)
        return Split(files, dict.fromkeys(PHASES, "train_{k}"), cold, {}, history.n_eligible)


@dataclass(frozen=True)
class UserColdGlobal(_Curve):
    """Test = block ``split`` of the users by first row, valid = the block before it.

    Settings are chosen with ``train_<k>`` (users of the blocks before valid, rows before valid's
    first event) on valid; then the model is fitted again on ``refit_<k>`` and judged once on test.
    """

    blocks: int

    kind = "user_cold_global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 3 <= self.split <= self.blocks:
            raise SettingError(
                f"'split' is the judged block, 3 to {self.blocks} (blocks), found {self.split}."
            )
        if self.order != "time":
            raise SettingError("user_cold_global has order 'time' only: its cut is a time.")

    def apply(self, rows: Rows) -> Split:
        history = History(rows, self.order, self.seed)
        enough = members(history.eligible(self.eligible), history.n_users)
        first = history.first_time()
        bounds = np.round(np.arange(1, self.blocks) * history.n_users / self.blocks).astype(int)
        blocks = np.split(np.lexsort((np.arange(history.n_users), first)), bounds)
        files: dict[str, Ints] = {}
        cold: dict[str, Ints] = {}
        cut: dict[str, float] = {}
        warm: dict[str, Mask] = {}
        for phase, block in (("valid", self.split - 2), ("test", self.split - 1)):
            cold[phase] = np.sort(blocks[block][enough[blocks[block]]])
            if not len(cold[phase]):
                raise DataError(f"No user of block {block + 1} has {self.eligible} rows: no query.")
            cut[phase] = float(first[blocks[block]].min())
            earlier = np.concatenate(blocks[:block])
            warm[phase] = history.belongs(earlier) & (history.time < cut[phase])
            if not warm[phase].any():
                raise DataError(
                    f"No row lies before the first event of block {block + 1} (time {cut[phase]}): "
                    "nothing to train on."
                )
        files = history.cold_files(cold, self.reserve)
        for phase, name in (("valid", "train"), ("test", "refit")):
            is_cold = history.belongs(cold[phase])
            for k in self.support_sizes:
                support = is_cold & (history.position < k)
                files[f"{name}_{k}"] = history.rows(warm[phase] | support)
        train = {"valid": "train_{k}", "test": "refit_{k}"}
        return Split(files, train, cold, cut, history.n_eligible)


def draw(eligible: Ints, seed: int, split: int, folds: int) -> dict[str, Ints]:
    """Valid and test users: test = fold ``split`` (or 20 %), valid = the 10 % before it."""
    n = len(eligible)
    users = np.random.default_rng(seed if folds else seed + split).permutation(eligible)
    if folds:
        bounds = np.round(np.arange(folds + 1) * n / folds).astype(int)
        users = np.roll(users, n - bounds[split + 1])  # the fold comes last
        n_test = int(bounds[split + 1] - bounds[split])
    else:
        n_test = round(0.2 * n)
    n_valid = round(0.1 * n)
    if not n_test or not n_valid:
        raise DataError(f"{n} eligible users are too few for valid and test users: no query.")
    test, valid = users[n - n_test :], users[n - n_test - n_valid : n - n_test]
    return {"valid": np.sort(valid), "test": np.sort(test)}


def order_seed(seed: int, split: int, folds: int) -> int:
    """Folds share one order of rows; random splits draw it anew."""
    return seed if folds else seed + split


def check_draw(shots: int, folds: int, split: int) -> None:
    """Refuse what `draw` cannot."""
    if shots < 0:
        raise SettingError(f"'shots' must be >= 0, found {shots}.")
    if folds < 0 or folds == 1:
        raise SettingError(f"'folds' must be 0 (random splits) or at least 2, found {folds}.")
    if folds and split >= folds:
        raise SettingError(f"'split' must be below folds {folds}, found {split}.")
