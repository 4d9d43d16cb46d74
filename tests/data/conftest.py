"""Small data sets whose items have a year, for MeLU's four states."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

STATES = {"query_size": 2, "least": 3, "most": 9, "item_last": 1999.0}


@pytest.fixture(scope="session")
def dated_rows() -> list[tuple]:
    """120 users with 5 to 50 of 60 items (user, item, rating, time); half of the items are new:
    `year_of`.
    """
    rng = np.random.default_rng(11)
    rows = []
    for user in range(120):
        for time, item in enumerate(rng.permutation(60)[: 5 + user * 45 // 119]):
            rows.append((f"u{user:03}", f"i{item:02}", 1 + (3 * user + 7 * item) % 5, time))
    return [rows[place] for place in rng.permutation(len(rows))]


def year_of(item: str) -> int:
    """1985, 1985, 1986, .. 1999; then 2000, 2000, .. 2014."""
    return 1985 + int(item[1:]) // 2


@pytest.fixture(scope="session")
def make_states(tmp_path_factory, dated_rows) -> Callable:
    """``make_states(state, files={name: text}, **settings)``: the prepared rows of a state."""
    from recbole_meta.data.prepare import prepare, read_protocol
    from recbole_meta.data.prepared import open_prepared

    name = "ml-100k"  # its page names a rating field
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"

    def make(state: str, files: Mapping[str, str] | None = None, rows=dated_rows, **settings):
        folder = tmp_path_factory.mktemp("states")
        (folder / name).mkdir()
        items = sorted({row[1] for row in rows})
        texts = {
            f"{name}.inter": [header, *("\t".join(map(str, row)) for row in rows)],
            f"{name}.item": ["item_id:token\trelease_year:token\tclass:token_seq",
                             *(f"{item}\t{year_of(item)}\ta" for item in items)],
        }  # fmt: skip
        for file, lines in texts.items():
            (folder / name / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for file, text in (files or {}).items():
            (folder / name / file).write_text(text, encoding="utf-8")
        protocol = f"melu_{state}"
        made = read_protocol(protocol, **STATES | settings)
        return open_prepared(prepare(name, made, protocol, folder, folder / "prepared"))

    return make
