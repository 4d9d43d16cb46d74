"""Objectives on the page of a data set, and what is refused there."""

import pytest

from recbole_meta.data.objectives import (
    Objective,
    by_kind,
    chain,
    described,
    objectives_of,
    only_behaviours,
    read_objectives,
)
from recbole_meta.data.source import read_fields
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
    ({"buy": {"label": "b", "type": "binary", "given": "click"}}, "'given' is 'click'"),
    ({"buy": {"label": "b", "type": "binary", "given": "buy"}}, "leads back to itself"),
    ({"buy": {"label": "b", "type": "binary", "given": "own"},
      "own": {"label": "c", "type": "binary", "given": "buy"}}, "leads back to itself"),
    ({"buy": {"label": "b", "type": "binary", "given": "stars"},
      "stars": {"label": "c", "type": "regression"}}, "regression, not binary"),
    ({"buy": {"label": "b", "type": "binary", "weight": -1.0}}, "must be at least 0"),
    ({"buy": {"label": "rating >= ", "type": "binary"}}, "is no expression"),
    ({"taste": {"label": "genre >= 2", "type": "distribution"}}, "must be a field of items"),
    ({"buy": {"label": "b", "type": "binary"}, "own": {"label": "b", "type": "binary"}},
     "two objectives have the label 'b'"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_what_cannot_be_an_objective_is_refused(values, said):
    with pytest.raises(SettingError, match=said):
        objectives_of(values, "page")


BEHAVIOURS = [
    ({"buy": {"label": "b", "type": "regression"}}, "full rankings have behaviours"),
    ({"buy": {"label": "b", "type": "binary", "given": "own"},
      "own": {"label": "c", "type": "binary"}}, "full rankings have behaviours"),
    ({"buy": {"label": "rating >= 4", "type": "binary"}}, "no name of a column"),
    ({"buy": {"label": "b", "type": "binary", "metrics": ["auc"]}}, "'metrics' are of rows"),
    ({"buy": {"label": "b", "type": "binary"},
      "taste": {"label": "genre", "type": "distribution"}}, "must be 'given' a behaviour"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), BEHAVIOURS)
def test_given_splits_have_plain_behaviours_only(values, said):
    with pytest.raises(SettingError, match=said):
        only_behaviours(objectives_of(values, "page"), "page")


def test_behaviours_and_distributions_are_told_apart():
    values = {"buy": {"label": "b > 2", "type": "binary"},
              "taste": {"label": "genre", "type": "distribution", "given": "buy"}}  # fmt: skip
    found = only_behaviours(objectives_of(values, "page"), "page", expressions=True)
    behaviours, distributions = by_kind(found)
    assert (list(behaviours), list(distributions)) == (["buy"], ["taste"])


def test_a_description_says_what_is_no_default_and_reads_back():
    values = {
        "click": {"label": "c", "type": "binary"},
        "buy": {"label": "b > 1", "type": "binary", "given": "click", "weight": 2.0},
    }
    found = objectives_of(values, "page")
    assert described(found) == values
    assert objectives_of(described(found), "page") == found
    assert chain("buy", found) == ["click", "buy"]
