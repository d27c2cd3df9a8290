"""Power and sample size: equal to statsmodels, and confirmed by simulated studies."""

import math

import numpy as np
import pytest

from ablatio.report.statistics import assurance, power, seeds_needed, smallest_difference
from ablatio.report.statistics.multiple_testing import holm
from ablatio.report.statistics.paired_tests import t_test

CASES = [(n, arms, delta) for n in (2, 3, 5, 10, 40) for arms in (2, 5, 20) for delta in (0.3, 1.0, -2.5)]


@pytest.mark.parametrize(("n", "arms", "delta"), CASES)
def test_power_matches_statsmodels(n: int, arms: int, delta: float) -> None:
    from statsmodels.stats.power import TTestPower

    tails = [TTestPower().power(abs(delta) / 0.7, n, 0.025 / (arms - 1), None, side) for side in ("larger", "smaller")]
    expected = np.nansum(tails)  # statsmodels returns nan where the opposite tail is numerically 0
    assert power(n, delta, 0.7, arms) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_seeds_needed_is_the_smallest_sufficient_number() -> None:
    for delta, arms in ((2.0, 2), (1.0, 2), (0.5, 6), (0.05, 20)):
        n = seeds_needed(delta, 1.0, arms)
        assert power(n, delta, 1.0, arms) >= 0.8 > power(n - 1, delta, 1.0, arms)
        assert seeds_needed(-delta, 1.0, arms) == n == seeds_needed(10 * delta, 10.0, arms)


def test_power_in_degenerate_cases() -> None:
    assert power(1, 5.0, 1.0) == 0 and power(5, 1.0, 0.0) == 1 and power(5, 0.0, 0.0) == 0


def test_smallest_difference_inverts_power() -> None:
    for n in (2, 5, 30):
        delta = smallest_difference(n, 0.3, arms=4)
        assert power(n, delta, 0.3, arms=4) == pytest.approx(0.8, abs=1e-6)
        assert seeds_needed(delta * (1 + 1e-6), 0.3, arms=4) == n
    assert math.isnan(smallest_difference(1, 0.3)) and smallest_difference(3, 0.0) == 0
    assert power(7, 0.0, 1.0, arms=3) == pytest.approx(0.05 / 2)


@pytest.mark.parametrize(("n", "arms"), [(5, 2), (10, 2), (5, 4), (10, 8)])
def test_simulated_studies_have_the_planned_power(n: int, arms: int) -> None:
    """One arm differs from the baseline; arms are paired by seed; Holm's correction over all comparisons."""
    rng = np.random.default_rng(n * arms)
    delta = smallest_difference(n, math.sqrt(2), arms)
    values = rng.normal(size=(20_000, arms, n)) + rng.normal(size=(20_000, 1, n))  # a seed shifts all arms
    values[:, 1] += delta
    p = holm(t_test(values[:, 1:] - values[:, :1])[-1])
    assert np.mean(p[:, 0] <= 0.05) == pytest.approx(power(n, delta, math.sqrt(2), arms), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1.0), "difference of 0"),
        ((1e-9, 1.0), "more than 1,000,000"),
        ((1.0, -1.0), "spread"),
        ((math.nan, 1.0), "finite"),
        ((1.0, 1.0, 1), "two arms"),
        ((1.0, 1.0, 2, 0.0), "alpha"),
        ((1.0, 1.0, 2, 0.05, 1.0), "power"),
    ],
)
def test_seeds_needed_rejects_invalid_arguments(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        seeds_needed(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("pairs", [2, 3, 5])
@pytest.mark.parametrize("delta", [0.7, 1.0, 2.0])
def test_plan_from_a_pilot_reaches_its_power_on_average(pairs: int, delta: float) -> None:
    """Pilots of a few pairs, each planning a study of its own; the true sd is 1.  Taken as exact it reaches 0.5-0.7."""
    rng = np.random.default_rng(pairs)
    pilots = np.exp(np.quantile(np.log(rng.normal(size=(20_000, pairs)).std(1, ddof=1)), (np.arange(40) + 0.5) / 40))
    by_assurance = [power(seeds_needed(delta, sd, df=pairs - 1), delta, 1.0) for sd in pilots]
    as_exact = [power(seeds_needed(delta, sd), delta, 1.0) for sd in pilots]
    assert 0.78 <= np.mean(by_assurance) <= 0.90
    assert np.mean(as_exact) < np.mean(by_assurance) - 0.05


def test_assurance_is_the_power_averaged_over_the_spread() -> None:
    """Against a plain Monte Carlo of sigma; with many degrees of freedom it is the power itself."""
    rng = np.random.default_rng(0)
    for n, df, arms in ((5, 1, 2), (10, 2, 4), (20, 9, 2)):
        spreads = 0.5 * np.sqrt(df / rng.chisquare(df, size=4000))
        expected = np.mean([power(n, 0.6, float(sd), arms) for sd in spreads])
        assert assurance(n, 0.6, 0.5, df, arms) == pytest.approx(expected, abs=0.025)
    assert assurance(10, 0.6, 0.5, 100_000) == pytest.approx(power(10, 0.6, 0.5), abs=1e-3)
    assert smallest_difference(6, 1.0, df=2) > smallest_difference(6, 1.0, df=20) > smallest_difference(6, 1.0)
    with pytest.raises(ValueError, match="degree of freedom"):
        assurance(5, 1.0, 1.0, 0)
