"""The inverse in place against a plain one, also where it is mirrored in several chunks."""

import numpy as np
import pytest

from recbole_meta.model.inverse import inverse_of


@pytest.mark.parametrize("n", [1, 7, 700])
@pytest.mark.parametrize(("kind", "near"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_it_is_the_inverse_and_symmetric(n, kind, near):
    x = np.random.default_rng(n).normal(size=(n, n + 3)).astype(kind)
    matrix = np.asfortranarray(x @ x.T / n + np.eye(n, dtype=kind))
    expected = np.linalg.inv(matrix.astype(np.float64))
    found = inverse_of(matrix)
    assert found.dtype == kind
    np.testing.assert_allclose(found, expected, atol=near)
    np.testing.assert_array_equal(found, found.T)


def test_what_is_not_definite_has_none():
    assert inverse_of(np.asfortranarray([[1.0, 2.0], [2.0, 1.0]])) is None
