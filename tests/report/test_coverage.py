"""Simulation tests: family-wise error, interval coverage, and why the paired t-test is the default."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from ablatio.report.statistics import compare, dunnett, paired
from ablatio.report.statistics.multiple_testing import _beyond, holm
from ablatio.report.statistics.paired_tests import bca, t_test

STUDIES = 5000


def null_studies(studies: int, arms: int, n: int, seed: int) -> np.ndarray:
    """Scores (studies, arms, seeds) without differences between arms; a seed shifts all arms of its study equally."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(studies, arms, n)) + 2 * rng.normal(size=(studies, 1, n))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_holm_family_wise_error_rate_is_five_percent(n: int) -> None:
    values = null_studies(STUDIES, 20, n, n)
    p = t_test(values[:, 1:] - values[:, :1])[-1]
    assert np.mean(holm(p).min(-1) <= 0.05) == pytest.approx(0.05, abs=0.01)
    assert np.mean(p.min(-1) <= 0.05) > 0.4  # without Holm's correction
    for study in range(40):  # `compare` applies the same correction
        arms = {f"arm{a}": dict(enumerate(values[study, a])) for a in range(20)}
        pairs = compare(arms, "arm0").pairs
        plain = [q.difference.method == "paired t" for q in pairs]  # the others look skewed, and have a larger p
        raw = np.array([q.difference.p for q in pairs])
        assert raw[plain] == pytest.approx(p[study][plain], rel=1e-9) and (raw >= p[study] - 1e-12).all()
        assert [q.p for q in pairs] == pytest.approx(holm(raw).tolist(), rel=1e-9)


def test_all_pairs_family_wise_error_rate_is_five_percent() -> None:
    values = null_studies(STUDIES, 6, 5, 0)
    first, second = np.triu_indices(6, 1)
    p = holm(t_test(values[:, first] - values[:, second])[-1])
    assert np.mean(p.min(-1) <= 0.05) == pytest.approx(0.05, abs=0.01)


def test_dunnett_family_wise_error_rate_is_five_percent() -> None:
    values = null_studies(STUDIES, 6, 4, 1)  # (studies, arms, seeds)
    left = values - values.mean(1, keepdims=True) - values.mean(2, keepdims=True) + values.mean((1, 2), keepdims=True)
    error = np.sqrt(2 / 4 * (left**2).sum((1, 2)) / 15)
    furthest = np.abs(values[:, 1:].mean(2) - values[:, :1].mean(2)).max(1) / error
    limit = brentq(lambda t: _beyond(t, 5, 15) - 0.05, 1, 9)
    assert np.mean(furthest >= limit) == pytest.approx(0.05, abs=0.01)
    found = [dunnett(study.T).min() <= 0.05 for study in values[:100]]
    assert found == (furthest[:100] >= limit).tolist() and any(found)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_paired_t_interval_covers_95_percent(n: int) -> None:
    values = null_studies(20_000, 2, n, n)
    _, _, low, high, _ = t_test(values[:, 0] + 0.3 - values[:, 1])
    assert np.mean((low <= 0.3) & (high >= 0.3)) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("n", "held"), [(3, 0.72), (5, 0.84), (10, 0.91), (20, 0.93)])
def test_bca_interval_undercovers_for_few_seeds(n: int, held: float) -> None:
    values = null_studies(1000, 2, n, n)
    intervals = np.array([bca(d, 0.95, 999, 0) for d in values[:, 0] - values[:, 1]])
    covered = np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))
    assert covered == pytest.approx(held, abs=0.03)


def test_planned_seeds_and_detectable_difference_give_the_stated_power() -> None:
    """New studies of so many seeds resolve the observed difference in 80 %; studies of this size the detectable one."""
    rng = np.random.default_rng(5)
    d = rng.normal(size=4)
    d = (d - d.mean()) / d.std(ddof=1) + 0.7
    pair = compare({"a": dict(enumerate(d)), "b": dict.fromkeys(range(4), 0.0)}).pairs[0]
    assert pair.better is None and pair.planned_seeds is not None
    p = t_test(rng.normal(0.7, 1.0, size=(20_000, pair.planned_seeds)))[-1]
    assert 0.79 < np.mean(p <= 0.05) < 0.86
    p = t_test(rng.normal(pair.detectable, 1.0, size=(20_000, 4)))[-1]
    assert np.mean(p <= 0.05) == pytest.approx(0.8, abs=0.01)


def test_p_value_agrees_with_interval_excluding_zero() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = paired(rng.normal(0.8, 1, 6), rng.normal(0, 1, 6))
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high) and not math.isnan(found.p)
