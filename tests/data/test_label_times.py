"""Times of labels: rows as they were known at a cut, and what is refused."""

import numpy as np
import pytest

from recbole_meta.data.row_splits import RowSplits, open_rows, prepare_rows
from recbole_meta.errors import DataError, SettingError

PAGE = """
user: user_id
item: item_id
rating: ~
time: timestamp
times: {file: times.tsv, columns: {view: seen, buy: bought}}
objectives:
  view: {label: "view + buy >= 1", type: binary}
  buy: {label: buy, type: binary, given: view}
behaviours:
  view: {label: view, type: binary}
  buy: {label: buy, type: binary}
"""


def world() -> list[tuple]:
    """(user, item, time of the view or None, of the purchase or None): 10 users in turn view item
    n % 7 or so at n = 0..99; every third view is bought 12 later, and one is a purchase alone.
    """
    rows = []
    for n in range(100):
        user, item = f"u{n % 10}", f"i{(n // 10 + n) % 13:02}"
        rows.append((user, item, None if n == 5 else n, n + 12 if n % 3 == 0 or n == 5 else None))
    return rows


def write(folder, rows, page=PAGE, times=None):
    """The data set ``shop``; ``times``: the lines of its file, made of the rows by default."""
    place = folder / "shop"
    place.mkdir(exist_ok=True)
    text = ["user_id:token\titem_id:token\tview:float\tbuy:float\ttimestamp:float"]
    made = ["item_id\tuser_id\tbought\tseen"]
    for user, item, seen, bought in rows:
        first = min(time for time in (seen, bought) if time is not None)
        text.append(f"{user}\t{item}\t{seen is not None:d}\t{bought is not None:d}\t{first}")
        made.append("\t".join([item, user, *("" if t is None else str(t) for t in (bought, seen))]))
    (place / "shop.inter").write_text("\n".join(text) + "\n", "utf-8")
    (place / "times.tsv").write_text("\n".join(times or made[:1] + made[:0:-1]) + "\n", "utf-8")
    (place / "shop.yaml").write_text(page, "utf-8")
    return made


def made(folder, rows=None, protocol="rows_time", **changes) -> RowSplits:
    write(folder, world() if rows is None else rows, **changes)
    return open_rows(prepare_rows("shop", protocol, folder, folder / "prepared"))


def test_what_happened_after_a_cut_is_not_known_before_it(tmp_path):
    splits = made(tmp_path)
    about = {(user, item): (seen, bought) for user, item, seen, bought in world()}
    first = [min(t for t in times if t is not None) for times in about.values()]
    cuts = dict(zip(("train", "valid"), np.quantile(first, [0.8, 0.9], method="lower")))
    undone = {"train": 0, "valid": 0}
    for split, end in cuts.items():
        for _, row in splits.rows(split).iterrows():
            seen, bought = about[row["user"], row["item"]]
            assert min(t for t in (seen, bought) if t is not None) < end
            assert row["view"] == 1
            assert row["buy"] == (bought is not None and bought < end)
            undone[split] += bought is not None and bought >= end
    counts = splits.description["counts"]
    assert {split: each["buy"] for split, each in counts["undone"].items()} == undone
    assert min(undone.values()) >= 2 and counts["undone"]["train"]["view"] == 0
    for _, row in splits.rows("test").iterrows():  # of test all is known
        assert row["buy"] == (about[row["user"], row["item"]][1] is not None)


def test_no_line_of_the_written_train_file_says_what_came_later(tmp_path):
    splits = made(tmp_path)
    text = (splits.path / f"{splits.name}.train.inter").read_text("utf-8").splitlines()
    bought = {(user, item): time for user, item, _, time in world()}
    times = [float(line.split("\t")[4]) for line in text[1:]]
    later = [
        line.split("\t")[3]
        for line in text[1:]
        if (bought[tuple(line.split("\t")[:2])] or 0) > max(times)
    ]
    assert len(later) > 2 and set(later) == {"0"}


def test_at_random_and_without_times_a_row_keeps_its_line(tmp_path):
    splits = made(tmp_path, protocol="rows_random")
    assert "undone" not in splits.description["counts"]
    bought = {(user, item): time for user, item, _, time in world()}
    rows = splits.rows("train")
    assert [bought[pair] is not None for pair in zip(rows["user"], rows["item"])] == list(
        rows["buy"] == 1
    )
    page = "\n".join(line for line in PAGE.splitlines() if not line.startswith("times"))
    assert "undone" not in made(tmp_path, page=page).description["counts"]


def test_the_times_are_a_part_of_what_a_folder_is_made_from(tmp_path):
    one = made(tmp_path).path
    rows = world()
    rows[0] = (*rows[0][:3], rows[0][3] + 0.5)
    assert made(tmp_path, rows).path != one


CHANGED = [  # a line of the times, and what is said of it
    ("i00\tu0\t12\t0", "i00\tu0\t\t0", "line 2: 'buy' is 1, and times.tsv has no time for it"),
    ("i01\tu1\t\t1", "i01\tu1\t9\t1", "'buy' is 0, and times.tsv has a time for it"),
    ("i00\tu0\t12\t0", "i00\tu0\t-1\t0", "'buy' has a time in times.tsv that is before the row's"),
    ("i00\tu0\t12\t0", "i00\tu0\tnoon\t0", "'bought' is 'noon', not a finite number"),
    ("i00\tu0\t12\t0", "i00\tu0\tinf\t0", "'bought' is 'inf', not a finite number"),
    ("i00\tu0\t12\t0", "i0\tu0\t12\t0", "user 'u0' and item 'i00' have no line in times.tsv"),
    ("i00\tu0\t12\t0", "i00\tu0\t12\t0\ni00\tu0\t12\t0", "the pair stands there twice"),
    ("i00\tu0\t12\t0", "i00\tu0\t12\t0\ni00\tu77\t12\t0", "the pair is not in shop.inter"),
    ("user_id", "users", "times.tsv has no column 'user_id'. Did you mean 'users'"),
    ("bought", "buys", "times.tsv has no column 'bought'"),
]


@pytest.mark.parametrize(("old", "new", "said"), CHANGED)
def test_times_that_cannot_be_are_refused(tmp_path, old, new, said):
    lines = write(tmp_path, world())
    text = "\n".join(lines)
    assert text.count(old) == 1
    with pytest.raises(DataError, match=said):
        made(tmp_path, times=text.replace(old, new).split("\n"))
    assert not list((tmp_path / "prepared").glob("shop-*"))


PAGES = [
    ("view: seen", "vew: seen", SettingError, "'times' names 'vew'.*Did you mean 'view'"),
    ("view: seen", "timestamp: seen", DataError, "'timestamp' has a time, and must be 0 or 1"),
    ("times.tsv", "time.tsv", DataError, "Cannot read the times of the labels, .*time.tsv"),
    ("{view: seen, buy: bought}", "{}", SettingError, "'columns' names no column"),
    ("{file: times.tsv, columns: {view: seen, buy: bought}}", "times.tsv", SettingError,
     "'times' must be 'file' and 'columns'"),
    ("file:", "flie:", SettingError, "flie"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "kind", "said"), PAGES)
def test_a_page_whose_times_cannot_be_is_refused(tmp_path, old, new, kind, said):
    with pytest.raises(kind, match=said):
        made(tmp_path, page=PAGE.replace(old, new))


@pytest.mark.data
def test_retailrocket_by_time(data_path, tmp_path):
    splits = open_rows(prepare_rows("retailrocket", "rows_time", data_path, tmp_path))
    counts = splits.description["counts"]
    assert counts["rows_of"] == {"train": 61783, "valid": 3171, "test": 2095}
    assert counts["undone"]["train"] == {"view": 41, "cart": 40, "buy": 38}
