"""Behaviours drawn from rated rows: labels by expression, the splits of rows_random, refusals."""

import json

import pytest
import yaml

from recbole_meta.data.atomic import AtomicFile
from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours
from recbole_meta.data.folders import digest, sha256
from recbole_meta.data.objectives import Objective
from recbole_meta.data.row_splits import open_rows, prepare_rows
from recbole_meta.errors import DataError, LeakError, SettingError
from tests.conftest import FILMS

SPLITS = ("train", "valid", "test")
LEAST = {"like": 4, "love": 5, "seen": 2}


def made(folder, **changes):
    return prepare_behaviours("films", folder, folder / "prepared", "behaviours_random", **changes)


def pairs(rows) -> set[tuple[str, str]]:
    return set(zip(rows["user"], rows["item"]))


def test_labels_are_those_of_the_expressions(films, film_rows):
    rating = {row[:2]: row[2] for row in film_rows[0]}
    found: list[tuple[str, str]] = []
    for split in SPLITS:
        rows = films.rows(split)
        for row in rows.itertuples():
            stars = rating[row.user, row.item]
            assert {name: getattr(row, name) for name in LEAST} == {
                name: stars >= least for name, least in LEAST.items()
            }
        found += list(zip(rows["user"], rows["item"]))
    assert sorted(found) == sorted(pair for pair, stars in rating.items() if stars >= 2)
    left = films.description["counts"]["left_out"]
    assert left == len(rating) - len(found) > 0


def test_files_have_the_labels_alone(films):
    names = ["user_id", "item_id", *LEAST]
    for split in SPLITS:
        file = AtomicFile(films.path / f"{films.name}.{split}.inter")
        assert file.columns == names
        (films.path / f"{films.name}.{split}_love.inter").stat()
    assert films.objectives == {name: Objective(name, "binary") for name in LEAST}
    assert films.distributions == {"interest": Objective("genre", "distribution", "like")}
    assert films.description["labels"]["like"]["label"] == "rating >= 4"


def test_splits_are_those_of_rows_random(write_films, film_rows):
    page = FILMS + "objectives: {like: {label: 'rating >= 4', type: binary}}\n"
    folder = write_films(*film_rows, page=page)
    for seed in (0, 3):
        drawn = open_behaviours(made(folder, seed=seed))
        rows = open_rows(prepare_rows("films", "rows_random", folder, folder / "rows", seed))
        for split in SPLITS:
            whole = rows.rows(split)
            assert pairs(drawn.positives(split, "like")) == pairs(whole[whole["like"] == 1])
    assert len(list((folder / "prepared").glob("films-*"))) == 2


def test_a_rating_that_is_not_there_is_no_behaviour(write_films, film_rows):
    rows = [("u0", "i0", ""), *(row for row in film_rows[0] if row[:2] != ("u0", "i0"))]
    behaviours = open_behaviours(made(write_films(rows, film_rows[1])))
    assert not any(("u0", "i0") in pairs(behaviours.rows(split)) for split in SPLITS)


def test_items_keep_their_categories(films, film_rows):
    file = AtomicFile(films.path / f"{films.name}.item")
    assert dict(line.split("\t") for line in file.lines) == {
        item: film_rows[1][item] for item in films.catalogue
    }


# Gates.


def test_a_label_among_the_inputs_stops_the_run(write_films, film_rows):
    path = made(write_films(*film_rows))
    settings = yaml.safe_load((path / "recbole.yaml").read_text("utf-8"))
    assert settings["load_col"] == {
        "inter": ["user_id", "item_id"], "user": ["user_id"], "item": ["item_id"],
    }  # fmt: skip
    settings["load_col"]["inter"].append("love")
    (path / "recbole.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    about = json.loads((path / "protocol.json").read_text("utf-8"))
    about["outputs"]["recbole.yaml"] = sha256((path / "recbole.yaml").read_bytes())
    about["sha256"] = digest(about)
    (path / "protocol.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(LeakError, match="'love', the label of objective 'love', is loaded"):
        open_behaviours(path)


LIKE = 'like: {label: "rating >= 4", type: binary}'
REFUSED = [
    ({"page": FILMS.replace('"rating >= 4"', "rating")}, DataError, "must be 0 or 1"),
    ({"page": FILMS.replace("rating >= 4", "stars >= 4")}, SettingError, "names 'stars'"),
    ({"page": FILMS.replace("rating >= 4", "rating >= 9")}, DataError, "one class"),
    ({"page": FILMS.replace("genre", "genres")}, DataError, "Did you mean 'genre'"),
    ({"page": FILMS.replace(", given: like", "")}, SettingError, "must be 'given' a behaviour"),
    ({"page": FILMS.replace("love:", "item_id:")}, SettingError, "name of a field"),
    ({"kind": "float"}, DataError, "'float', no token"),
]


@pytest.mark.parametrize(("changes", "kind", "said"), REFUSED)
def test_what_cannot_be_is_refused(write_films, film_rows, changes, kind, said):
    folder = write_films(*film_rows, **changes)
    with pytest.raises(kind, match=said):
        made(folder)
    assert not [path for path in (folder / "prepared").glob("*") if path.is_dir()]


def test_items_without_a_file_and_a_pair_twice_are_refused(write_films, film_rows):
    rows, genres = film_rows
    folder = write_films([*rows, rows[3]], genres)
    with pytest.raises(DataError, match="a pair of user and item stands there twice"):
        made(folder)
    folder = write_films(rows, genres)
    (folder / "films" / "films.item").unlink()
    with pytest.raises(DataError, match="over the field 'genre' of items, and there is no file"):
        made(folder)


def test_other_protocols_have_columns_only(write_films, film_rows):
    folder = write_films(*film_rows)
    for split in SPLITS:
        (folder / "films" / f"films.{split}.inter").write_text("user_id:token\titem_id:token\n")
    with pytest.raises(SettingError, match="'rating >= 4', which is no name of a column"):
        prepare_behaviours("films", folder, folder / "prepared", "behaviours_given")


def test_given_splits_may_have_a_distribution(write_splits, shop_rows):
    page = """
objectives:
  purchase: {label: buy, type: binary}
  click: {label: click, type: binary}
  taste: {label: kind, type: distribution, given: click}
"""
    folder = write_splits(page=page, **shop_rows)
    lines = ["item_id:token\tkind:token", *(f"i{item}\tk{item % 2}" for item in range(25))]
    (folder / "shop" / "shop.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    behaviours = open_behaviours(prepare_behaviours("shop", folder, folder / "prepared"))
    assert list(behaviours.objectives) == ["purchase", "click"]
    assert list(behaviours.distributions) == ["taste"]
