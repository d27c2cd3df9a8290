"""What tests do where assumptions fail: divergence, unequal spread, skewness, tied arms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ablatio.report.statistics import compare, compare_with_best
from ablatio.report.statistics.best import beyond, critical, with_best
from ablatio.report.statistics.divergence import divergences, ranked_difference
from ablatio.report.statistics.robustness import skew_corrected, skewed, unequal_spread


def study(rng: np.random.Generator, arms: int, seeds: int, spread: float = 1.0) -> dict[str, dict[int, float]]:
    """Equal arms that share the shift of each seed; the first one has this spread, the others 1."""
    shift = 2 * rng.normal(size=seeds)
    noise = rng.normal(size=(arms, seeds)) * np.r_[spread, np.ones(arms - 1)][:, None]
    return {f"a{i}": dict(enumerate(noise[i] + shift)) for i in range(arms)}


def test_signed_ranks_are_wilcoxons_where_no_run_diverged() -> None:
    rng = np.random.default_rng(0)
    for n in (5, 8, 12):
        a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
        found, sign = ranked_difference(dict(enumerate(a)), dict(enumerate(b)), "low")
        assert found.p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
        assert found.mean == pytest.approx((a - b).mean()) and sign == np.sign(
            stats.rankdata(abs(a - b)) @ np.sign(a - b)
        )


def test_signed_ranks_count_a_diverged_run_as_the_worst() -> None:
    """Against all sign patterns in a loop, with infinity for a diverged run, in both directions of better."""
    a = {0: 1.0, 1: math.nan, 2: 0.8, 3: 0.7, 4: math.nan, 5: 0.9, 6: math.nan}
    b = {0: 1.3, 1: 1.2, 2: 1.0, 3: 0.75, 4: 0.9, 5: 0.8, 6: math.nan}
    for better, worst in (("low", 99.0), ("high", -99.0)):
        filled = [[v if math.isfinite(v) else worst for v in of.values()] for of in (a, b)]
        gaps = np.array([math.copysign(99, x - y) if abs(x - y) > 90 else x - y for x, y in zip(*filled, strict=True)])
        ranks = stats.rankdata(np.abs(gaps))
        seen = abs(float(ranks @ np.sign(gaps)))
        sums = [abs(sum(r * s for r, s, g in zip(ranks, signs, gaps, strict=True) if g)) for signs in
                itertools.product((-1, 1), repeat=7)]  # fmt: skip
        found, _ = ranked_difference(a, b, better)  # type: ignore[arg-type]
        assert found.p == pytest.approx(np.mean(np.array(sums) >= seen - 1e-9)) and found.n == 7
        assert found.mean == pytest.approx(np.mean([1.0 - 1.3, 0.8 - 1.0, 0.7 - 0.75, 0.9 - 0.8]))


def test_divergence_is_tested_by_fisher_and_corrected_over_the_arms() -> None:
    lost = dict.fromkeys(range(5), math.nan)
    sound = dict.fromkeys(range(5), 1.0)
    found = {
        d.arm: d for d in divergences({"base": sound, "wild": lost, "odd": lost | {0: 1.0}, "tame": sound}, "base")
    }
    assert found["wild"].p == pytest.approx(3 * stats.fisher_exact([[5, 0], [0, 5]]).pvalue)
    assert found["odd"].p == pytest.approx(2 * stats.fisher_exact([[4, 1], [0, 5]]).pvalue) and found["tame"].p == 1
    alone = {d.arm: d for d in divergences({"a": sound, "b": lost, "c": sound}, None)}
    assert (alone["b"].other_diverged, alone["b"].other_runs, alone["b"].against) == (0, 10, None)
    assert alone["b"].p == pytest.approx(3 * stats.fisher_exact([[5, 0], [0, 10]]).pvalue)


@pytest.mark.parametrize(("seeds", "arms"), [(5, 2), (8, 3)])
def test_divergence_at_random_makes_no_winners(seeds: int, arms: int) -> None:
    """Equal arms, each run of which diverges with a probability of 30 %, or if its loss is high."""
    rng = np.random.default_rng(seeds)
    wins = []
    for k in range(400):
        values = study(rng, arms, seeds)
        for of in values.values():
            for s in of:
                if rng.random() < 0.3 if k % 2 else of[s] > 1.5 and rng.random() < 0.7:
                    of[s] = math.nan
        wins.append(any(p.better for p in compare(values, "a0").pairs))
    assert np.mean(wins) <= 0.065


def test_dunnett_gives_way_where_the_spread_differs() -> None:
    """False claims of the pooled test alone are 14 % with a baseline of twice the spread, 21 % with three times."""
    rng = np.random.default_rng(1)
    for spread in (1.0, 3.0):
        found = [compare(study(rng, 8, 5, spread), "a0", correction="dunnett") for _ in range(150)]
        assert np.mean([any(p.better for p in c.pairs) for c in found]) <= 0.08
        shares = np.mean([c.unequal for c in found])
        assert shares < 0.16 if spread == 1 else shares > 0.3
        assert all(c.correction == ("holm" if c.unequal else "dunnett") for c in found)


def test_unequal_spread_has_its_level() -> None:
    rng = np.random.default_rng(2)
    p = [unequal_spread(rng.normal(size=(4, 6)) + 3 * rng.normal(size=(4, 1))) for _ in range(2000)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.02)


def test_a_skewed_baseline_makes_fewer_false_winners() -> None:
    """Differences to an exponential baseline have the mean 0 here; the t-test is wrong in 8 to 9 %."""
    rng = np.random.default_rng(3)
    for n in (12, 20):
        d = rng.exponential(size=(1200, n)) - 1 + 0.3 * rng.normal(size=(1200, n))
        plain = stats.ttest_1samp(d, 0, axis=1).pvalue
        found = [skew_corrected(x)[2] if skewed(x) else p for x, p in zip(d, plain, strict=True)]
        assert np.mean(np.array(found) <= 0.05) <= 0.065 < np.mean(plain <= 0.05)


def test_the_corrected_interval_agrees_with_its_p_and_contains_the_t_interval() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        d = rng.exponential(size=10) - 0.5
        low, high, p = skew_corrected(d)
        t = stats.ttest_1samp(d, 0)
        inside = t.confidence_interval(0.95)
        assert low <= inside.low + 1e-12 and high >= inside.high - 1e-12 and p >= t.pvalue - 1e-12
        assert (p <= 0.05) == (not low <= 0 <= high)


def log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Mean 0, sd 1, skewness 3.7."""
    return np.asarray(
        (np.exp(0.8 * rng.normal(size=shape)) - np.exp(0.32)) / math.sqrt((np.exp(0.64) - 1) * np.exp(0.64))
    )


@pytest.mark.parametrize(("seeds", "arms"), [(3, 4), (5, 4), (5, 2)])
def test_the_test_for_skewed_scores_holds_where_the_t_test_does_not(seeds: int, arms: int) -> None:
    """A log-normal baseline of three times the others' spread: 8 to 10 % of equal arms are told apart by t, 6 by it."""
    rng = np.random.default_rng(10 * seeds + arms)
    wrong = {"t": 0, "skewed": 0}
    for _ in range(900):
        noise = rng.normal(size=(seeds, arms))
        noise[:, 0] = 3 * log_normal(rng, (seeds,))
        noise += rng.normal(size=(seeds, 1))
        values = {f"a{i}": dict(enumerate(noise[:, i])) for i in range(arms)}
        for method in wrong:
            wrong[method] += any(p.better for p in compare(values, "a0", method=method).pairs)  # type: ignore[arg-type]
    assert wrong["skewed"] / 900 <= 0.065 < wrong["t"] / 900


def test_an_arm_that_varies_more_is_corrected_or_named() -> None:
    """With enough seeds its tests are corrected for skewness and the others not; with few it is named."""
    rng = np.random.default_rng(8)
    many, few = (study(rng, 5, n, 6.0) for n in (12, 5))
    found = compare(many, "a1")
    assert {p.a for p in found.pairs if "skew" in p.difference.method} == {"a0"} and found.wild is None
    assert compare(few, "a1").wild == "a0" and compare(few, "a1", method="skewed").wild is None
    for n in (5, 12):
        plain, wide = (compare(study(np.random.default_rng(n), 4, n), "a0", method=m).pairs for m in ("t", "skewed"))
        for t, s in zip(plain, wide, strict=True):
            assert s.difference.low <= t.difference.low and t.difference.high <= s.difference.high
            assert s.difference.p >= t.difference.p - 1e-12 and s.difference.mean == t.difference.mean


def test_quantiles_are_dunnetts_and_the_studentized_range() -> None:
    for k, df in ((3, 4), (9, 16), (12, 22)):
        assert critical(k, k, df, 0.05) * math.sqrt(2) == pytest.approx(
            stats.studentized_range.isf(0.05, k, df), rel=1e-3
        )
    rng = np.random.default_rng(5)
    z = rng.normal(size=(100_000, 9)) / np.sqrt(rng.chisquare(16, size=(100_000, 1)) / 16)
    for s in (1, 4, 9):
        assert np.mean(z[:, :s].max(1) - z.min(1) > 2.5 * math.sqrt(2)) == pytest.approx(
            beyond(2.5, s, 9, 16), abs=0.005
        )
    one_sided = stats.dunnett(*(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]])), control=np.array([0.0, 1.0, 2.5]),
                              alternative="greater")  # fmt: skip
    assert one_sided.pvalue[1] == pytest.approx(beyond(float(one_sided.statistic[1]), 1, 3, 6), abs=2e-3)


@pytest.mark.parametrize("tied", [9, 3])
def test_no_arm_that_shares_the_first_place_is_called_worse(tied: int) -> None:
    """In at most 5 % of studies; the bounds of all arms together hold in 95 %."""
    rng = np.random.default_rng(tied)
    means = np.r_[np.zeros(tied), np.full(9 - tied, 4.0)]
    truth = np.array([m - np.delete(means, i).min() for i, m in enumerate(means)])
    wrong, held, worse = [], [], []
    for _ in range(300):
        found = with_best(rng.normal(size=(4, 9)) + means + 3 * rng.normal(size=(4, 1)))
        rejected = np.array(found.p) <= 0.05
        wrong.append(rejected[:tied].any())
        worse.append(rejected[tied:].mean() if tied < 9 else 1.0)
        held.append(np.all((np.array(found.low) <= truth + 1e-9) & (truth - 1e-9 <= np.array(found.high))))
    assert np.mean(wrong) <= 0.06 and np.mean(held) >= 0.93 and np.mean(worse) > 0.6


def test_the_best_among_arms_of_unequal_spread() -> None:
    rng = np.random.default_rng(6)
    found = [compare_with_best(study(rng, 9, 5, 4.0)) for _ in range(200)]
    assert np.mean([any(p.better for p in c.pairs) for c in found]) <= 0.08
    assert np.mean([c.unequal for c in found]) > 0.8


def test_the_best_of_equal_and_of_identical_arms() -> None:
    same = {f"a{i}": {s: float(s) for s in range(3)} for i in range(9)}
    assert all(p.equal and p.p == 1 for p in compare_with_best(same).pairs)
    shifted = same | {"b": {s: s + 0.5 for s in range(3)}}
    pair = next(p for p in compare_with_best(shifted).pairs if p.a == "b")
    assert math.isnan(pair.p) and pair.difference.mean == pytest.approx(0.5)
    assert compare_with_best({f"a{i}": {1: float(i)} for i in range(9)}).pairs == ()
