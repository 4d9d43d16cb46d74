"""Protocols against a naive reading of their definition, over random small tables."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from recbole_meta.data.history import Rows, pair_hash
from recbole_meta.data.protocol import (
    PHASES,
    ColdStart,
    Split,
    UserColdCurve,
    UserColdGlobal,
    UserColdK,
    UserColdRange,
    draw,
)
from recbole_meta.errors import DataError, SettingError

COMMON = dict(
    feedback="implicit", threshold={}, label={}, duplicates="error", order="time", seed=0, split=0
)
CURVE = COMMON | dict(shots=(0, 1, 3), reserve=3, horizon=2, eligible=5)
MASK = 2**64 - 1


def user_cold_k(**changes) -> UserColdK:
    return UserColdK(**COMMON | dict(shots=2, folds=0) | changes)


def user_cold_range(**changes) -> UserColdRange:
    return UserColdRange(**COMMON | dict(shots=2, folds=0, least=4, most=6) | changes)


def user_cold_curve(**changes) -> UserColdCurve:
    return UserColdCurve(**CURVE | dict(folds=0) | changes)


def user_cold_global(**changes) -> UserColdGlobal:
    return UserColdGlobal(**CURVE | dict(blocks=4, split=3) | changes)


def table(lengths: list[int], seed: int, n_times: int, n_items: int = 15) -> Rows:
    """Histories of these lengths in a shuffled file; few different times, so that many tie."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = np.concatenate([random.permutation(n_items)[:length] for length in lengths])
    start = random.integers(0, 4 * n_times, size=len(lengths))
    time = start[user] + random.integers(0, n_times, size=len(user))
    rows = Rows(
        user=user,
        item=item,
        time=time.astype(np.float64),
        user_key=random.integers(0, MASK, size=len(lengths), dtype=np.uint64),
        item_key=random.integers(0, MASK, size=n_items, dtype=np.uint64),
    )
    return shuffled(rows, random.permutation(len(user)))


def shuffled(rows: Rows, order: np.ndarray) -> Rows:
    time = None if rows.time is None else rows.time[order]
    return replace(rows, user=rows.user[order], item=rows.item[order], time=time)


def pairs(rows: Rows, chosen: np.ndarray) -> list[tuple[int, int]]:
    """(user, item) of these rows, which identifies a row in every permutation of the file."""
    return list(zip(rows.user[chosen].tolist(), rows.item[chosen].tolist()))


def files(protocol: ColdStart, rows: Rows) -> dict[str, list[tuple[int, int]]]:
    return {name: pairs(rows, chosen) for name, chosen in protocol.apply(rows).files.items()}


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hashes(rows: Rows, seed: int) -> list[int]:
    """The hash of every row, in Python's integers."""
    salt = splitmix64(seed)
    users = [splitmix64(int(key) ^ salt) for key in rows.user_key]
    items = [int(key) for key in rows.item_key]
    return [splitmix64((users[u] + items[i]) & MASK) for u, i in zip(rows.user, rows.item)]


def histories(rows: Rows, protocol: ColdStart) -> list[list[int]]:
    """Row numbers of each user in the protocol's order, the slow way."""
    seed = protocol.seed
    if not isinstance(protocol, UserColdGlobal) and protocol.folds == 0:
        seed += protocol.split
    key = hashes(rows, seed)
    late = rows.time if protocol.order == "time" else np.zeros(len(key))
    found: list[list[int]] = [[] for _ in rows.user_key]
    for row in sorted(range(len(key)), key=lambda row: (late[row], key[row])):
        found[rows.user[row]].append(row)
    return found


def flat(lists) -> list[int]:
    return [row for rows in lists for row in rows]


@st.composite
def tables(draw) -> Rows:
    """Twelve users with enough rows, and up to ten with any number."""
    some = draw(st.lists(st.integers(1, 12), max_size=10))
    enough = draw(st.lists(st.integers(5, 12), min_size=12, max_size=12))
    n_times = draw(st.sampled_from([1, 3, 20]))
    return table(some + enough, draw(st.integers(0, 999)), n_times)


RANDOM_USERS = dict(
    order=st.sampled_from(["time", "random"]),
    seed=st.integers(0, 9),
    split=st.integers(0, 2),
    folds=st.sampled_from([0, 3, 5]),
)
k_protocols = st.builds(user_cold_k, shots=st.integers(0, 4), **RANDOM_USERS)
curve_protocols = st.builds(
    user_cold_curve,
    shots=st.sampled_from([(0, 1, 3), (3,), (2, 0)]),
    horizon=st.sampled_from([None, 1, 2]),
    **RANDOM_USERS,
)
global_protocols = st.builds(
    user_cold_global,
    seed=st.integers(0, 9),
    split=st.sampled_from([3, 4]),
    shots=st.sampled_from([(0, 1, 3), (3,), (2, 0)]),
)
protocols = st.one_of(k_protocols, curve_protocols, global_protocols)
some_tables = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


def split_of(protocol: ColdStart, rows: Rows) -> Split:
    """Global may find nobody in a block, or nothing before it: not what is asked here."""
    try:
        return protocol.apply(rows)
    except DataError:
        assume(not isinstance(protocol, UserColdGlobal))
        raise


@some_tables
@given(tables(), protocols)
def test_cold_users_rows_are_support_reserve_and_query(rows: Rows, protocol: ColdStart) -> None:
    split = split_of(protocol, rows)
    history = histories(rows, protocol)
    assert not set(split.tasks["valid"]) & set(split.tasks["test"])
    for phase in PHASES:
        tasks = split.tasks[phase].tolist()
        assert tasks and tasks == sorted(set(tasks))
        start = protocol.query_start
        assert split.files[phase].tolist() == flat(history[user][start:] for user in tasks)
        assert all(len(history[user]) > start for user in tasks)
        for k in protocol.support_sizes:
            train = split.files[split.train[phase].format(k=k)]
            mine = train[np.isin(rows.user[train], tasks)]
            assert mine.tolist() == flat(history[user][:k] for user in tasks)
    if not isinstance(protocol, UserColdK):
        both = sorted([*split.tasks["valid"], *split.tasks["test"]])
        assert split.files["reserved"].tolist() == flat(
            history[u][: protocol.reserve] for u in both
        )


@some_tables
@given(tables(), st.one_of(k_protocols, curve_protocols))
def test_all_rows_of_all_other_users_are_in_train(rows: Rows, protocol) -> None:
    split = protocol.apply(rows)
    history = histories(rows, protocol)
    least = protocol.shots + 1 if isinstance(protocol, UserColdK) else protocol.eligible
    cold = {*split.tasks["valid"].tolist(), *split.tasks["test"].tolist()}
    assert all(len(history[user]) >= least for user in cold)
    assert split.eligible == sum(len(rows) >= least for rows in history)
    for k in protocol.support_sizes:
        expected = [rows[:k] if user in cold else rows for user, rows in enumerate(history)]
        assert split.files[split.train["test"].format(k=k)].tolist() == flat(expected)
    assert split.train["valid"] == split.train["test"]


@some_tables
@given(tables(), global_protocols)
def test_global_trains_on_what_lies_before_the_judged_block(rows: Rows, protocol) -> None:
    split = split_of(protocol, rows)
    history = histories(rows, protocol)
    n = len(history)
    first = [min(rows.time[row] for row in mine) for mine in history]
    arrived = sorted(range(n), key=lambda user: (first[user], user))
    edges = [round(b * n / protocol.blocks) for b in range(protocol.blocks + 1)]
    for phase, block in (("valid", protocol.split - 2), ("test", protocol.split - 1)):
        judged = arrived[edges[block] : edges[block + 1]]
        enough = sorted(user for user in judged if len(history[user]) >= protocol.eligible)
        assert split.tasks[phase].tolist() == enough
        cut = min(first[user] for user in judged)
        assert split.cut[phase] == cut
        name = {"valid": "train", "test": "refit"}[phase]
        for k in protocol.support_sizes:
            expected = []
            for user in range(n):
                if user in enough:
                    expected += history[user][:k]
                elif user in arrived[: edges[block]]:
                    expected += [row for row in history[user] if rows.time[row] < cut]
            assert split.train[phase].format(k=k) == f"{name}_{k}"
            assert split.files[f"{name}_{k}"].tolist() == expected


def test_global_blocks_are_equal_and_in_order_of_arrival() -> None:
    rows = table([5] * 41, seed=3, n_times=40)
    first = np.array([rows.time[rows.user == user].min() for user in range(41)])
    tasks = {b: user_cold_global(blocks=10, split=b).apply(rows).tasks for b in range(3, 11)}
    sizes = [len(tasks[b]["test"]) for b in tasks]
    assert set(sizes) == {4, 5} or set(sizes) == {4}
    for b in range(4, 11):
        assert tasks[b]["valid"].tolist() == tasks[b - 1]["test"].tolist()
        assert first[tasks[b]["valid"]].max() <= first[tasks[b]["test"]].min()
    seen = np.concatenate([tasks[b]["test"] for b in tasks])
    assert len(seen) == len(set(seen.tolist())) == 41 - 8


def test_global_refit_holds_the_valid_users_as_warm() -> None:
    rows = table([12] * 40, seed=5, n_times=4)
    split = user_cold_global(split=4).apply(rows)
    valid = set(split.tasks["valid"].tolist())
    refit, train = (split.files[name] for name in ("refit_0", "train_0"))
    assert not valid & set(rows.user[train].tolist())
    warm = [row for row in range(len(rows.user)) if rows.user[row] in valid]
    before = {row for row in warm if rows.time[row] < split.cut["test"]}
    assert len(before) > 50
    assert before == {row for row in refit.tolist() if rows.user[row] in valid}


@some_tables
@given(tables(), protocols, st.randoms(use_true_random=False))
def test_the_order_of_the_lines_changes_nothing(rows: Rows, protocol: ColdStart, random) -> None:
    split_of(protocol, rows)
    order = list(range(len(rows.user)))
    random.shuffle(order)
    assert files(protocol, shuffled(rows, np.array(order))) == files(protocol, rows)


@some_tables
@given(tables(), st.one_of(k_protocols, curve_protocols))
def test_order_random_does_not_know_the_time(rows: Rows, protocol) -> None:
    protocol = replace(protocol, order="random")
    late = replace(rows, time=-rows.time)
    never = replace(rows, time=None)
    assert files(protocol, rows) == files(protocol, late) == files(protocol, never)


def test_order_time_breaks_ties_by_the_hash() -> None:
    """Neither by the item (every item comes first about equally often) nor alike for all seeds."""
    rows = table([5] * 400, seed=1, n_times=1, n_items=5)
    found = [files(user_cold_k(shots=0, seed=seed), rows)["train"] for seed in (0, 1)]
    first_items = [item for _, item in found[0][::5]]
    assert min(first_items.count(item) for item in range(5)) > 0.1 * len(first_items)
    warm_in_both = {user for user, _ in found[0]} & {user for user, _ in found[1]}
    orders = [[pair for pair in pairs if pair[0] in warm_in_both] for pairs in found]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_order_time_never_goes_back_in_time() -> None:
    rows = table([10] * 30, seed=2, n_times=6)
    split = user_cold_curve().apply(rows)
    for name, chosen in split.files.items():
        user, time = rows.user[chosen], rows.time[chosen]
        assert np.all((np.diff(user) > 0) | ((np.diff(user) == 0) & (np.diff(time) >= 0))), name


@some_tables
@given(tables(), st.sampled_from([2, 3, 5]), st.integers(0, 9), st.sampled_from(["k", "curve"]))
def test_each_eligible_user_is_a_test_task_in_exactly_one_fold(rows, folds, seed, kind) -> None:
    make = {"k": user_cold_k, "curve": user_cold_curve}[kind]
    splits = [make(folds=folds, split=s, seed=seed).apply(rows) for s in range(folds)]
    length = np.bincount(rows.user)
    eligible = np.flatnonzero(length >= (3 if kind == "k" else 5)).tolist()
    tested = flat(split.tasks["test"].tolist() for split in splits)
    assert sorted(tested) == eligible
    sizes = [len(split.tasks["test"]) for split in splits]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("make", [user_cold_k, user_cold_curve])
def test_random_splits_are_70_10_20_of_the_eligible_and_differ(make) -> None:
    rows = table([8] * 100 + [1] * 7, seed=0, n_times=9)
    split, other = (make(split=s).apply(rows) for s in (0, 1))
    for found in (split, other):
        assert len(found.tasks["test"]) == 20 and len(found.tasks["valid"]) == 10
        assert found.eligible == 100
    assert set(split.tasks["test"]) != set(other.tasks["test"])
    assert set(make(seed=1).apply(rows).tasks["test"]) == set(other.tasks["test"])  # seed + split


@pytest.mark.parametrize("folds", [0, 5])
@pytest.mark.parametrize("make", [user_cold_k, user_cold_curve])
def test_same_seed_same_files_other_seed_other_users(make, folds: int) -> None:
    rows = table([8] * 60, seed=0, n_times=9)
    assert files(make(seed=4, folds=folds), rows) == files(make(seed=4, folds=folds), rows)
    tasks = [make(seed=seed, folds=folds).apply(rows).tasks for seed in (4, 5)]
    for phase in PHASES:
        assert set(tasks[0][phase]) != set(tasks[1][phase])


def test_valid_is_the_tenth_before_the_fold() -> None:
    users = np.random.default_rng(6).permutation(np.arange(50))
    for split in range(5):
        cold = draw(np.arange(50), seed=6, split=split, folds=5)
        start = 10 * split
        assert set(cold["test"]) == set(users[start : start + 10])
        assert set(cold["valid"]) == set(np.roll(users, 5)[start : start + 5])


def test_the_hash_is_splitmix64() -> None:
    """Reference value: the first output of splitmix64 with seed 1234567."""
    assert splitmix64(1234567) == 6457827717110365317
    rows = table([4] * 5, seed=8, n_times=2)
    for seed in (0, 1, 2**40):
        assert pair_hash(rows, seed).tolist() == hashes(rows, seed)
    assert pair_hash(rows, 0).tolist() != pair_hash(rows, 1).tolist()


def test_shots_are_judged_ascending() -> None:
    assert user_cold_curve(shots=(3, 0, 1)).support_sizes == (0, 1, 3)
    assert user_cold_k(shots=4).support_sizes == (4,)
    assert user_cold_k(shots=4).query_start == 4 and user_cold_k().query_horizon is None
    assert user_cold_curve().query_start == 3 and user_cold_curve().query_horizon == 2


BAD_SETTINGS = [
    (user_cold_curve, dict(shots=(0, 4)), r"'shots' 4 is larger than reserve 3\."),
    (user_cold_curve, dict(shots=()), r"'shots' must be different numbers >= 0, found \(\)"),
    (user_cold_curve, dict(shots=(1, 1)), r"'shots' must be different .* found \(1, 1\)"),
    (user_cold_curve, dict(shots=(-1, 1)), r"'shots' must be different .* found \(-1, 1\)"),
    (user_cold_curve, dict(eligible=4), r"'eligible' is 4, .*reserve \+ horizon = 5 "),
    (user_cold_curve, dict(horizon=None, eligible=3), r"'eligible' is 3, .* = 4 "),
    (user_cold_curve, dict(horizon=0), r"\(horizon 0, at least 1\)"),
    (user_cold_curve, dict(folds=5, split=5), r"'split' must be below folds 5, found 5\."),
    (user_cold_curve, dict(folds=1), r"'folds' must be 0 .* or at least 2, found 1\."),
    (user_cold_curve, dict(folds=-2), r"'folds' must be 0 .* or at least 2, found -2\."),
    (user_cold_k, dict(folds=2, split=3), r"'split' must be below folds 2, found 3\."),
    (user_cold_k, dict(shots=-1), r"'shots' must be >= 0, found -1\."),
    (user_cold_k, dict(seed=-1), r"'seed' and 'split' start at 0, found -1, 0\."),
    (user_cold_k, dict(split=-1), r"'seed' and 'split' start at 0, found 0, -1\."),
    (user_cold_k, dict(label={"rating": 4.0}), r"none otherwise; found .*'implicit'"),
    (user_cold_k, dict(feedback="label"), r"'label' names one field .* found \{\}"),
    (
        user_cold_k,
        dict(feedback="label", label={"rating": 4.0, "click": 1.0}),
        r"'label' names one field .*'click': 1\.0",
    ),
    (user_cold_global, dict(split=2), r"'split' is the judged block, 3 to 4 .* found 2\."),
    (user_cold_global, dict(split=5), r"'split' is the judged block, 3 to 4 .* found 5\."),
    (user_cold_global, dict(order="random"), r"user_cold_global has order 'time' only"),
]


@pytest.mark.parametrize("make, changes, message", BAD_SETTINGS)
def test_settings_that_cannot_be_are_refused(make, changes: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(**changes)


BAD_TABLES = [
    (user_cold_k(shots=7), [7] * 30, r"No user has the 8 rows .*: the longest history has 7\."),
    (user_cold_curve(), [4] * 30, r"No user has the 5 rows .*: the longest history has 4\."),
    (user_cold_curve(), [8] * 4, r"4 eligible users are too few for valid and test users"),
    (user_cold_k(folds=5), [8] * 4 + [1] * 9, r"4 eligible users are too few"),
    (user_cold_global(), [8] * 2 + [1], r"No user of block \d has 5 rows"),
]


@pytest.mark.parametrize("protocol, lengths, message", BAD_TABLES)
def test_tables_without_a_query_are_refused(protocol, lengths: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        protocol.apply(table(lengths, seed=0, n_times=5))


def test_global_with_nothing_before_the_cut_is_refused() -> None:
    rows = table([8] * 40, seed=0, n_times=1)
    same_second = replace(rows, time=np.zeros(len(rows.user)))
    with pytest.raises(DataError, match=r"No row lies before the first event of block 2 .*train"):
        user_cold_global().apply(same_second)


def test_order_time_without_times_is_refused() -> None:
    rows = replace(table([8] * 40, seed=0, n_times=1), time=None)
    with pytest.raises(DataError, match=r"order 'time' needs a time field"):
        user_cold_curve().apply(rows)


@some_tables
@given(st.lists(st.integers(1, 9), min_size=40, max_size=60), st.integers(0, 99))
def test_a_range_judges_only_users_with_as_many_rows(lengths: list[int], seed: int) -> None:
    rows = table(lengths, seed, n_times=3)
    eligible = {user for user, length in enumerate(lengths) if 4 <= length <= 6}
    assume(len(eligible) > 9)
    split, whole = user_cold_range().apply(rows), user_cold_k().apply(rows)
    cold = {*split.tasks["valid"].tolist(), *split.tasks["test"].tolist()}
    assert cold <= eligible and split.eligible == len(eligible) < whole.eligible + 1
    kept = split.files["train"]
    for user, length in enumerate(lengths):
        assert (rows.user[kept] == user).sum() == (2 if user in cold else length)
    for phase in PHASES:
        assert len(split.files[phase]) == sum(lengths[user] - 2 for user in split.tasks[phase])


@pytest.mark.parametrize("changes", [dict(least=2), dict(least=7), dict(most=3)])
def test_a_range_ascends(changes) -> None:
    with pytest.raises(SettingError, match="'shots', 'least' and 'most' must ascend"):
        user_cold_range(**changes)


def test_a_range_without_users() -> None:
    with pytest.raises(DataError, match="No user has the 4 to 6 rows"):
        user_cold_range().apply(table([9] * 20, 0, n_times=3))
