"""Objectives on the page of a data set, and what is refused there."""

import pytest

from recbole_meta.data.objectives import Objective, objectives_of, read_objectives
from recbole_meta.data.prepare import read_fields
from recbole_meta.errors import SettingError


def test_objectives_of_a_page():
    found = read_objectives("jd-bvae")
    assert list(found) == ["purchase", "click", "favourite"]
    assert found["click"] == Objective("click", "binary")


def test_a_page_beside_the_data_comes_first(tmp_path):
    text = "objectives: {bought: {label: buy, type: binary}}\n"
    (tmp_path / "jd-bvae.yaml").write_text(text, encoding="utf-8")
    assert read_objectives("jd-bvae", tmp_path) == {"bought": Objective("buy", "binary")}


def test_fields_are_read_without_objectives():
    assert read_fields("jd-bvae").user == "user_id"


REFUSED = [
    (None, "names no objectives"),
    ({}, "names no objectives"),
    (["purchase"], "names no objectives"),
    ({"Buy": {"label": "b", "type": "binary"}}, "small letters"),
    ({"a/b": {"label": "b", "type": "binary"}}, "small letters"),
    ({"mean": {"label": "b", "type": "binary"}}, "names of metrics"),
    ({"buy": "b"}, "must be 'label' and 'type'"),
    ({"buy": {"label": "b"}}, "missing setting 'type'"),
    ({"buy": {"label": "b", "type": "binari"}}, "Did you mean 'binary'"),
    ({"buy": {"label": "b", "type": "regression"}}, "full ranking cannot judge"),
    ({"buy": {"label": "b", "type": "binary", "given": "click"}}, "unknown setting 'given'"),
    ({"buy": {"label": "rating >= 4", "type": "binary"}}, "Expressions are not read"),
    ({"buy": {"label": "b", "type": "binary"}, "own": {"label": "b", "type": "binary"}},
     "two objectives have the label 'b'"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_what_cannot_be_an_objective_is_refused(values, said):
    with pytest.raises(SettingError, match=said):
        objectives_of(values, "page")
