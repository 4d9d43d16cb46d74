"""The Gaussian posterior against Bayes' rule in the space of weights, by numpy."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_meta.posterior import Posterior, observe, update, variance

D = 4


def drawn(seed: int, n: int) -> tuple[Posterior, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A prior, n observations of it, and the variance of the noise."""
    g = torch.Generator().manual_seed(seed)
    root, mean, x, y = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((D, D), (D,), (n, D), n)
    )
    noise = 0.1 + torch.rand((), generator=g, dtype=torch.float64)
    return Posterior(mean, root @ root.T + 0.1 * torch.eye(D, dtype=torch.float64)), x, y, noise


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_it_is_bayes_rule(seed: int, n: int) -> None:
    prior, x, y, noise = drawn(seed, n)
    found = observe(prior, x, y, noise)
    mean, covariance, a, b = (part.numpy() for part in (*prior, x, y))
    precision = np.linalg.inv(covariance) + a.T @ a / float(noise)
    right = np.linalg.solve(covariance, mean) + a.T @ b / float(noise)
    np.testing.assert_allclose(found.mean, np.linalg.solve(precision, right), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(precision), rtol=1e-6, atol=1e-8)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_one_at_a_time_in_any_order_is_all_at_once(seed: int, order: list[int]) -> None:
    known, x, y, noise = drawn(seed, 5)
    whole = observe(known, x, y, noise)
    for place in order:
        known = update(known, x[place], y[place], noise)
    for one, all_at_once in zip(known, whole, strict=True):
        torch.testing.assert_close(one, all_at_once, rtol=1e-7, atol=1e-9)


def test_zero_rows_say_nothing_and_variance_falls() -> None:
    prior, x, y, noise = drawn(3, 3)
    padded = observe(prior, torch.cat([x, 0 * x]), torch.cat([y, 0 * y]), noise)
    found = observe(prior, x, y, noise)
    for one, other in zip(padded, found, strict=True):
        torch.testing.assert_close(one, other)
    asked = torch.randn(6, D, generator=torch.manual_seed(1), dtype=torch.float64)
    expected = [float(v @ found.covariance @ v) for v in asked]
    np.testing.assert_allclose(variance(found, asked), expected)
    assert (variance(found, asked) < variance(prior, asked)).all()
