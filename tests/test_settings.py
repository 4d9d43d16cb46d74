"""Settings: what passes, what is refused, and what the message says."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from recbole_meta import settings as module
from recbole_meta.errors import SettingError, nearest
from recbole_meta.settings import (
    load_properties,
    load_yaml,
    names,
    properties_folder,
    read_settings,
)


@dataclass(frozen=True)
class Every:
    """One field of each kind that this package uses."""

    size: int
    rate: float
    on: bool
    name: str
    horizon: int | None
    width: int | str
    order: Literal["time", "random"]
    level: Literal[1, 2]
    shots: tuple[int, ...]
    threshold: dict[str, float]
    free: Any


GOOD: dict[str, Any] = {
    "size": 3, "rate": 0.5, "on": True, "name": "a", "horizon": None, "width": "all",
    "order": "time", "level": 2, "shots": [0, 5], "threshold": {"rating": 4}, "free": [{}],
}  # fmt: skip


def read(**changes: Any) -> Every:
    return read_settings(Every, GOOD | changes, "Here")


def test_values_arrive_as_their_types() -> None:
    found = read()
    assert found.shots == (0, 5) and found.threshold == {"rating": 4.0}
    assert type(found.threshold["rating"]) is float and found.horizon is None
    assert found.width == "all" and found.level == 2 and found.free == [{}]
    assert type(read(rate=1).rate) is float
    assert read(horizon=7).horizon == 7 and read(width=2).width == 2
    assert read(shots=[]).shots == () and read(threshold={}).threshold == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(size="3"), r"^Here: 'size' must be of type int, found '3'\.$"),
        (dict(size=3.0), r"'size' must be of type int, found 3\.0\."),
        (dict(size=True), r"'size' must be of type int, found True\."),
        (dict(size=None), r"'size' must be of type int, found None\."),
        (dict(rate="1e-5"), r"'rate' must be of type float, found '1e-5'\."),
        (dict(rate=False), r"'rate' must be of type float, found False\."),
        (dict(on=1), r"'on' must be of type bool, found 1\."),
        (dict(on="yes"), r"'on' must be of type bool, found 'yes'\."),
        (dict(name=5), r"'name' must be of type str, found 5\."),
        (dict(horizon="all"), r"'horizon' must be of type int, found 'all'\."),
        (dict(width=2.5), r"'width' must be of type int \| str, found 2\.5\."),
        (dict(width=None), r"'width' must be of type int \| str, found None\."),
        (dict(order="tine"), r"'order' is 'tine'\. Did you mean 'time'\?"),
        (dict(order="x"), r"'order' is 'x'\. Allowed: random, time\."),
        (dict(order=["time"]), r"'order' is \['time'\]\."),
        (dict(level=True), r"'level' is True\. Allowed: 1, 2\."),
        (dict(level="1"), r"'level' is '1'\."),
        (dict(shots=5), r"'shots' must be a list, found 5\."),
        (dict(shots="05"), r"'shots' must be a list, found '05'\."),
        (dict(shots=[0, "5"]), r"'shots' must be of type int, found '5'\."),
        (dict(shots=[0, 1.5]), r"'shots' must be of type int, found 1\.5\."),
        (dict(threshold=["rating"]), r"'threshold' must be 'name: value' pairs, found \['rating'"),
        (dict(threshold={"rating": "4"}), r"'threshold' must be of type float, found '4'\."),
        (dict(threshold={4: 4.0}), r"'threshold' must be of type str, found 4\."),
        (dict(shot=(1,)), r"^Here: unknown setting 'shot'\. Did you mean 'shots'\?$"),
        (dict(SIZE=1), r"unknown setting 'SIZE'\. Did you mean 'size'\?"),
        (dict(zzz=1), r"unknown setting 'zzz'\. Allowed: free, horizon, level, name, on, "),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read(**changes)


def test_a_key_that_is_no_text_is_named() -> None:
    with pytest.raises(SettingError, match=r"unknown setting '7'\."):
        read_settings(Every, {**GOOD, 7: 1}, "Here")  # type: ignore[dict-item]


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_is_named(key: str) -> None:
    values = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(SettingError, match=rf"^Here: missing setting '{key}'\.$"):
        read_settings(Every, values, "Here")


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "+1.e-5", "1.0e-5", "100e-7"])
def test_exponents_are_numbers_in_yaml(tmp_path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"rate: {text}\nname: e-5\nother: '1e-5'\n", encoding="utf-8")
    found = load_yaml(path)
    assert type(found["rate"]) is float and found["rate"] == pytest.approx(1e-5, rel=1e-12)
    assert found["name"] == "e-5" and found["other"] == "1e-5"


def test_yaml_is_text_without_code(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"Cannot read the settings file .*a\.yaml: .*python"):
        load_yaml(path)


def test_what_a_reader_does_to_a_page_stays_with_it(tmp_path) -> None:
    """Pages are parsed once; a changed file is another page."""
    path = tmp_path / "page.yaml"
    path.write_text("a: {b: [1]}", "utf-8")
    load_yaml(path)["a"]["b"].append(2)
    assert load_yaml(path) == {"a": {"b": [1]}}
    path.write_text("a: 3", "utf-8")
    assert load_yaml(path) == {"a": 3}


def test_an_empty_yaml_is_empty(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    for text in ("", "# only a comment\n", "~\n"):
        path.write_text(text, encoding="utf-8")
        assert load_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\xff\xfe\x00", r"Cannot read the settings file .*bad\.yaml: .*decode"),
        (b"a: \x00\n", r"Cannot read the settings file .*bad\.yaml: .*special characters"),
        (b"- a\n- b\n", r"bad\.yaml must hold 'key: value' lines, found list\."),
        (b"just text\n", r"bad\.yaml must hold 'key: value' lines, found str\."),
        (b"a: [1, 2\nb: 3\n", r"Cannot read the settings file .*bad\.yaml: .*line 2"),
        (b"a: b: c\n", r"Cannot read the settings file .*bad\.yaml: .*mapping values"),
        (b"? [a]\n: 1\n", r"Cannot read the settings file .*bad\.yaml: .*unhashable"),
        (b"a: 2024-02-31\n", r"Cannot read the settings file .*bad\.yaml: .*day"),
    ],
)
def test_an_unreadable_yaml_is_named(tmp_path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=f"(?s){message}"):
        load_yaml(path)


def test_an_absent_yaml_is_named(tmp_path) -> None:
    with pytest.raises(
        SettingError, match=r"Cannot read the settings file .*none\.yaml: .*No such"
    ):
        load_yaml(tmp_path / "none.yaml")


def test_properties_of_a_wheel_come_before_those_beside_it(tmp_path, monkeypatch) -> None:
    package = tmp_path / "recbole_meta"
    (package / "properties" / "dataset").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package / "settings.py"))
    find = module.properties_folder.__wrapped__
    assert find() == package / "properties"
    (tmp_path / "properties").mkdir()
    assert find() == package / "properties"
    (package / "properties" / "dataset").rmdir()
    (package / "properties").rmdir()
    assert find() == tmp_path / "properties"
    (tmp_path / "properties").rmdir()
    with pytest.raises(SettingError, match=r"No folder 'properties' in .*the install is damaged"):
        find()


def test_names_are_the_yaml_files() -> None:
    found = names("protocol")
    assert found == sorted(found) and "user_cold_global" in found
    assert (properties_folder() / "protocol" / f"{found[0]}.yaml").is_file()
    assert names("no_such_kind") == []


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "protocol",
            "user_cold_globl",
            r"Unknown protocol 'user_cold_globl'\. Did you mean 'user_",
        ),
        ("dataset", "zzz", r"Unknown dataset 'zzz'\. Allowed: default, douban-book, jd-bvae, "),
        ("no_such_kind", "a", r"Unknown no_such_kind 'a'\. None is allowed here\."),
    ],
)
def test_unknown_names_get_the_nearest(kind: str, name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_properties(kind, name)


def test_nearest_ignores_case_and_keeps_the_spelling() -> None:
    assert nearest("bpr", ["BPR", "EASE"]) == "Did you mean 'BPR'?"
    assert nearest("qqq", ["b", "a", "b"]) == "Allowed: a, b."
    assert nearest("qqq", []) == "None is allowed here."
