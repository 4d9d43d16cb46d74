"""The first K of a ranking against a plain sort."""

import numpy as np
import pytest
import torch

from recbole_meta.evaluation.top import top_candidates


def naive(scores: list[float], tokens: list[str], k: int) -> tuple[list[str], list[float], int]:
    """Tokens and scores of the first k candidates, and how many candidates score as the k-th."""
    ranked = sorted((-score, token) for score, token in zip(scores, tokens, strict=True))
    ranked = [(token, -score) for score, token in ranked if score < np.inf]
    tied = sum(score == ranked[k - 1][1] for _, score in ranked) if len(ranked) >= k else 0
    return [token for token, _ in ranked[:k]], [score for _, score in ranked[:k]], tied


def compare(scores: np.ndarray, tokens: list[str], k: int) -> None:
    place = torch.from_numpy(np.argsort(np.argsort(np.array(tokens))))
    top = top_candidates(torch.from_numpy(scores), place, k)
    for row, values in enumerate(scores.tolist()):
        names, best, tied = naive(values, tokens, k)
        listed = torch.isfinite(top.score[row])
        assert [tokens[i] for i in top.item[row][listed]] == names
        assert top.score[row][listed].tolist() == best
        assert top.cut_tie_size[row] == tied
        assert (top.score[row][~listed] == -torch.inf).all() and not listed[len(names) :].any()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [1, 3, 30, 10**6])
def test_as_a_plain_sort(seed, levels):
    rng = np.random.default_rng(seed)
    n_items = int(rng.integers(3, 60))
    tokens = [str(number) for number in rng.permutation(n_items)]  # '10' sorts before '9'
    scores = rng.integers(0, levels, (12, n_items)) / levels - 0.5
    scores[rng.random(scores.shape) < rng.random((12, 1))] = -np.inf  # from few to all
    for k in {1, 3, min(10, n_items), n_items}:
        compare(scores, tokens, k)


def test_nothing_to_rank():
    top = top_candidates(torch.full((2, 5), -torch.inf), torch.arange(5), 3)
    assert (top.score == -torch.inf).all()
    assert top.cut_tie_size.tolist() == [0, 0]


def test_a_tie_beyond_the_cut_is_counted_whole():
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, 1.0]])
    top = top_candidates(scores, torch.tensor([0, 5, 4, 3, 2, 1]), 3)
    assert top.item.tolist() == [[0, 5, 3]]  # of the tied ones those whose tokens come first
    assert top.cut_tie_size.tolist() == [4]


def test_single_precision_ties_stay_ties():
    third = torch.tensor(1 / 3)
    top = top_candidates(third.repeat(1, 40), torch.arange(40).flip(0), 10)
    assert top.item.tolist() == [list(range(39, 29, -1))]
    assert top.cut_tie_size.tolist() == [40]
