"""The inverse of a symmetric matrix, in its place: matrices of users or items are large."""

import numpy as np
from scipy.linalg import lapack

_CHUNK = 512  # rows that are mirrored at a time


def inverse_of(matrix: np.ndarray) -> np.ndarray | None:
    """Of a finite, positive definite matrix [N, N], float32 or float64; None where it is not
    definite.

    The matrix is overwritten where its columns lie together (order "F").
    """
    kind = "s" if matrix.dtype == np.float32 else "d"
    factor, invert = (getattr(lapack, f"{kind}po{name}") for name in ("trf", "tri"))
    lower, failed = factor(matrix, lower=1, overwrite_a=1)
    if failed:
        return None
    found, _ = invert(lower, lower=1, overwrite_c=1)
    for start in range(0, len(found), _CHUNK):  # the upper half from the lower
        end = min(start + _CHUNK, len(found))
        block = np.tril(found[start:end, start:end])
        found[start:end, start:end] = block + np.tril(block, -1).T
        found[start:end, end:] = found[end:, start:end].T
    return np.asarray(found.T)  # symmetric: rows lie together
