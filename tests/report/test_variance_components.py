"""Variance split into init and order: exact on additive data, unbiased on drawn data, equal to another computation."""

import math

import numpy as np
import pytest

from ablatio.report.statistics.variance_components import split

INITS, ORDERS = 3, 4


def cells(grid: np.ndarray) -> dict[tuple[int, int], float]:
    return {(i, j): float(grid[i, j]) for i in range(grid.shape[0]) for j in range(grid.shape[1])}


def drawn(rng: np.random.Generator, sds: tuple[float, float, float]) -> np.ndarray:
    init, order, rest = sds
    a, b = rng.normal(0, init, (INITS, 1)), rng.normal(0, order, (1, ORDERS))
    return 3 + a + b + rng.normal(0, rest, (INITS, ORDERS))


def test_additive_scores_have_no_rest_and_their_own_variances() -> None:
    a, b = np.array([[0.0], [0.2], [0.7]]), np.array([[0.0, 0.1, 0.3, 0.2]])
    found = split([cells(a + b)])
    assert found is not None
    assert found.rest == pytest.approx(0, abs=1e-15)
    assert found.init == pytest.approx(a.var(ddof=1)) and found.order == pytest.approx(b.var(ddof=1))


def test_estimates_equal_least_squares_by_dummy_variables() -> None:
    """An independent route to the mean squares: residual sums of squares of nested regressions."""
    grid = drawn(np.random.default_rng(1), (0.3, 0.1, 0.2))
    i, j = (index.ravel() for index in np.indices(grid.shape))
    one, inits, orders = np.ones((grid.size, 1)), np.eye(INITS)[i], np.eye(ORDERS)[j]

    def rss(*blocks: np.ndarray) -> float:
        x = np.hstack(blocks)
        fitted = x @ np.linalg.lstsq(x, grid.ravel(), rcond=None)[0]
        return float(((grid.ravel() - fitted) ** 2).sum())

    error = rss(one, inits, orders) / ((INITS - 1) * (ORDERS - 1))
    of_init = (rss(one, orders) - rss(one, inits, orders)) / (INITS - 1)
    of_order = (rss(one, inits) - rss(one, inits, orders)) / (ORDERS - 1)
    found = split([cells(grid)])
    assert found is not None
    assert found.rest == pytest.approx(error)
    assert found.init == pytest.approx(max(0, (of_init - error) / ORDERS))
    assert found.order == pytest.approx(max(0, (of_order - error) / INITS))


def test_pooled_arms_come_close_to_the_true_components() -> None:
    sds = 0.3, 0.2, 0.1
    rng = np.random.default_rng(2)
    found = split([cells(drawn(rng, sds) + arm) for arm in range(800)])
    assert found is not None and found.arms == 800
    estimates = (math.sqrt(v) for v in (found.init, found.order, found.rest))
    assert [*estimates] == pytest.approx(sds, rel=0.06)


def test_what_is_not_crossed_or_not_finite_is_left_out() -> None:
    grid = drawn(np.random.default_rng(3), (0.3, 0.2, 0.1))
    whole = cells(grid)
    part = {key: value for key, value in whole.items() if key != (0, 0)}
    assert split([part]) is None and split([{(1, 1): 3.0, (2, 2): 3.1}]) is None and split([]) is None
    assert split([{**whole, (0, 0): math.nan}]) is None
    assert split([whole, part]) == split([whole])
