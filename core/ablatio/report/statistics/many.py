"""Corrections for many comparisons: what stays of a p when it is the best of several."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def holm(p: ArrayLike) -> Any:
    """Holm's step-down p over the last axis (..., m): the smallest times m, the next times m - 1, never falling.

    Keeps the chance of any false claim at alpha however the comparisons hang together.  A nan (no statement) stays nan
    and counts as a comparison: leaving it out would make the others look surer than the study was planned.
    """
    values = np.asarray(p, dtype=np.float64)
    m = values.shape[-1]
    order = np.argsort(values, axis=-1)  # nan last
    stepped = np.take_along_axis(values, order, -1) * np.arange(m, 0, -1)
    return _back(np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0), order)


def benjamini_hochberg(p: ArrayLike) -> Any:
    """Benjamini and Hochberg's p over the last axis: of what it lets through at 0.05, 5 % are false.  For screening."""
    values = np.asarray(p, dtype=np.float64)
    m = values.shape[-1]
    order = np.argsort(values, axis=-1)
    scaled = np.take_along_axis(values, order, -1) * m / np.arange(1, m + 1)
    least = np.fmin.accumulate(scaled[..., ::-1], axis=-1)[..., ::-1]
    return _back(np.where(np.isnan(scaled), np.nan, np.minimum(least, 1.0)), order)


def _back(ordered: Any, order: Any) -> Any:
    found = np.empty_like(ordered)
    np.put_along_axis(found, order, ordered, -1)
    return found
