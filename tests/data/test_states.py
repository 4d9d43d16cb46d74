"""MeLU's four states against a naive reading of their definition, and their floors on ML-1M."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

from recbole_meta.data.folders import digest, sha256
from recbole_meta.data.history import Rows, pair_hash
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.data.protocol import PHASES, Split
from recbole_meta.data.rows import read_rows, with_states
from recbole_meta.data.source import read_fields
from recbole_meta.data.states import FourStates
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, LeakError, SettingError
from recbole_meta.model.baseline.shrunk_median import ShrunkMedian, ShrunkMedianSettings
from recbole_meta.model.baseline.support_mean import SupportMean

STATES = ("ww", "cw", "wc", "cc")
Pairs = set[tuple[int, int]]
COMMON = dict(
    feedback="rating", threshold={}, label={}, duplicates="error", order="random", seed=0, split=0,
    state="cw", warm_share=0.8, user_split=None, item_split=None, item_field="year",
    item_last=10.0, query_size=2, least=3, most=12,
)  # fmt: skip


def four_states(**changes) -> FourStates:
    return FourStates(**COMMON | changes)


def table(n_users: int, seed: int, n_items: int = 24, n_values: int = 20) -> Rows:
    """Users with 9 to all of the items; few different values, so that many tie."""
    random = np.random.default_rng(seed)
    lengths = random.integers(9, n_items + 1, n_users)
    user = np.repeat(np.arange(n_users), lengths)
    item = np.concatenate([random.permutation(n_items)[:length] for length in lengths])
    order = random.permutation(len(user))
    return Rows(
        user=user[order],
        item=item[order],
        time=None,
        user_key=random.integers(0, 2**64 - 1, n_users, dtype=np.uint64),
        item_key=random.integers(0, 2**64 - 1, n_items, dtype=np.uint64),
        item_value=random.integers(0, n_values, n_items).astype(np.float64),
    )


@st.composite
def tables(draw) -> Rows:
    """Who is cold is given, or by chance and value."""
    rows = table(draw(st.integers(20, 40)), draw(st.integers(0, 999)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        rows = replace(rows, cold_user=random.random(len(rows.user_key)) < 0.3)
    if draw(st.booleans()):
        rows = replace(rows, cold_item=random.random(len(rows.item_key)) < 0.4)
    return rows


protocols = st.builds(
    four_states,
    state=st.sampled_from(STATES),
    seed=st.integers(0, 5),
    split=st.integers(0, 2),
    query_size=st.sampled_from([1, 2]),
    least=st.sampled_from([3, 4]),
    most=st.sampled_from([6, 12, 20]),
    warm_share=st.sampled_from([0.5, 0.8]),
    item_last=st.sampled_from([8.0, 13.0]),
)
some_tables = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


def split_of(protocol: FourStates, rows: Rows) -> Split:
    """A state may have nobody in range: not what is asked here."""
    try:
        return protocol.apply(rows)
    except DataError:
        assume(False)
        raise


def pairs(rows: Rows, chosen) -> list[tuple[int, int]]:
    return list(zip(rows.user[chosen].tolist(), rows.item[chosen].tolist()))


def files(protocol: FourStates, rows: Rows) -> dict[str, list[tuple[int, int]]]:
    return {name: pairs(rows, chosen) for name, chosen in protocol.apply(rows).files.items()}


def cold_sides(protocol: FourStates, rows: Rows) -> tuple[set[int], set[int]]:
    """Cold users and items: as given, or those who never are with what exists under 'ww'."""
    if rows.cold_user is None:
        found = replace(protocol, state="ww", query_size=1, least=2, most=99).apply(rows)
        names = ("valid", "support_valid", "test", "support_test", "train_98")
        exist = {user for name in names for user, _ in pairs(rows, found.files[name])}
        users = set(range(len(rows.user_key))) - exist
    else:
        users = set(np.flatnonzero(rows.cold_user).tolist())
    late = rows.cold_item
    if late is None:
        late = rows.item_value > protocol.item_last
    return users, set(np.flatnonzero(late).tolist())


class Naive:
    """What valid takes for new, read off the training file; then every file by the definition."""

    def __init__(self, protocol: FourStates, rows: Rows) -> None:
        self.split = split_of(protocol, rows)
        self.name = f"{{}}_{protocol.most - protocol.query_size}"
        self.found = {name: pairs(rows, chosen) for name, chosen in self.split.files.items()}
        cold_user, cold_item = cold_sides(protocol, rows)
        everything = set(zip(rows.user.tolist(), rows.item.tolist()))
        self.exists = {(u, i) for u, i in everything if u not in cold_user and i not in cold_item}
        users, items = ({pair[side] for pair in self.exists} for side in (0, 1))
        n_items = len(rows.item_key) - len(cold_item)
        assume(len(items) == n_items and len(users) == len(rows.user_key) - len(cold_user))
        warm = set(self.found[self.name.format("train")]) - set(self.found["support_valid"])
        self.fresh = users - {u for u, _ in warm} if protocol.state[0] == "c" else set()
        self.late = items - {i for _, i in warm} if protocol.state[1] == "c" else set()
        self.n_fresh, self.n_late = round(0.1 * len(users)), round(0.2 * n_items)
        user_is_cold, item_is_cold = (letter == "c" for letter in protocol.state)
        self.state = {
            "valid": {
                (u, i) for u, i in self.exists
                if (u in self.fresh or not user_is_cold) and (i in self.late or not item_is_cold)
            },
            "test": {
                (u, i) for u, i in everything
                if (u in cold_user) == user_is_cold and (i in cold_item) == item_is_cold
            },
        }  # fmt: skip
        self.train = {
            "valid": {(u, i) for u, i in self.exists if u not in self.fresh and i not in self.late},
            "test": self.exists,
        }
        count = {
            phase: np.bincount([u for u, _ in inside], minlength=len(rows.user_key))
            for phase, inside in self.state.items()
        }
        self.in_range = {
            phase: np.flatnonzero((n >= protocol.least) & (n <= protocol.most)).tolist()
            for phase, n in count.items()
        }


@some_tables
@given(tables(), protocols)
def test_a_task_is_a_user_in_range_and_its_rows_in_the_state(rows, protocol) -> None:
    naive = Naive(protocol, rows)
    for phase in PHASES:
        tasks = naive.split.tasks[phase].tolist()
        assert tasks
        if protocol.state == "ww":
            assert set(tasks) < set(naive.in_range[phase]) and tasks == sorted(set(tasks))
        else:
            assert tasks == naive.in_range[phase]
        query, support = naive.found[phase], naive.found[f"support_{phase}"]
        assert not set(query) & set(support)
        assert {*query, *support} == {pair for pair in naive.state[phase] if pair[0] in tasks}
        assert [u for u, _ in query] == [u for u in tasks for _ in range(protocol.query_size)]
        assert len(query) + len(support) == len({*query, *support})
    assert naive.split.eligible == len(naive.in_range["test"])
    if protocol.state == "ww":
        tasks, n = naive.split.tasks, len(naive.in_range["test"])
        assert not set(tasks["valid"]) & set(tasks["test"])
        assert (len(tasks["test"]), len(tasks["valid"])) == (round(0.2 * n), round(0.1 * n))


@some_tables
@given(tables(), protocols)
def test_training_is_what_exists_and_the_support(rows: Rows, protocol: FourStates) -> None:
    """What is valid's is not in its training file; the refit for test has it."""
    naive = Naive(protocol, rows)
    query = {phase: set(naive.found[phase]) for phase in PHASES}
    support = {phase: set(naive.found[f"support_{phase}"]) for phase in PHASES}
    train, refit = (naive.found[naive.name.format(name)] for name in ("train", "refit"))
    hidden = query["valid"] | query["test"]
    assert set(train) == (naive.train["valid"] - hidden) | support["valid"]
    assert set(refit) == (naive.exists - query["test"]) | support["test"]
    assert len(set(train)) == len(train) and len(set(refit)) == len(refit)
    assert not set(train) & hidden
    if protocol.state[0] == "c":
        assert len(naive.fresh) == naive.n_fresh
        assert not naive.fresh & set(naive.split.tasks["test"].tolist())
    if protocol.state != "ww":
        assert query["valid"] | support["valid"] <= set(refit)


@some_tables
@given(tables(), protocols)
def test_valid_takes_the_latest_fifth_for_cold(rows: Rows, protocol: FourStates) -> None:
    protocol = replace(protocol, state="wc" if protocol.state[0] == "w" else "cc")
    naive = Naive(protocol, rows)
    earlier = {i for _, i in naive.exists} - naive.late
    assert len(naive.late) == naive.n_late
    value = rows.item_value
    assert min(value[list(naive.late)]) >= max(value[list(earlier)])


@some_tables
@given(tables(), protocols)
def test_every_file_is_in_order_of_user_and_hash(rows: Rows, protocol: FourStates) -> None:
    split = split_of(protocol, rows)
    key = pair_hash(rows, protocol.seed + protocol.split)
    for name, chosen in split.files.items():
        expected = sorted(chosen.tolist(), key=lambda row: (rows.user[row], key[row]))
        assert chosen.tolist() == expected, name
    for phase in PHASES:  # the query comes first of them
        for task in split.tasks[phase]:
            own = {name: chosen[rows.user[chosen] == task] for name, chosen in split.files.items()}
            assert key[own[phase]].max() < key[own[f"support_{phase}"]].min()


@some_tables
@given(tables(), protocols, st.randoms(use_true_random=False))
def test_neither_lines_nor_times_change_anything(rows, protocol, random) -> None:
    split_of(protocol, rows)
    order = np.array(random.sample(range(len(rows.user)), len(rows.user)))
    other = replace(rows, user=rows.user[order], item=rows.item[order])
    assert files(protocol, other) == files(protocol, rows)
    assert files(protocol, replace(rows, time=order.astype(float))) == files(protocol, rows)


@pytest.mark.parametrize("state", STATES)
def test_the_seed_changes_users_and_queries_and_split_is_added_to_it(state: str) -> None:
    rows = table(60, seed=4)
    one, two = (files(four_states(state=state, seed=seed), rows) for seed in (3, 4))
    assert one == files(four_states(state=state, seed=3), rows)
    assert two == files(four_states(state=state, seed=3, split=1), rows)
    users = [{user for user, _ in found["test"]} for found in (one, two)]
    assert users[0] != users[1]
    both = users[0] & users[1]
    queries = [{pair for pair in found["test"] if pair[0] in both} for found in (one, two)]
    assert both and queries[0] != queries[1]
    given = replace(rows, cold_user=np.arange(60) % 5 == 0)
    one, two = (files(four_states(state=state, seed=seed), given) for seed in (3, 4))
    users = {
        phase: [{user for user, _ in found[phase]} for found in (one, two)] for phase in PHASES
    }
    assert (users["test"][0] == users["test"][1]) == (state != "ww")
    assert (users["valid"][0] == users["valid"][1]) == (state == "wc")  # all who exist


@pytest.mark.parametrize(("share", "n_cold"), [(0.8, 12), (0.5, 30), (0.9, 6)])
def test_users_are_cold_by_chance(share: float, n_cold: int) -> None:
    rows = table(60, seed=4)
    wide = dict(warm_share=share, query_size=1, least=2, most=99, state="cw")
    tasks = [set(four_states(seed=s, **wide).apply(rows).tasks["test"].tolist()) for s in range(99)]
    assert {len(users) for users in tasks} == {n_cold}
    times = np.bincount([user for users in tasks for user in users], minlength=60)
    assert times.min() > 0 and times.max() < 99  # everyone in turn
    assert len({frozenset(users) for users in tasks}) == 99


def test_items_up_to_the_last_value_exist() -> None:
    rows = replace(table(60, seed=4), item_value=np.arange(24.0))
    found = files(four_states(state="wc", query_size=1, least=2, most=99), rows)
    warm = set(found["refit_98"]) - set(found["support_test"])
    assert {item for _, item in warm} == set(range(11))
    assert {item for _, item in found["test"]} == set(range(11, 24))


def test_which_items_of_the_last_year_are_late_is_chance() -> None:
    """All are of one year: the fifth is by seed, not by code."""
    rows = replace(table(60, seed=4), item_value=np.zeros(24), cold_item=np.arange(24) >= 20)
    wide = dict(state="wc", query_size=1, least=2, most=99)
    late = [
        {item for _, item in pairs(rows, four_states(seed=seed, **wide).apply(rows).files["valid"])}
        for seed in range(30)
    ]
    assert {len(items) for items in late} == {4}
    assert set().union(*late) == set(range(20))


BAD_SETTINGS = [
    (dict(warm_share=0.0), r"'warm_share' must be between 0 and 1, found 0\.0\."),
    (dict(warm_share=1.0), r"'warm_share' must be between 0 and 1, found 1\.0\."),
    (dict(query_size=0), r"must ascend from 1, found 0, 3, 12\."),
    (dict(query_size=3), r"'query_size', 'least' and 'most' must ascend .*, found 3, 3, 12\."),
    (dict(least=13), r"must ascend from 1, found 2, 13, 12\."),
    (dict(order="time"), r"four_states has order 'random' only: its query is random\."),
    (dict(seed=-1), r"'seed' and 'split' start at 0, found -1, 0\."),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS)
def test_settings_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        four_states(**changes)


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(SettingError, match=r"'melu_cw': 'state' is 'cold'\. .*Allowed: .*cw"):
        read_protocol("melu_cw", state="cold")


def test_a_state_is_what_its_page_says() -> None:
    for state in STATES:
        protocol = read_protocol(f"melu_{state}")
        assert isinstance(protocol, FourStates) and protocol.state == state
        assert (protocol.support_sizes, protocol.held_out) == ((90,), 10)
        assert (protocol.least, protocol.most, protocol.item_last) == (13, 100, 1997)
    plain, chronological = (read_protocol(f"melu_cw{x}") for x in ("", "_chronological"))
    given = dict(user_split="cold_split_users.tsv", item_split="cold_split_items.tsv")
    assert replace(plain, **given) == chronological


@pytest.mark.parametrize(
    ("changes", "sides", "where"),
    [
        (dict(least=25, most=30), {}, "cw' of valid"),
        (dict(), dict(cold_user=np.zeros(60, dtype=bool)), "cw' of test"),
        (dict(), dict(cold_user=np.ones(60, dtype=bool)), "cw' of valid"),
        (dict(state="cc"), dict(cold_item=np.zeros(24, dtype=bool)), "cc' of test"),
        (dict(state="wc"), dict(cold_item=np.ones(24, dtype=bool)), "wc' of valid"),
        (dict(state="ww", least=25, most=30), {}, "ww' of valid"),
    ],
)
def test_a_state_without_a_task_is_refused(changes: dict, sides: dict, where: str) -> None:
    rows = replace(table(60, seed=4), **sides)
    with pytest.raises(DataError, match=rf"No user has \d+ to \d+ rows in state '{where}: no q"):
        four_states(**changes).apply(rows)


# Prepared folders


@pytest.fixture(scope="module")
def prepared(make_states) -> dict[str, Prepared]:
    return {state: make_states(state) for state in STATES}


def tokens(rows) -> Pairs:
    return set(zip(rows["user"], rows["item"]))


@pytest.mark.parametrize("state", STATES)
def test_a_folder_says_how_its_tasks_are_judged(prepared, state: str) -> None:
    folder = prepared[state]
    assert (folder.shots, folder.held_out, folder.query_start, folder.horizon) == ((7,), 2, 0, None)
    for phase, name in (("valid", "train_7"), ("test", "refit_7")):
        assert folder.train_name(phase, 7) == name
        early, late = folder.early_rows(phase), folder.rows(phase)
        assert tokens(folder.support(phase, 7)) == tokens(early) and not tokens(early) & tokens(
            late
        )
        assert set(early["user"]) == set(late["user"]) == set(folder.tasks(phase))
        assert late["user"].value_counts().tolist() == [2] * len(folder.tasks(phase))
        sizes = early["user"].value_counts()
        assert sizes.min() >= 1 and sizes.max() <= 7
        train = folder.rows(name)
        assert tokens(early) <= tokens(train) and not tokens(late) & tokens(train)
        cold = set() if state == "ww" else tokens(early)
        assert tokens(folder.warm_rows(phase)) == tokens(train) - cold
        assert folder.candidates(phase) == set(folder.catalogue)


def test_warm_tasks_of_existing_items_keep_their_support_in_training(prepared) -> None:
    folder = prepared["ww"]
    for phase in PHASES:
        rows = folder.rows(folder.train_name(phase, 7))
        own = rows[rows["user"].isin(folder.tasks(phase))]
        assert tokens(own) == tokens(folder.support(phase, 7))


@pytest.mark.parametrize("state", STATES)
def test_items_of_the_turn_of_the_century_are_cold(prepared, state: str) -> None:
    """i00 to i29 are of 1985 to 1999, and the latest fifth of them are i24 to i29."""
    folder = prepared[state]
    cold = {f"i{item}" for item in range(30, 60)}
    late = {f"i{item}" for item in range(24, 30)}
    items = {phase: {item for _, item in tokens(folder.rows(phase))} for phase in PHASES}
    train = {phase: {item for _, item in tokens(folder.warm_rows(phase))} for phase in PHASES}
    exist = set(folder.catalogue) - cold
    assert train["test"] == exist
    if state[1] == "c":
        assert items["valid"] <= late and items["test"] <= cold
        assert train["valid"] == exist - late
    else:
        assert items["test"] <= exist and items["valid"] <= exist
        assert items["valid"] & late  # valid asks for all that exists
        assert train["valid"] == exist


def split_file(field: str, tokens_: list[str], cold: set[str]) -> str:
    rows = [f"{token}\t{'cold' if token in cold else 'existing'}" for token in tokens_]
    return "\n".join([f"{field}\tstate", *rows]) + "\n"


USERS = [f"u{n:03}" for n in range(120)]
ITEMS = [f"i{n:02}" for n in range(60)]
COLD_USERS = set(USERS[1::3])
COLD_ITEMS = set(ITEMS[0::2])
GIVEN = {"user_split": "who.tsv", "item_split": "what.tsv"}
SPLITS = {
    "who.tsv": split_file("user_id", [*USERS, "u999"], COLD_USERS),
    "what.tsv": split_file("item_id", ITEMS[::-1], COLD_ITEMS),
}


@pytest.mark.parametrize("state", STATES)
def test_given_files_say_who_is_cold(make_states, state: str) -> None:
    folder = make_states(state, SPLITS, **GIVEN)
    test = tokens(folder.rows("test")) | tokens(folder.support("test", 7))
    assert {user in COLD_USERS for user, _ in test} == {state[0] == "c"}
    assert {item in COLD_ITEMS for _, item in test} == {state[1] == "c"}
    warm = tokens(folder.warm_rows("test"))
    assert {user for user, _ in warm} <= set(USERS) - COLD_USERS
    assert {item for _, item in warm} == set(ITEMS) - COLD_ITEMS
    assert set(GIVEN.values()) <= set(folder.description["inputs"])


def test_one_side_may_be_given(make_states) -> None:
    users = make_states("cc", SPLITS, user_split="who.tsv")
    test = tokens(users.rows("test"))
    assert {user for user, _ in test} <= COLD_USERS and {item for _, item in test} <= set(
        ITEMS[30:]
    )
    items = make_states("cc", SPLITS, item_split="what.tsv")
    assert {item for _, item in tokens(items.rows("test"))} <= COLD_ITEMS
    assert not {user for user, _ in tokens(items.rows("test"))} <= COLD_USERS


def test_an_item_that_the_file_does_not_name_goes_by_its_year(make_states) -> None:
    unsaid = {"i03", "i40"}  # of 1986 and 2005
    named = [item for item in ITEMS if item not in unsaid]
    split = {"what.tsv": split_file("item_id", named, COLD_ITEMS)}
    folder = make_states("cw", split, item_split="what.tsv")
    warm = {item for _, item in tokens(folder.warm_rows("test"))}
    assert warm == set(ITEMS) - COLD_ITEMS - {"i40"} and "i03" in warm
    with pytest.raises(
        DataError, match=r"what\.tsv names no 'item_id' of the data set, e\.g\. 'i0"
    ):
        other = {"what.tsv": split_file("item_id", ["1", "2"], {"1"})}
        make_states("cw", other, item_split="what.tsv")


def test_a_year_is_read_where_something_goes_by_it(make_states) -> None:
    """Not where a file names all items and the state's items exist."""
    for state in ("ww", "cw"):
        assert make_states(state, SPLITS, **GIVEN, item_field="none").tasks("test")
    part = SPLITS | {"what.tsv": split_file("item_id", ITEMS[1:], COLD_ITEMS)}
    cases = [("wc", SPLITS, GIVEN), ("cc", SPLITS, GIVEN), ("cw", part, GIVEN),
             ("cw", SPLITS, {"user_split": "who.tsv"})]  # fmt: skip
    for state, files_, names in cases:
        with pytest.raises(DataError, match=r"ml-100k\.item has no column 'none'"):
            make_states(state, files_, **names, item_field="none")


def test_a_year_that_is_no_number_is_named(make_states) -> None:
    years = "".join(f"{item}\t{'?' if item == 'i07' else 1990}\ta\n" for item in ITEMS[:-1])
    header = "item_id:token\trelease_year:token\tclass:token_seq\n"
    with pytest.raises(DataError, match=r"'release_year' of 'i07' is no number \(2 such\)"):
        make_states("cw", {"ml-100k.item": header + years})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"Cannot read the split file .*who\.tsv: .*No such file"),
        ("", r"Cannot read the split file .*who\.tsv: No columns"),
        ("user\tstate\nu000\tcold\n", r"who\.tsv has no column 'user_id'\. .*user"),
        ("user_id\tstat\nu000\tcold\n", r"who\.tsv has no column 'state'\. .*stat"),
        ("user_id\tstate\nu000\tcold\nu001\twarm\n",
         r"who\.tsv, line 3: 'state' is 'warm'\. Allowed: cold, existing\."),
        (split_file("user_id", USERS[:-2], COLD_USERS),
         r"who\.tsv does not say what 'user_id' 'u118' is\."),
        (SPLITS["who.tsv"] + "u003\tcold\n",
         r"who\.tsv says both states of 'user_id' 'u003': existing and cold\."),
    ],
)  # fmt: skip
def test_split_files_that_do_not_say_it_are_refused(make_states, text, message: str) -> None:
    written = {} if text is None else {"who.tsv": text}
    with pytest.raises(DataError, match=message):
        make_states("cw", written, user_split="who.tsv")


def test_a_line_twice_says_nothing_new(make_states) -> None:
    once = make_states("cw", SPLITS, user_split="who.tsv")
    again = SPLITS | {"who.tsv": SPLITS["who.tsv"] + "u001\tcold\n"}
    twice = make_states("cw", again, user_split="who.tsv")
    assert once.tasks("test") == twice.tasks("test") and once.name != twice.name


def test_bytes_of_both_split_files_are_in_the_folders_name(tmp_path) -> None:
    """They may have one name in two folders."""
    given = {"user_split": "a/split.tsv", "item_split": "b/split.tsv"}
    data = tmp_path / "ml-100k"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
    rows = [f"{user}\t{item}\t3\t1" for n, user in enumerate(USERS) for item in ITEMS[n % 5 :: 3]]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (data / "ml-100k.inter").write_text("\n".join([head, *rows]) + "\n")
    (data / "b" / "split.tsv").write_text(SPLITS["what.tsv"])
    protocol = read_protocol("melu_cw", **given, query_size=2, least=3, most=12)
    found = []
    for cold in (COLD_USERS, set(USERS[:30])):
        (data / "a" / "split.tsv").write_text(split_file("user_id", USERS, cold))
        path = prepare("ml-100k", protocol, "melu_cw", tmp_path, tmp_path / "prepared")
        found.append(open_prepared(path))
        assert set(found[-1].tasks("test")) <= cold
    assert found[0].name != found[1].name


# Gates


@pytest.fixture
def spoil(prepared, tmp_path) -> Callable[..., Prepared]:
    """``spoil(state, name, change)``: a file's rows changed, with digests as if written so."""

    def make(state: str, name: str, change: Callable[[list[list[str]]], object]) -> Prepared:
        source = prepared[state].path
        folder = Path(shutil.copytree(source, tmp_path / source.name))
        path = folder / f"{folder.name}.{name}.inter"
        header, *text = path.read_text(encoding="utf-8").strip("\n").split("\n")
        rows = [line.split("\t") for line in text]
        change(rows)
        path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", "utf-8")
        about = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
        about["outputs"][f".{name}.inter"] = sha256(path.read_bytes())
        about["sha256"] = digest(about)
        (folder / "protocol.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        return Prepared(folder)

    return make


def appended(user: str, item: str) -> Callable[[list[list[str]]], object]:
    return lambda rows: rows.append([user, item, "3", "0"])


def without(user: str, item: str) -> Callable[[list[list[str]]], object]:
    return lambda rows: rows.remove(next(row for row in rows if row[:2] == [user, item]))


FILES = [("valid", "train_7"), ("test", "refit_7")]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("phase", "name"), FILES)
def test_a_folder_whose_rows_are_those_written_passes(
    prepared, spoil, state: str, phase: str, name: str
) -> None:
    prepared[state].check_leaks()
    spoil(state, name, lambda rows: rows.append(rows.pop())).check_leaks()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("phase", "name"), FILES)
def test_a_query_pair_in_training(prepared, spoil, state: str, phase: str, name: str) -> None:
    user, item = prepared[state].rows(phase)[["user", "item"]].iloc[3]
    with pytest.raises(LeakError, match=rf"1 query pairs of '{phase}' are in '{name}'"):
        spoil(state, name, appended(user, item)).check_leaks()


@pytest.mark.parametrize("state", STATES)
def test_a_query_pair_in_the_support(prepared, spoil, state: str) -> None:
    user, item = prepared[state].rows("test")[["user", "item"]].iloc[3]
    with pytest.raises(LeakError, match=r"1 (query|support) (pairs|rows) of 'test' are|, not \d"):
        spoil(state, "support_test", appended(user, item)).check_leaks()


@pytest.mark.parametrize("state", ["cw", "cc"])
@pytest.mark.parametrize(("phase", "name"), FILES)
def test_a_cold_user_in_training(prepared, spoil, state: str, phase: str, name: str) -> None:
    """With an item that nobody has: no query pair and no cold item."""
    user = prepared[state].tasks(phase)[1]
    size = int((prepared[state].support(phase, 7)["user"] == user).sum())
    message = rf"user '{user}' of '{phase}' has {size + 1} rows in '{name}', not {size}: a test us"
    with pytest.raises(LeakError, match=message):
        spoil(state, name, appended(user, "i999")).check_leaks()


@pytest.mark.parametrize("state", ["ww", "wc"])
@pytest.mark.parametrize(("phase", "name"), FILES)
def test_a_known_user_may_be_met_in_training(prepared, spoil, state, phase, name) -> None:
    user = prepared[state].tasks(phase)[1]
    spoil(state, name, appended(user, "i999")).check_leaks()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("phase", "name"), FILES)
def test_a_support_row_that_training_lacks(prepared, spoil, state, phase, name) -> None:
    """However many other rows the user has there."""
    user, item = prepared[state].support(phase, 7)[["user", "item"]].iloc[3]
    size = int((prepared[state].support(phase, 7)["user"] == user).sum())
    message = {
        "c": rf"user '{user}' of '{phase}' has {size - 1} rows in '{name}', not {size}",
        "w": rf"1 support rows of '{phase}' are not in '{name}', e\.g\. user '{user}' and item "
        rf"'{item}'",
    }[state[0]]
    with pytest.raises(LeakError, match=message):
        spoil(state, name, without(user, item)).check_leaks()


@pytest.mark.parametrize("state", ["wc", "cc"])
@pytest.mark.parametrize(("phase", "name"), FILES)
@pytest.mark.parametrize("where", ["query", "support"])
def test_a_cold_item_in_training(prepared, spoil, state, phase, name, where) -> None:
    """Of a user who is no task."""
    folder = prepared[state]
    rows = folder.rows(phase) if where == "query" else folder.support(phase, 7)
    user = min(set(folder.warm_rows(phase)["user"]) - set(folder.tasks(phase)))
    item = rows["item"].iloc[2]
    message = rf"1 cold items of '{phase}' are in '{name}', e\.g\. '{item}': a cold item must not"
    with pytest.raises(LeakError, match=message):
        spoil(state, name, appended(user, item)).check_leaks()


# ML-1M


@pytest.fixture(scope="module")
def movielens(data_path):
    """Rows with years, ratings; who is cold is left to the protocol."""
    source, fields = data_path / "ml-1m", read_fields("ml-1m")
    paths = {side: source / f"ml-1m.{side}" for side in ("inter", "user", "item")}
    protocol = read_protocol("melu_cw")
    file, rows, names = read_rows(paths["inter"], protocol, fields)
    return with_states(rows, protocol, fields, paths, names), file.numbers("rating")


def padded(rows: Rows, split: Split, name: str, rating: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Ratings of each test task's rows in a file and their mask, [T, N]."""
    chosen = split.files[name]
    task = np.searchsorted(split.tasks["test"], rows.user[chosen])
    place = np.arange(len(chosen)) - np.searchsorted(task, task)
    label = torch.zeros(len(split.tasks["test"]), int(place.max()) + 1)
    mask = torch.zeros_like(label)
    label[task, place] = torch.from_numpy(rating[chosen]).float()
    mask[task, place] = 1
    return label, mask


def unprepared(cls: type, constant: float, **values) -> nn.Module:
    """A floor as ``prepare`` leaves it, without RecBole's objects."""
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    model.constant = torch.tensor(constant)
    for name, value in values.items():
        setattr(model, name, value)
    return model


def shrunk(pseudo_count: int) -> nn.Module:
    return unprepared(ShrunkMedian, 4.0, settings=ShrunkMedianSettings(0, None, pseudo_count, 4.0))


LEVELS = {  # protocols.md's reference: eligible tasks; constant 4, mean, median, shrunk median
    "cw": (665, (0.802, 0.814, 0.781, 0.767)),
    "wc": (2872, (0.901, 0.898, 0.874, 0.850)),
    "cc": (714, (0.898, 0.898, 0.870, 0.844)),
}


@pytest.mark.data
@pytest.mark.parametrize("state", LEVELS)
def test_tasks_and_floors_of_ml_1m(movielens, state: str) -> None:
    """Mean over two splits; the reference is a mean over five, computed elsewhere."""
    rows, rating = movielens
    n_tasks, found = [], []
    floors = [unprepared(SupportMean, 4.0), shrunk(0), shrunk(3)]
    for split_ in range(2):
        split = read_protocol(f"melu_{state}", split=split_).apply(rows)
        label, mask = padded(rows, split, "support_test", rating)
        query, asked = padded(rows, split, "test", rating)
        n_tasks.append(len(label))
        assert asked.all() and query.shape == (len(label), 10)
        assert mask.sum(1).min() >= 3 and mask.sum(1).max() <= 90
        support = Examples(torch.zeros(mask.shape), label, mask, torch.zeros(len(mask)))
        levels = [vmap(floor.adapt)(support)["level"] for floor in floors]
        levels.insert(0, torch.full_like(levels[0], 4.0))
        found.append([float((query - level[:, None]).abs().mean()) for level in levels])
    expected_tasks, expected = LEVELS[state]
    assert np.mean(n_tasks) == pytest.approx(expected_tasks, rel=0.05)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.01)


@pytest.mark.data
def test_newest_accounts_and_latest_films_of_ml_1m_are_cold(data_path, tmp_path) -> None:
    protocol = read_protocol("melu_cw_chronological")
    path = prepare("ml-1m", protocol, "melu_cw_chronological", data_path, tmp_path)
    folder = open_prepared(path)
    named, cold = {}, {}
    for side in ("user", "item"):
        text = (data_path / "ml-1m" / f"cold_split_{side}s.tsv").read_text(encoding="utf-8")
        lines = [line.split("\t") for line in text.strip().split("\n")[1:]]
        named[side] = {token for token, _ in lines}
        cold[side] = {token for token, state in lines if state == "cold"}
    assert (len(cold["user"]), len(cold["item"])) == (1208, 737)
    tasks, catalogue = set(folder.tasks("test")), set(folder.catalogue)
    assert tasks < cold["user"] and len(tasks) > 500
    assert len(catalogue) == 3706 and len(catalogue - named["item"]) == 31
    asked, warm = folder.rows("test"), folder.warm_rows("test")
    assert len(asked) == 10 * len(tasks)
    assert set(warm["user"]) == named["user"] - cold["user"]
    assert not {*asked["item"], *warm["item"]} & cold["item"]
    file = path / f"{path.name}.item"
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").strip().split("\n")[1:]]
    year = {line[0]: int(line[2]) for line in lines}
    assert max(year[item] for item in {*asked["item"], *warm["item"]}) == 1997
    assert set(warm["item"]) - named["item"]
