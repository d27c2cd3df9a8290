"""Decompositions of several matrices; those of one shape are made in one call.

A GPU makes many small decompositions at a time, and each call waits for it to read whether it succeeded.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]


def eigh(matrices: Iterable[Tensor]) -> list[Parts]:
    """Eigenvalues, ascending, and eigenvectors of each symmetric matrix (..., n, n): ((..., n), (..., n, n))."""
    return _by_shape(_eigh, matrices)


def orthonormal_factors(matrices: Iterable[Tensor]) -> list[Tensor]:
    """The factor Q of the QR decomposition of each matrix (..., rows, columns), in float32 or wider."""
    return [q for (q,) in _by_shape(lambda m: (torch.linalg.qr(m).Q,), matrices)]


def left_singular_vectors(matrices: Iterable[Tensor]) -> list[Tensor]:
    """The left singular vectors of each matrix (..., rows, columns), largest singular value first."""
    return [u for (u,) in _by_shape(lambda m: (torch.linalg.svd(m, full_matrices=False).U,), matrices)]


def _by_shape(decompose: Callable[[Tensor], Parts], matrices: Iterable[Tensor]) -> list[Parts]:
    """Apply `decompose` to stacks of the matrices that have one shape and dtype; results in their order."""
    held = list(matrices)
    places: dict[object, list[int]] = {}
    for i, matrix in enumerate(held):
        places.setdefault((matrix.shape, matrix.dtype), []).append(i)
    found: list[Parts] = [()] * len(held)
    for same in places.values():
        # One alone is not copied.
        stacks = decompose(held[same[0]][None] if len(same) == 1 else torch.stack([held[i] for i in same]))
        for i, parts in zip(same, zip(*stacks, strict=True), strict=True):
            found[i] = parts
    return found


def _eigh(m: Tensor) -> Parts:
    """Eigenvalues and eigenvectors; in float64 where float32 does not converge, as with many unused rows of a table."""
    try:
        values, basis = torch.linalg.eigh(m)
    except torch.linalg.LinAlgError:
        if len(m) > 1:  # each alone: those that converge stay as they would be by themselves
            return tuple(torch.cat(parts) for parts in zip(*(_eigh(one[None]) for one in m), strict=True))
        values, basis = torch.linalg.eigh(m.double())
    return values.to(m.dtype), basis.to(m.dtype)
