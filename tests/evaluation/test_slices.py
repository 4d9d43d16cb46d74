"""The slices of a query, by hand on users made for it."""

import pytest

from recbole_meta.evaluation.slices import queries

RESERVE, HORIZON = 2, 3
HOUR, DAY = 3_600, 86_400
# Of a user: rows after the reserve, how many of them come on a later day -> the slice by length.
USERS = {
    (3, 0): None,
    (9, 9): None,
    (10, 10): "after_10_19",
    (19, 9): "after_10_19",
    (20, 11): "after_20_49",
    (49, 0): "after_20_49",
    (50, 10): "after_50_99",
    (99, 50): "after_50_99",
    (100, 0): "after_100_199",
    (199, 9): "after_100_199",
    (200, 200): "after_200_up",
    (230, 1): "after_200_up",
}
COPIES = 3  # of each, so that some of every kind are tasks


def kind_of(user: str) -> tuple[int, int]:
    return tuple(map(int, user.split("-")[:2]))


def rows_of(user: str):
    """The rows in order; item n stands in place n of every user."""
    length, late = kind_of(user)
    for place in range(RESERVE + length):
        is_late = place >= RESERVE + length - late
        time = place + (DAY if is_late else 0)  # of a late row: just more than 24 hours
        yield user, f"i{place}", 1 + place % 5, time


@pytest.fixture(scope="module", params=["implicit", "label"])
def prepared(make_world, request):
    users = [f"{length}-{late}-{copy}" for length, late in USERS for copy in range(COPIES)]
    rows = [row for user in users for row in rows_of(user)]
    settings = {"shots": [0, 2], "reserve": RESERVE, "horizon": HORIZON, "eligible": 5}
    settings |= {"folds": 2, "feedback": request.param}
    if request.param == "label":
        settings["label"] = {"rating": 3}
    return make_world(rows, "user_cold_curve", **settings)


@pytest.fixture(scope="module")
def found(prepared):
    """Slice -> the (user, item) pairs in it."""
    return {
        name: set(zip(query["user"], query["item"], strict=True))
        for name, query in queries(prepared, "test").items()
    }


def pairs(users, first: int = RESERVE, count=None) -> set[tuple[str, str]]:
    """The rows of these users from a place on."""
    return {
        (user, f"i{place}")
        for user in users
        for place in range(first, RESERVE + kind_of(user)[0] if count is None else first + count)
    }


def test_primary_query_is_first_and_ends_at_the_horizon(prepared, found):
    assert next(iter(found)) == "rows_3_5"
    assert found["rows_3_5"] == pairs(prepared.tasks("test"), count=HORIZON)


def test_after_has_every_row_after_the_reserve(prepared, found):
    assert found["after"] == pairs(prepared.tasks("test"))


@pytest.mark.parametrize("name", sorted({name for name in USERS.values() if name}))
def test_slices_by_length(prepared, found, name):
    users = [user for user in prepared.tasks("test") if USERS[kind_of(user)] == name]
    assert users, "no task of this kind: draw other users"
    assert found[name] == pairs(users)


def test_later_needs_ten_rows_more_than_a_day_after_the_first(prepared, found):
    expected = set()
    for user in prepared.tasks("test"):
        length, late = kind_of(user)
        # Place n has the second n of its day: of a late row, n seconds more than 24 hours.
        if late >= 10:
            expected |= pairs([user], first=RESERVE + length - late)
    assert len({user for user, _ in expected}) >= 3
    assert found["later"] == expected


def test_a_day_after_exactly_is_not_later(make_world):
    rows = [(f"u{user}", f"i{n}", 1, n and DAY) for user in range(20) for n in range(15)]
    prepared = make_world(rows, "user_cold_5")
    assert list(queries(prepared, "test")) == ["after", "after_10_19"]


def test_slices_are_named_by_the_protocol(make_world):
    rows = [(f"u{user}", f"i{n}", 1, n) for user in range(20) for n in range(8)]
    assert list(queries(make_world(rows, "user_cold_5"), "test")) == ["after"]
    assert list(queries(make_world(rows, "user_cold_5"), "valid")) == ["after"]


def test_slices_of_one_class_are_left_out(make_world):
    rows = [(f"u{user}", f"i{n}", 1 + n % 2, n) for user in range(10) for n in range(9)]
    rows += [(f"v{user}", f"i{n}", 2, n) for user in range(10) for n in range(20)]
    found = queries(make_world(rows, "user_cold_5_label", folds=2, label={"rating": 2}), "test")
    assert list(found) == ["after"]  # whoever has 15 rows after the support says 1 always
    assert {user[0] for user in found["after"]["user"]} == {"u", "v"}
    assert "after_10_19" in queries(make_world(rows, "user_cold_5", folds=2), "test")
