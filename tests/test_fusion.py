"""Fusing scores: values by hand, invariances, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_meta.errors import DataError, SettingError
from recbole_meta.fusion import Fusion, fuse, places, scaled, weight_trials

SCORES = torch.tensor([[[3.0, 1.0, 2.0, 0.0]], [[0.0, 4.0, 2.0, 2.0]]])  # K = 2, one user
METHODS = [
    ("sum", "none"), ("sum", "zscore"), ("sum", "softmax"), ("sum", "rank"),
    ("product", "softmax"), ("product", "rank"), ("reciprocal", "rank"), ("funnel", "rank"),
]  # fmt: skip


def way(method: str = "sum", scale: str = "none", epsilon: float = 1e-6, offset: float = 60.0):
    return Fusion(method, scale, epsilon, offset)


def drawn(seed: int, heads: int = 3, users: int = 4, items: int = 11, levels: int = 6) -> Tensor:
    """Scores of few levels, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(levels, (heads, users, items), generator=generator)
    return whole.double() - 2


def test_places_by_hand():
    found = places(torch.tensor([[2.0, 5.0, 2.0, 7.0], [1.0, 1.0, 1.0, 1.0]]))
    assert found.tolist() == [[3.5, 2.0, 3.5, 1.0], [2.5] * 4]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_places_are_a_count(seed):
    """1 + items that are better + half of the others that tie."""
    scores = drawn(seed)
    better = (scores[..., None, :] > scores[..., :, None]).sum(-1)
    tied = (scores[..., None, :] == scores[..., :, None]).sum(-1) - 1
    torch.testing.assert_close(places(scores), 1 + better + tied / 2, check_dtype=False)


def test_scales_by_hand():
    scores = torch.tensor([3.0, 1.0, 2.0, -math.inf], dtype=torch.double)
    e = [math.exp(x) for x in (3, 1, 2)]
    third = 1 / 3
    by_hand = {
        "none": [3.0, 1.0, 2.0, 1.0],
        "softmax": [*(x / sum(e) for x in e), 0.0],
        "zscore": [math.sqrt(1.5), -math.sqrt(1.5), 0.0, -math.sqrt(1.5)],
        "rank": [1.0, third, 2 * third, 0.0],
    }
    for scale, wanted in by_hand.items():
        torch.testing.assert_close(
            scaled(scores, scale), torch.tensor(wanted, dtype=torch.double), msg=scale
        )


@pytest.mark.parametrize("scale", ["none", "softmax", "zscore", "rank"])
def test_a_head_that_says_nothing_says_nothing(scale):
    """Constant scores move no item against another; a row without candidates is finite."""
    flat = scaled(torch.full((1, 5), 3.0), scale)
    assert (flat == flat[0, 0]).all() and flat.isfinite().all()
    assert scaled(torch.full((1, 5), -torch.inf), scale).isfinite().all()


def test_methods_by_hand():
    w = (2.0, 0.5)
    rank = {0: [1.0, 3.0, 2.0, 4.0], 1: [4.0, 1.0, 2.5, 2.5]}
    quantile = {head: [(5 - place) / 4 for place in found] for head, found in rank.items()}
    each = list(zip(quantile[0], quantile[1]))
    by_hand = {
        ("sum", "none"): [2 * a + 0.5 * b for a, b in zip((3, 1, 2, 0), (0, 4, 2, 2))],
        ("sum", "rank"): [2 * a + 0.5 * b for a, b in each],
        ("product", "rank"): [math.log((a + 1e-6) ** 2 * (b + 1e-6) ** 0.5) for a, b in each],
        ("reciprocal", "rank"): [2 / (60 + a) + 0.5 / (60 + b) for a, b in zip(rank[0], rank[1])],
        ("funnel", "rank"): [2 * a + 0.5 * a * b for a, b in each],
    }
    for (method, scale), wanted in by_hand.items():
        found = fuse(SCORES.double(), w, way(method, scale))
        torch.testing.assert_close(found[0], torch.tensor(wanted, dtype=torch.double), msg=method)
    turned = fuse(SCORES.double(), w, way("funnel", "rank"), order=(1, 0))
    wanted = torch.tensor([0.5 * b + 2 * a * b for a, b in each], dtype=torch.double)
    torch.testing.assert_close(turned[0], wanted)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_ranks_do_not_see_monotone_maps(seed, power):
    """Of each head apart: places, and so both methods that read them, stay bit for bit."""
    scores = drawn(seed)
    mapped = torch.stack([scores[0] * 100 + 3, scores[1].exp(), scores[2] ** (2 * power + 1)])
    for method in ("reciprocal", "sum", "product", "funnel"):
        fusion = way(method, "rank")
        assert torch.equal(fuse(scores, (1, 2, 3), fusion), fuse(mapped, (1, 2, 3), fusion))
    zscore = way("sum", "zscore")
    shifted = torch.stack([scores[0] * 100 + 3, scores[1] - 7, 0.1 * scores[2]])
    torch.testing.assert_close(fuse(scores, (1, 2, 3), zscore), fuse(shifted, (1, 2, 3), zscore))
    assert not torch.allclose(fuse(scores, (1, 2, 3), way()), fuse(mapped, (1, 2, 3), way()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_product_is_the_exponential_of_a_sum_of_logarithms(seed):
    scores, w = drawn(seed), (0.3, 1.0, 2.5)
    p = scores.softmax(-1) + 1e-3
    product = torch.stack([part**each for part, each in zip(p, w)]).prod(0)
    found = fuse(scores, w, way("product", "softmax", epsilon=1e-3))
    torch.testing.assert_close(found.exp(), product)


@pytest.mark.parametrize(("method", "scale"), METHODS)
def test_all_weight_on_one_head_is_its_ranking(method, scale):
    """In a funnel only the first step can stand alone."""
    scores = drawn(3, levels=1000) / 100
    for head in range(1 if method == "funnel" else 3):
        weights = [float(head == other) for other in range(3)]
        fused = fuse(scores, weights, way(method, scale))
        torch.testing.assert_close(places(fused), places(scores[head]))


@pytest.mark.parametrize(("method", "scale"), METHODS)
def test_the_order_of_heads_and_users_does_not_matter(method, scale):
    scores, weights = drawn(4), torch.tensor([1.0, 0.2, 3.0])
    whole = fuse(scores, weights.tolist(), way(method, scale), (0, 1, 2))
    turn, users = [2, 0, 1], [3, 1]
    order = [turn.index(step) for step in (0, 1, 2)]
    other = fuse(scores[turn][:, users], weights[turn].tolist(), way(method, scale), order)
    torch.testing.assert_close(other, whole[users])


@pytest.mark.parametrize(("method", "scale"), METHODS)
def test_no_candidate_of_any_head_is_none(method, scale):
    """And one that a head has not gets no more than its least candidate would."""
    scores = drawn(5, levels=1000)
    scores[:, 1, 4] = -torch.inf
    scores[0, 2, 6] = -torch.inf
    fused = fuse(scores, (1.0, 1.0, 1.0), way(method, scale))
    assert fused[1, 4] == -torch.inf and fused.isfinite().sum() == fused.numel() - 1
    least = scores.clone()
    least[0, 2, 6] = scores[0, 2].where(scores[0, 2] > -torch.inf, torch.inf).min()
    assert (fused[2, 6] <= fuse(least, (1.0, 1.0, 1.0), way(method, scale))[2, 6] + 1e-9).all()
    # what is hidden changes no scale: the others' scores are those of a catalogue without it
    kept = [n for n in range(scores.shape[2]) if n != 4]
    torch.testing.assert_close(
        fused[1, kept], fuse(scores[:, 1:2, kept], (1.0, 1.0, 1.0), way(method, scale))[0]
    )


def test_trials_are_equal_weights_then_each_alone_then_drawn():
    found = weight_trials(3, 40, 7)
    assert found[0] == (1 / 3,) * 3
    assert found[1:4] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    for weights in found[4:]:
        assert sum(weights) == pytest.approx(1) and max(weights) / min(weights) <= 100 + 1e-9
    assert len(set(found)) == 40
    assert weight_trials(3, 10, 7) == found[:10]
    assert weight_trials(3, 40, 8)[4:] != found[4:]


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (-1.0, 2.0), (math.nan, 1.0)])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(SettingError, match="2 numbers of at least 0 are needed, one above 0"):
        fuse(SCORES, weights, way())


def test_what_cannot_be_fused_is_refused():
    with pytest.raises(DataError, match="shape"):
        fuse(SCORES[0], (1.0,), way())
    for broken in (math.nan, math.inf):
        scores = SCORES.clone()
        scores[1, 0, 2] = broken
        with pytest.raises(DataError, match="1 scores are NaN or infinite"):
            fuse(scores, (1.0, 1.0), way())
    with pytest.raises(SettingError, match="need 4"):
        weight_trials(3, 3, 0)
