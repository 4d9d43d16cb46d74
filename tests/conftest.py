"""Where the tests find data: RecBole's ml-100k, the data sets of RECBOLE_META_DATA, made worlds."""

import errno
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """RECBOLE_META_DATA, relative to the root of the checkout; by default ``../shared/data``."""
    return (ROOT / os.environ.get("RECBOLE_META_DATA", "../shared/data")).resolve()


def need_data() -> None:
    """Skip the test where the data sets are absent; fail it where they must be there."""
    if data_folder().is_dir():
        return
    reason = f"no data sets at {data_folder()}: set RECBOLE_META_DATA"
    if os.environ.get("RECBOLE_META_REQUIRE_DATA") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data"):
        need_data()


@pytest.fixture(scope="session")
def data_path() -> Path:
    """The folder of the data sets, for tests marked ``data``."""
    need_data()
    return data_folder()


@pytest.fixture(scope="session")
def ml100k() -> Path:
    """The ml-100k that RecBole brings along, found without importing RecBole."""
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("RecBole is not installed: pip install -c constraints.txt -e '.[dev]'")
    return Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"


@pytest.fixture(scope="session")
def make_world(tmp_path_factory) -> Callable:
    """``make_world(rows, protocol, **settings)``: rows (user, item, rating, time), prepared;
    ``genres``: item -> its genres, or numbers where ``kind`` is 'float_seq'.
    """
    from recbole_meta.data.prepare import prepare, read_protocol
    from recbole_meta.data.prepared import open_prepared

    name = "ml-100k"  # its page names a rating field
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"

    def make(rows, protocol: str, genres=None, kind="token_seq", **settings):
        folder = tmp_path_factory.mktemp("world")
        (folder / name).mkdir()
        text = "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"
        (folder / name / f"{name}.inter").write_text(text, encoding="utf-8")
        if genres is not None:
            lines = [f"{item}\t{' '.join(map(str, said))}" for item, said in genres.items()]
            table = "\n".join([f"item_id:token\tclass:{kind}", *lines]) + "\n"
            (folder / name / f"{name}.item").write_text(table, encoding="utf-8")
            page = "user: user_id\nitem: item_id\nrating: rating\nitem_features: [class]\n"
            (folder / name / f"{name}.yaml").write_text(page, encoding="utf-8")
        made = read_protocol(protocol, **settings)
        return open_prepared(prepare(name, made, protocol, folder, folder / "prepared"))

    return make


@pytest.fixture(scope="session")
def write_splits(tmp_path_factory) -> Callable:
    """``write_splits(**rows)``: a data set 'shop' whose splits have these rows
    (user, item, click, cart, buy); the folder above it.
    """
    header = "user_id:token\titem_id:token\tclick:float\tcart:float\tbuy:float"
    page = "objectives:\n" + "".join(
        f"  {name}: {{label: {label}, type: binary}}\n"
        for name, label in {"purchase": "buy", "click": "click", "cart": "cart"}.items()
    )

    def write(header: str = header, page: str = page, **rows) -> Path:
        folder = tmp_path_factory.mktemp("given")
        (folder / "shop").mkdir()
        for split in ("train", "valid", "test"):
            lines = ["\t".join(map(str, row)) for row in rows[split]]
            text = "\n".join([header, *lines]) + "\n"
            (folder / "shop" / f"shop.{split}.inter").write_text(text, encoding="utf-8")
        (folder / "shop" / "shop.yaml").write_text(page, encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def shop_rows() -> dict[str, list[tuple]]:
    """40 users and 25 items: whoever likes an item clicks it, and buys some of what is clicked."""
    rng = np.random.default_rng(3)
    taste = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 25)) + 0.5 * rng.normal(size=25)
    rows: dict[str, list[tuple]] = {"train": [], "valid": [], "test": []}
    for user, liking in enumerate(taste):
        for item in np.argsort(-liking)[: rng.integers(6, 12)]:
            seen: dict[str, list[int]] = {split: [0, 0, 0] for split in rows}
            for behaviour, chance in enumerate((1.0, 0.4, 0.6)):
                if rng.random() < chance:
                    split = rng.choice(list(rows), p=[0.6, 0.2, 0.2])
                    seen[split][behaviour] = 1
            for split, labels in seen.items():
                if any(labels):
                    rows[split].append((f"u{user}", f"i{item}", *labels))
    return rows


@pytest.fixture(scope="session")
def shop(write_splits, shop_rows):
    """The same, prepared and opened."""
    from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours

    folder = write_splits(**shop_rows)
    return open_behaviours(prepare_behaviours("shop", folder, folder / "prepared"))


FILMS = """
behaviours:
  like: {label: "rating >= 4", type: binary}
  love: {label: "rating >= 5", type: binary}
  seen: {label: "rating >= 2", type: binary}
  interest: {label: genre, type: distribution, given: like}
"""


@pytest.fixture(scope="session")
def write_films(tmp_path_factory) -> Callable:
    """``write_films(rows, genres)``: a data set 'films' of rated items (user, item, rating), whose
    genres are named or none; the folder above it.
    """

    def write(rows, genres, page: str = FILMS, kind: str = "token_seq") -> Path:
        folder = tmp_path_factory.mktemp("films")
        (folder / "films").mkdir()
        tables = {
            "inter": ["user_id:token\titem_id:token\trating:float", *rows],
            "item": [f"item_id:token\tgenre:{kind}", *genres.items()],
        }
        for name, (head, *lines) in tables.items():
            text = "\n".join([head, *("\t".join(map(str, line)) for line in lines)]) + "\n"
            (folder / "films" / f"films.{name}").write_text(text, encoding="utf-8")
        (folder / "films" / "films.yaml").write_text(page, encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def film_rows() -> tuple[list[tuple], dict[str, str]]:
    """40 users with 20 of 30 films each, rated by taste; two of the films have no genre."""
    rng = np.random.default_rng(5)
    genres = {f"i{i}": " ".join(["abc"[i % 3], *("d" * (i % 4 == 0))]) for i in range(30)}
    genres |= {"i7": "", "i19": ""}
    taste = rng.normal(size=(40, 3))
    rows = []
    for user in range(40):
        for item in rng.permutation(30)[:20]:
            rating = 3.2 + taste[user, item % 3] + 0.5 * rng.normal()
            rows.append((f"u{user}", f"i{item}", int(np.clip(np.round(rating), 1, 5))))
    return rows, genres


@pytest.fixture(scope="session")
def films(write_films, film_rows):
    """The same, prepared by behaviours_random and opened."""
    from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours

    folder = write_films(*film_rows)
    path = prepare_behaviours("films", folder, folder / "prepared", "behaviours_random")
    return open_behaviours(path)


@pytest.fixture(scope="session")
def sample_path() -> Path:
    """The folder of the sample data set ``tiny``: even users love even items, odd users odd."""
    return ROOT / "dataset"


@pytest.fixture
def float64():
    """Models made in the test are double precision."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def full_disk(monkeypatch) -> Callable[[int], list[int]]:
    """``full_disk(n)``: after n files the disk is full; the list has a handle per file tried."""
    fsync = os.fsync

    def fill(files_that_fit: int) -> list[int]:
        calls: list[int] = []

        def full(handle: int) -> None:
            calls.append(handle)
            if len(calls) > files_that_fit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", full)
        return calls

    return fill


@pytest.fixture(scope="session")
def rows_dataset(tmp_path_factory):
    """RecBole's dataset of 40 users and 30 items with an age, a kind and genres; 600 rows."""
    from recbole_meta.compat import contained, recbole_config
    from recbole_meta.model import row_models

    rng, folder = np.random.default_rng(11), tmp_path_factory.mktemp("rows")
    (folder / "rows").mkdir()
    pairs = rng.permutation([(u, i) for u in range(40) for i in range(30)])[:600]
    tables = {
        "inter": ["user_id:token\titem_id:token", *(f"u{u}\ti{i}" for u, i in pairs)],
        "user": ["user_id:token\tage:float", *(f"u{u}\t{20 + u % 7}" for u in range(40))],
        "item": [
            "item_id:token\tgenre:token_seq",
            *(f"i{i}\tg{i % 3}" + (" g3" if i % 2 else "") for i in range(30)),
        ],
    }
    for kind, lines in tables.items():
        path = folder / "rows" / f"rows.{'train.' * (kind == 'inter')}{kind}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {
        "data_path": str(folder),
        "benchmark_filename": ["train"],
        "load_col": {
            "inter": ["user_id", "item_id"],
            "user": ["user_id", "age"],
            "item": ["item_id", "genre"],
        },
    }
    config = recbole_config(row_models()["MMoE"], "rows", [], values)
    with contained():
        from recbole.data import create_dataset

        return create_dataset(config).build()[0]


@pytest.fixture(scope="session")
def make_rows_model(rows_dataset, rows_config):
    """``make_rows_model(name, objectives, categories, **settings)`` on that dataset."""
    import torch

    from recbole_meta.model import row_models

    def make(name, objectives=None, categories=None, seed=1, **settings):
        given = {"objectives": objectives or FUNNEL, "categories": categories or {}, **settings}
        torch.manual_seed(seed)
        return row_models()[name](rows_config(name, given), rows_dataset)

    return make


@pytest.fixture(scope="session")
def rows_config():
    """``rows_config(name, settings)``: a model's page and these settings; a Config is slow to
    make, so there is one per model.
    """
    from functools import cache

    from recbole_meta.compat import recbole_config
    from recbole_meta.model import row_models
    from recbole_meta.settings import load_properties

    @cache
    def bare(name):
        return recbole_config(row_models()[name], "rows", [], {"data_path": "."})

    def config(name, settings):
        found = bare(name)
        usual = {"objectives": {}, "categories": {}, "clip_grad_norm": None}
        for key, value in (usual | load_properties("model", name) | settings).items():
            found[key] = value
        return found

    return config


FUNNEL = {
    "click": {"label": "click", "type": "binary"},
    "buy": {"label": "buy", "type": "binary", "given": "click"},
}
