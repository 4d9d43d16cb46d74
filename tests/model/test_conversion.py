"""The log-odds that an item which was met otherwise is an objective's, too."""

import math

import numpy as np
import pytest
from scipy import sparse

from recbole_meta.model.conversion import conversion


def matrices(seed: int) -> dict[str, np.ndarray]:
    """Users, items and three behaviours; item 0 was met by nobody, item 1 bought by all."""
    rng = np.random.default_rng(seed)
    found = {name: rng.random((40, 12)) < share for name, share in
             (("purchase", 0.2), ("click", 0.5), ("cart", 0.3))}  # fmt: skip
    for each in found.values():
        each[:, 0], each[:, 1] = False, True
    return found


@pytest.mark.parametrize("objective", ["purchase", "click", "cart"])
def test_odds_equal_a_plain_loop(objective):
    dense = matrices(3)
    history = {name: sparse.csr_matrix(each.astype(np.float32)) for name, each in dense.items()}
    met, both = [0] * 12, [0] * 12
    for item in range(12):
        for user in range(40):
            if any(dense[name][user, item] for name in dense if name != objective):
                met[item] += 1
                both[item] += bool(dense[objective][user, item])
    mean = (sum(both) + 1) / (sum(met) + 2)
    found = conversion(history, objective, users=4.0)
    for item in range(12):
        share = (both[item] + 4 * mean) / (met[item] + 4)
        expected = math.log(share / (1 - share)) - math.log(mean / (1 - mean))
        assert found[item] == pytest.approx(expected, abs=1e-5)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] == found.max() > 1


def test_what_always_or_never_converts_is_finite():
    clicks = sparse.csr_matrix(np.ones((5, 3), dtype=np.float32))
    nothing = sparse.csr_matrix((5, 3), dtype=np.float32)
    for purchases in (clicks, nothing):
        found = conversion({"purchase": purchases, "click": clicks}, "purchase")
        assert np.isfinite(found).all() and np.ptp(found) == 0
    assert not conversion({"purchase": clicks}, "purchase").any()
