"""Behaviours split by time, each event by its own."""

import numpy as np
import pytest

from recbole_meta.data.behaviours import Behaviours, open_behaviours, prepare_behaviours
from recbole_meta.data.prepared import pairs_of
from recbole_meta.errors import DataError, SettingError
from tests.data.test_label_times import PAGE, world, write

SPLITS = ("train", "valid", "test")


def made(folder, rows=None, **changes) -> Behaviours:
    write(folder, world() if rows is None else rows, **changes)
    path = prepare_behaviours("shop", folder, folder / "prepared", "behaviours_time")
    return open_behaviours(path)


def events(rows) -> list[tuple]:
    """(user, item, behaviour, time)."""
    return [
        (user, item, name, time)
        for user, item, *times in rows
        for name, time in zip(("view", "buy"), times, strict=True)
        if time is not None
    ]


def test_every_event_is_where_its_own_time_is(tmp_path):
    behaviours, all_events = made(tmp_path), events(world())
    first, second = np.quantile([e[3] for e in all_events], [0.8, 0.9], method="lower")
    users = {e[0] for e in all_events if e[3] < first}
    items = {e[1] for e in all_events if e[3] < first}
    spans = {"train": (-1, first), "valid": (first, second), "test": (second, 1e9)}
    for split, (start, end) in spans.items():
        inside = [e for e in all_events if start <= e[3] < end]
        for name in ("view", "buy"):
            wanted = {(e[0], e[1]) for e in inside
                      if e[2] == name and e[0] in users and e[1] in items}  # fmt: skip
            found = behaviours.positives(split, name)
            assert set(zip(found["user"], found["item"])) == wanted
            assert len(found) == len(wanted)
        counts = behaviours.description["counts"]["events"][split]
        assert counts["kept"] == sum(e[0] in users and e[1] in items for e in inside)
        assert counts["kept"] + counts["unknown_user"] + counts["unknown_item"] == len(inside)


def test_what_was_viewed_in_train_may_be_bought_in_test(tmp_path):
    behaviours = made(tmp_path)
    bought = behaviours.positives("test", "buy")
    viewed = pairs_of(behaviours.positives("train", "view"))
    copied = bought[pairs_of(bought).isin(viewed)]
    assert len(copied)
    assert not pairs_of(behaviours.novel("test", "buy")).isin(pairs_of(copied)).any()
    # and no split says it twice
    assert not pairs_of(bought).isin(pairs_of(behaviours.positives("train", "buy"))).any()


def test_whom_and_what_train_has_not_is_left_out_and_counted(tmp_path):
    rows = [*world(), ("late", "i01", 98, 99), ("u1", "i99", 97, None)]
    behaviours = made(tmp_path, rows)
    assert "i99" not in behaviours.catalogue
    for split in SPLITS:
        assert not {"late"} & set(behaviours.rows(split)["user"])
    counts = behaviours.description["counts"]["events"]
    assert counts["test"]["unknown_user"] + counts["valid"]["unknown_user"] == 2
    assert counts["test"]["unknown_item"] + counts["valid"]["unknown_item"] == 1


def test_what_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"behaviours_time: the page of 'shop' does not say"):
        made(tmp_path, page="\n".join(x for x in PAGE.splitlines() if not x.startswith("times")))
    with pytest.raises(SettingError, match=r"'times' of the page has no column for 'view'"):
        made(tmp_path, page=PAGE.replace("{view: seen, buy: bought}", "{buy: bought}"))
    with pytest.raises(SettingError, match=r"no name of a column.*'behaviours' of the page"):
        made(tmp_path, page=PAGE[: PAGE.index("behaviours:")])
    with pytest.raises(SettingError, match=r"splits no behaviours.*'behaviours_time'"):
        prepare_behaviours("shop", tmp_path, tmp_path / "prepared", "behaviour_time")
    rows = [(f"u{n}", f"i{n}", n, n if n < 5 else None) for n in range(60)]
    with pytest.raises(DataError, match="'valid' would be empty"):
        made(tmp_path, rows)
    rows = [(f"u{n % 2}", f"i{n % 30}", n, n if n < 5 else None) for n in range(60)]
    rows = [row for n, row in enumerate(rows) if n < 30 or n > 50]
    with pytest.raises(DataError, match="stand there twice"):
        made(tmp_path, rows)
    assert not list((tmp_path / "prepared").glob("shop-*"))


@pytest.mark.data
def test_retailrocket_by_its_events(data_path, tmp_path):
    path = prepare_behaviours("retailrocket", data_path, tmp_path, "behaviours_time")
    behaviours = open_behaviours(path)
    events = behaviours.description["counts"]["events"]
    assert sum(sum(each.values()) for each in events.values()) == 75374 + 12456 + 9551
    assert len(behaviours.tasks("test", "buy")) == 42
    assert len(behaviours.novel("test", "buy")) == 246
