"""Training episodes: what of a user's history is support and query, and who is never in one."""

import io

import numpy as np
import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepared import Prepared
from recbole_meta.errors import DataError
from recbole_meta.stage import Stage, load_stage

CURVE = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8}
GLOBAL = CURVE | {"blocks": 4, "split": 4}
FIRST = {"eligible": 8, "horizon": 3}
Pairs = list[tuple[str, float]]


def histories(n_users: int = 40, n_items: int = 20) -> dict[str, Pairs]:
    """A history of 3 to 14 rows of each user, in order of time; a rating tells user and item."""
    rng = np.random.default_rng(5)
    found = {}
    for user in range(n_users):
        items = rng.permutation(n_items)[: 3 + user % 12]
        found[f"u{user:02}"] = [(f"i{item}", rating(user, int(item))) for item in items]
    return found


def rating(user: int, item: int) -> float:
    return 1 + (3 * user + 7 * item) % 41 / 10


def rows_of(found: dict[str, Pairs]) -> list[tuple]:
    """Users arrive one after another; the file is not in order of time."""
    rows = [
        (user, item, value, 1000 * int(user[1:]) + place)
        for user, pairs in found.items()
        for place, (item, value) in enumerate(pairs)
    ]
    return [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]


@pytest.fixture(scope="module")
def stage(make_world):
    """``stage(protocol, phase, **settings)``: the training stage of the histories, made once."""
    made: dict[str, Stage] = {}

    def make(protocol: str, phase: str = "test", **settings) -> Stage:
        key = repr((protocol, phase, settings))
        if key not in made:
            prepared = make_world(rows_of(histories()), protocol, **settings)
            made[key] = stage_of(prepared, phase)
        return made[key]

    return make


def stage_of(prepared: Prepared, phase: str = "test") -> Stage:
    name = "Pop" if prepared.feedback == "implicit" else "Constant"
    return load_stage(choose_model(name), prepared, phase, prepared.shots[0], 1, {})


def loader(stage: Stage, batch_size: int = 6, seed: int = 3) -> EpisodeDataLoader:
    return EpisodeDataLoader(stage.dataset, batch_size, seed)


class Episode:
    """One episode in tokens, read through its masks."""

    def __init__(self, stage: Stage, batch, row: int) -> None:
        user, item = stage.dataset.uid_field, stage.dataset.iid_field
        self.user = stage.dataset.id2token(user, int(batch["task"][row]))

        def tokens(ids) -> list[str]:
            return [str(stage.dataset.id2token(item, int(id_))) for id_ in ids]

        self.pairs: dict[str, Pairs] = {}
        for side in ("support", "query"):
            mask = batch[f"{side}_mask"][row] > 0
            items = tokens(batch[f"{side}_item"][row][mask])
            self.pairs[side] = list(zip(items, batch[f"{side}_label"][row][mask].tolist()))
            assert not batch[f"{side}_item"][row][~mask].any()  # padding
            assert not batch[f"{side}_label"][row][~mask].any()
        barred = batch["barred_item"][row]
        self.barred = tokens(barred[barred > 0])

    def items(self, side: str) -> list[str]:
        return [item for item, _ in self.pairs[side]]


def epoch(stage: Stage, episodes: EpisodeDataLoader) -> list[Episode]:
    return [Episode(stage, batch, row) for batch in episodes for row in range(len(batch["task"]))]


def approx(pairs: Pairs) -> Pairs:
    return [(item, pytest.approx(value, abs=1e-6)) for item, value in pairs]


RESERVES = [
    ("user_cold_curve", CURVE, 4, 3),
    ("user_cold_curve", CURVE | {"horizon": None, "eligible": 5}, 4, None),
    ("user_cold_5", {"shots": 2}, 2, None),
    ("user_cold_first", FIRST, 0, 3),
]


@pytest.mark.parametrize(("protocol", "settings", "start", "horizon"), RESERVES)
def test_under_order_time_an_episode_is_the_head_and_what_follows(
    stage, protocol, settings, start, horizon
) -> None:
    """Support = the first k rows, query = the rows in the query's position, barred = the reserve;
    nothing depends on which rows the user has after that.
    """
    here = stage(protocol, **settings)
    shots, history = here.prepared.shots, histories()
    seen: dict[str, set[int]] = {}
    episodes = loader(here)
    for _ in range(12):
        for episode in epoch(here, episodes):
            items = [(item, 1.0) for item, _ in history[episode.user]]
            k = len(episode.pairs["support"])
            assert k in shots
            assert episode.pairs["support"] == items[:k]
            stop = None if horizon is None else start + horizon
            assert episode.pairs["query"] == items[start:stop] != []
            assert episode.barred == [item for item, _ in items[:start]]
            seen.setdefault(episode.user, set()).add(k)
    counts = [len(found) for found in seen.values()]
    assert set().union(*seen.values()) == set(shots)
    assert np.mean(counts) > 0.9 * len(shots)  # k is drawn for each user anew


def test_shots_are_as_likely(stage) -> None:
    here = stage("user_cold_curve", **CURVE)
    episodes = loader(here)
    drawn = [len(e.pairs["support"]) for _ in range(60) for e in epoch(here, episodes)]
    batch = next(iter(loader(here, 100)))  # each user has a k of its own
    assert set(batch["support_mask"].sum(1).int().tolist()) == {0, 1, 3}
    shares = [drawn.count(k) / len(drawn) for k in (0, 1, 3)]
    assert len(drawn) > 900 and min(shares) > 0.29 and max(shares) < 0.38


@pytest.mark.parametrize("settings", [{"shots": 3}, {"shots": 1}])
@pytest.mark.parametrize(
    ("protocol", "judged"),
    [("user_cold_5_rating", float), ("user_cold_5_label", lambda value: float(value >= 4))],
)
def test_labels_follow_their_items(stage, protocol, judged, settings) -> None:
    """Ratings that tell user and item apart, under either order."""
    for order in ("time", "random"):
        here = stage(protocol, order=order, **settings)
        history = histories()
        episodes = epoch(here, loader(here))
        assert len(episodes) > 20
        for episode in episodes:
            values = {item: judged(value) for item, value in history[episode.user]}
            for side in ("support", "query"):
                found = episode.pairs[side]
                assert found == approx([(item, values[item]) for item, _ in found])
            both = episode.items("support") + episode.items("query")
            assert sorted(both) == sorted(values)  # each row once


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [("user_cold_curve", CURVE), ("user_cold_5", {"shots": 2})],
)
def test_under_order_random_rows_are_shuffled_in_every_epoch(stage, protocol, settings) -> None:
    """Support, rest of the reserve and query never overlap; each row is everywhere at times."""
    here = stage(protocol, order="random", **settings)
    history = histories()
    start, horizon = here.prepared.query_start, here.prepared.horizon
    episodes = loader(here)
    places: dict[str, list[tuple]] = {}
    for _ in range(40):
        for episode in epoch(here, episodes):
            own = [item for item, _ in history[episode.user]]
            support, query = episode.items("support"), episode.items("query")
            assert support == episode.barred[: len(support)]
            assert len(episode.barred) == start
            assert len(query) == min(len(own) - start, horizon or len(own))
            met = episode.barred + query
            assert len(set(met)) == len(met) and set(met) <= set(own)
            places.setdefault(episode.user, []).append((tuple(episode.barred), frozenset(query)))
    for user, found in places.items():
        own = {item for item, _ in history[user]}
        assert len({barred for barred, _ in found}) > 5
        assert set().union(*(barred for barred, _ in found)) == own
        assert set().union(*(query for _, query in found)) == own
    firsts = [barred[0] == history[user][0][0] for user in places for barred, _ in places[user]]
    lengths = [len(history[user]) for user in places for _ in places[user]]
    assert abs(np.mean(firsts) - np.mean(1 / np.array(lengths))) < 0.04  # the first row: no more


@pytest.mark.parametrize(
    ("protocol", "settings", "least"),
    [
        ("user_cold_curve", CURVE, 5),
        ("user_cold_curve", CURVE | {"order": "random"}, 5),
        ("user_cold_curve", CURVE | {"folds": 4, "split": 2}, 5),
        ("user_cold_5", {"shots": 5}, 6),
        ("user_cold_5_rating", {"shots": 3}, 4),
        ("user_cold_first", FIRST, 1),
        ("user_cold_global", GLOBAL, 5),
    ],
)
@pytest.mark.parametrize("phase", ["valid", "test"])
def test_every_warm_user_with_a_query_once_an_epoch_and_no_cold_one(
    stage, protocol, settings, least, phase
) -> None:
    here = stage(protocol, phase, **settings)
    prepared, history = here.prepared, histories()
    rows = prepared.rows(prepared.train_name(phase, prepared.shots[0]))
    length = rows["user"].value_counts()
    cold = prepared.cold_tasks(phase)
    expected = sorted(u for u in length.index if length[u] >= least and u not in cold)
    assert len(expected) > 8
    asked = set(zip(*(prepared.rows(phase)[side] for side in ("user", "item"))))
    episodes = loader(here)
    orders = []
    for _ in range(3):
        found = epoch(here, episodes)
        orders.append([episode.user for episode in found])
        assert sorted(orders[-1]) == expected
        for episode in found:
            met = {(episode.user, item) for side in ("support", "query")
                   for item in [*episode.items(side), *episode.barred]}  # fmt: skip
            assert not met & asked
            assert {item for _, item in met} <= {item for item, _ in history[episode.user]}
    assert orders[0] != orders[1] != orders[2]
    if protocol == "user_cold_global" and phase == "test":
        assert set(expected) & set(prepared.tasks("valid"))  # there they are warm


def test_global_episodes_end_at_the_cut(make_world) -> None:
    """Users go on for long: their rows after the judged block's first event are in no episode."""
    rows = [(f"u{u:02}", f"i{(u + i) % 20}", 3, u + 4 * i) for u in range(40) for i in range(12)]
    here = stage_of(make_world(rows, "user_cold_global", **GLOBAL))
    cut = here.prepared.description["cut"]["test"]
    assert cut == 30
    late = {(user, item) for user, item, _, time in rows if time >= cut}
    found = epoch(here, loader(here))
    lengths = {len(episode.pairs["query"]) for episode in found}
    assert lengths == {1, 2, 3}  # some are cut
    for episode in found:
        met = {(episode.user, item) for item in [*episode.barred, *episode.items("query")]}
        assert not met & late


@pytest.mark.parametrize("settings", [CURVE, CURVE | {"order": "random"}])
def test_a_part_of_the_query_may_be_drawn(stage, settings) -> None:
    """At most so many of its rows, other ones in every epoch; nothing else changes."""
    here = stage("user_cold_curve", **settings)
    whole = loader(here, 100)
    for size in (1, 2, 3, 9):
        part = EpisodeDataLoader(here.dataset, 100, 3, size)
        part.load_state_dict(whole.state_dict())
        before, after = next(iter(whole)), next(iter(part))
        drawn = {"query_item", "query_label", "query_mask", "undrawn_item"}
        for name in set(before.interaction) - drawn:
            assert torch.equal(before[name], after[name]), name
        assert not before["undrawn_item"].any()
        for row in range(len(before["task"])):
            both = torch.cat([after["query_item"][row], after["undrawn_item"][row]])
            assert sorted(both[both > 0].tolist()) == sorted(
                before["query_item"][row][before["query_mask"][row] > 0].tolist()
            )
        for row in range(len(before["task"])):
            all_of, some = (Episode(here, batch, row).pairs["query"] for batch in (before, after))
            assert len(set(some)) == len(some) == min(size, len(all_of))
            assert set(some) <= set(all_of)
    part = EpisodeDataLoader(here.dataset, 100, 3, 1)
    first = [tuple(e.items("query")[0] for e in epoch(here, part)) for _ in range(3)]
    assert len(set(first)) == 3


def test_drawn_rows_of_a_query_are_all_as_likely(stage) -> None:
    here = stage("user_cold_curve", **CURVE)
    history = histories()
    part = EpisodeDataLoader(here.dataset, 100, 3, 2)
    places = [
        [item for item, _ in history[episode.user]].index(item)
        for _ in range(40)
        for episode in epoch(here, part)
        if len(history[episode.user]) >= 7
        for item in episode.items("query")
    ]
    shares = [places.count(place) / len(places) for place in (4, 5, 6)]
    assert sum(shares) == pytest.approx(1) and max(abs(share - 1 / 3) for share in shares) < 0.04


@pytest.mark.parametrize("settings", [CURVE, CURVE | {"order": "random"}])
def test_all_that_a_user_has_comes_along(stage, settings) -> None:
    here = stage("user_cold_curve", **settings)
    history = histories()
    for batch in loader(here):
        for row, user in enumerate(here.dataset.id2token("user_id", batch["task"].numpy())):
            items = batch["history_item"][row]
            found = here.dataset.id2token("item_id", items[items > 0].numpy())
            assert sorted(found) == sorted(item for item, _ in history[user])


@pytest.fixture(scope="module")
def held(make_states):
    """The test stage of each state over dated items."""
    return {state: stage_of(make_states(state)) for state in ("ww", "cw", "wc", "cc")}


@pytest.mark.parametrize("state", ["ww", "cw", "wc", "cc"])
def test_where_rows_are_held_out_the_query_is_a_number_of_random_rows(held, state: str) -> None:
    """Support = the others; of a user with more rows than a task, as many as a task of valid."""
    here = held[state]
    sizes = set(here.prepared.support("valid", 7).groupby("user").size())
    drawn: set[int] = set()
    warm: dict[str, dict[str, float]] = {}
    for user, item, value in here.prepared.warm_rows("test")[["user", "item", "target"]].to_numpy():
        warm.setdefault(user, {})[item] = value
    expected = sorted(user for user, rows in warm.items() if len(rows) > 2)
    assert max(map(len, warm.values())) > 9  # more than support and query
    queries: dict[str, list[str]] = {}
    supports: dict[str, set[str]] = {}
    episodes = loader(here)
    for _ in range(80):
        found = epoch(here, episodes)
        assert sorted(episode.user for episode in found) == expected
        for episode in found:
            own = warm[episode.user]
            support, query = episode.items("support"), episode.items("query")
            assert len(query) == 2
            if len(own) - 2 > 7:
                drawn.add(len(support))
            else:
                assert len(support) == len(own) - 2
            assert len({*support, *query}) == len(support) + len(query)
            for pairs in episode.pairs.values():
                assert pairs == approx([(item, own[item]) for item, _ in pairs])
            assert episode.barred == []
            queries.setdefault(episode.user, []).extend(query)
            supports.setdefault(episode.user, set()).update(support)
    assert drawn == sizes
    for user in expected:  # every row in turn
        assert {*queries[user]} | supports[user] == set(warm[user])
    shares = [len(set(queries[user])) / len(warm[user]) for user in expected]
    assert np.mean(shares) > 0.85


@pytest.mark.parametrize("state", ["ww", "cw", "wc", "cc"])
def test_no_query_and_no_cold_support_is_in_an_episode(held, state: str) -> None:
    here = held[state]
    prepared = here.prepared
    asked = set(zip(*(prepared.rows("test")[side] for side in ("user", "item"))))
    support = set(zip(*(prepared.support("test", 7)[side] for side in ("user", "item"))))
    episodes, of_support = loader(here), set()
    for episode in [e for _ in range(40) for e in epoch(here, episodes)]:
        met = {(episode.user, item) for side in episode.pairs for item in episode.items(side)}
        assert not met & asked and (state == "ww" or not met & support)
        of_support |= met & support
        if state[0] == "c":
            assert episode.user not in prepared.tasks("test")
    if state == "ww":  # known users' known items
        assert of_support == support


def test_batches_are_of_the_given_size_and_the_rest(stage) -> None:
    here = stage("user_cold_curve", **CURVE)
    n_users = len(epoch(here, loader(here)))
    for size in (1, 5, n_users - 1, n_users, 10 * n_users):
        episodes = loader(here, size)
        sizes = [len(batch["task"]) for batch in episodes]
        assert len(sizes) == len(episodes) and sum(sizes) == n_users
        assert all(found == size for found in sizes[:-1]) and 1 <= sizes[-1] <= size


def test_shapes_and_types_of_a_batch(stage) -> None:
    here = stage("user_cold_curve", **CURVE)
    for batch in loader(here, 8):
        tasks = len(batch["task"])
        assert batch["support_item"].shape == batch["support_mask"].shape == (tasks, 3)
        assert batch["barred_item"].shape == (tasks, 4)
        assert batch["query_item"].shape == (tasks, int(batch["query_mask"].sum(1).max()))
        for name, kind in (
            ("item", torch.int64),
            ("label", torch.float32),
            ("mask", torch.float32),
        ):
            assert batch[f"support_{name}"].dtype == batch[f"query_{name}"].dtype == kind
        assert batch["task"].dtype == batch["barred_item"].dtype == torch.int64


def batches_equal(one, two) -> bool:
    return one.interaction.keys() == two.interaction.keys() and all(
        torch.equal(one[name], two[name]) for name in one.interaction
    )


SEEDED = [
    ("user_cold_curve", CURVE),
    ("user_cold_curve", CURVE | {"order": "random"}),
    ("user_cold_5_rating", {"shots": 3}),
]


@pytest.mark.parametrize(("protocol", "settings"), SEEDED)
def test_same_seed_same_episodes_other_seed_others(stage, protocol, settings) -> None:
    here = stage(protocol, **settings)
    np.random.seed(0)
    one = loader(here)
    first = [list(one) for _ in range(2)]
    np.random.seed(1)  # global generators are not read
    torch.manual_seed(1)
    two, other = loader(here), loader(here, seed=4)
    second = [list(two) for _ in range(2)]
    for batches in zip(first, second):
        assert all(batches_equal(*pair) for pair in zip(*batches))
    assert not all(batches_equal(*pair) for pair in zip(first[0], first[1]))
    assert not all(batches_equal(*pair) for pair in zip(first[0], other))


@pytest.mark.parametrize(("protocol", "settings"), SEEDED)
def test_a_state_goes_on_where_it_was_taken(stage, protocol, settings) -> None:
    """It lives through a checkpoint, and later draws do not change it."""
    here = stage(protocol, **settings)
    one = loader(here)
    list(one)
    state = one.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    expected = [batch for _ in range(2) for batch in one]
    file.seek(0)
    for taken in (state, torch.load(file, weights_only=True)):
        two = loader(here, seed=99)
        two.load_state_dict(taken)
        found = [batch for _ in range(2) for batch in two]
        assert all(batches_equal(*pair) for pair in zip(found, expected, strict=True))


def test_no_user_long_enough(make_world) -> None:
    """Before the cut every user has one row, and an episode of the reserve needs five."""
    rows = [(f"u{u:02}", f"i{(u + i) % 20}", 3, u + 99 * i) for u in range(40) for i in range(12)]
    here = stage_of(make_world(rows, "user_cold_global", **GLOBAL))
    with pytest.raises(DataError, match=r"ml-100k-.*: no warm user has the 5 rows of an episode"):
        loader(here)
