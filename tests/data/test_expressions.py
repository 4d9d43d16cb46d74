"""Labels as expressions of columns: their values, and what is never read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_meta.data.expressions import parse
from recbole_meta.errors import SettingError

COLUMNS = {"rating": np.array([1.0, 3.0, 4.0, 5.0, np.nan]), "plays": np.array([0.0, 2, 4, 8, 1])}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("rating", [1, 3, 4, 5, None]),
        ("rating >= 4", [0, 0, 1, 1, None]),
        ("rating >= 4 and plays > 4", [0, 0, 0, 1, None]),
        ("not rating >= 4 or plays == 8", [1, 1, 0, 1, None]),
        ("2 < rating <= 4", [0, 1, 1, 0, None]),
        ("-plays + 2 * (rating - 1)", [0, 2, 2, 0, None]),
        ("rating / plays", [None, 1.5, 1, 0.625, None]),  # a division by zero is no label
        ("(rating >= 4) + (plays > 4)", [0, 0, 1, 2, None]),
    ],
)
def test_values(text, values):
    found = parse(text, "page").of(COLUMNS)
    np.testing.assert_allclose(found, [np.nan if v is None else v for v in values])


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_chained_comparisons_against_python(low, high):
    found = parse(f"{low!r} < x < {high!r}", "page").of({"x": np.array([0.5])})
    assert found[0] == float(low < 0.5 < high)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os')", "is not read"),
        ("rating.mean()", "is not read"),
        ("rating ** 2", "is not read"),
        ("rating if plays else 0", "is not read"),
        ("rating in (4, 5)", "is not read"),
        ("rating >= '4'", "is not read"),
        ("rating >= True", "is not read"),
        ("rating >=", "is no expression"),
        ("4 > 3", "names no column"),
    ],
)
def test_what_is_no_expression_of_columns_is_refused(text, said):
    with pytest.raises(SettingError, match=said):
        parse(text, "page")


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(SettingError, match=r"no column 'ratng'.*Did you mean 'rating'"):
        parse("ratng >= 4", "page").of(COLUMNS)
