"""Statistics: equal to scipy, scikit-posthocs and definitions; behavior for few, equal or diverged runs."""

import math

import numpy as np
import pytest
from helpers.closed_tests import closed_tests
from scipy import stats

from ablatio.report import statistics
from ablatio.report.statistics import (
    benjamini_hochberg,
    compare,
    dunnett,
    holm,
    noise,
    paired,
    ranks,
    rate_sensitivity,
)
from ablatio.report.statistics.multiple_testing import _beyond


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_paired_t_matches_scipy(n: int) -> None:
    a, b = numbers(n), numbers(n, seed=1) + 0.4
    theirs = stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    ours = paired(a, b)
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, low, high), rel=1e-10)
    assert (ours.n, ours.mean, ours.sd) == pytest.approx((n, np.mean(a - b), np.std(a - b, ddof=1)))


def test_bootstrap_is_deterministic_and_matches_scipy() -> None:
    a, b = numbers(25), numbers(25, seed=1) + 0.4
    ours = paired(a, b, method="bootstrap")
    assert ours == paired(a, b, method="bootstrap")  # deterministic
    theirs = stats.bootstrap((a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, rng=7, vectorized=True)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
    assert ours.p == pytest.approx(paired(a, b).p, rel=0.5)


def test_permutation_test_enumerates_all_sign_flips() -> None:
    """Oracle: explicit enumeration of the 2^n sign vectors."""
    d = numbers(6) + 0.8
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    expected = np.mean(np.abs((signs * d).mean(1)) >= abs(d.mean()) - 1e-12)
    assert paired(d, np.zeros(6), method="permutation").p == pytest.approx(expected)
    assert paired([1.0, 1.1, 1.2], [0.0, 0.0, 0.0], method="permutation").p == 2 ** (1 - 3)


def test_corrections_match_closed_tests_and_scipy() -> None:
    for p in (np.random.default_rng(0).random(12) ** 3, np.array([0.01, 0.01, 0.5, 0.02]), np.array([0.03])):
        assert holm(p) == pytest.approx(closed_tests(p), rel=1e-12)
        assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p, method="bh"), rel=1e-12)


def test_corrections_count_comparisons_without_p_value() -> None:
    assert holm([0.01, math.nan, 0.04]).tolist() == pytest.approx([0.03, math.nan, 0.08], nan_ok=True)
    assert benjamini_hochberg([0.01, math.nan]).tolist() == pytest.approx([0.02, math.nan], nan_ok=True)


@pytest.mark.parametrize(("arms", "per_arm"), [(3, 4), (6, 8)])
def test_dunnett_integral_matches_scipy(arms: int, per_arm: int) -> None:
    """scipy compares independent groups: the same integral with another number of degrees of freedom."""
    groups = [numbers(per_arm, seed=i) + 0.5 * i for i in range(arms)]
    theirs = stats.dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(0))
    ours = [_beyond(abs(t), arms - 1, arms * (per_arm - 1)) for t in theirs.statistic]
    assert ours == pytest.approx(theirs.pvalue.tolist(), abs=2e-3)


def test_dunnett_of_two_arms_equals_paired_t() -> None:
    x = numbers(6, 2)
    assert dunnett(x)[0] == pytest.approx(stats.ttest_rel(x[:, 0], x[:, 1]).pvalue, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ranks_match_scipy_and_scikit_posthocs() -> None:
    import scikit_posthocs as posthocs

    scores = np.round(numbers(9, 5) + np.arange(5) * 0.6, 1)
    scores[3, 1] = scores[3, 2]  # ties
    ours = ranks(scores)
    assert ours.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue, rel=1e-10)
    assert ours.mean == pytest.approx(stats.rankdata(scores, axis=1).mean(0))
    assert ours.pairs == pytest.approx(np.asarray(posthocs.posthoc_nemenyi_friedman(scores)), abs=1e-6)
    assert ranks(-scores, better="high").mean == ours.mean
    assert ours.critical == pytest.approx(2.728 * math.sqrt(5 * 6 / (6 * 9)), abs=2e-3)  # Demsar 2006, table 5


def test_ranks_of_equal_arms() -> None:
    found = ranks(np.ones((4, 3)))
    assert found.p == 1 and found.mean == (2, 2, 2) and found.pairs == pytest.approx(np.ones((3, 3)))


def test_noise_interval_covers_95_percent() -> None:
    found = [noise(x) for x in numbers(4000, 4)]
    assert np.mean([f.low <= 1 <= f.high for f in found]) == pytest.approx(0.95, abs=0.01)
    one = noise([1.0, 1.2, 1.1, 1.3])
    assert one.smallest == statistics.smallest_difference(4, one.sd * math.sqrt(2), df=3)
    assert noise([1.0, 1.2, 1.1, 1.3], correlation=0.83).smallest == pytest.approx(one.smallest * math.sqrt(0.17))
    assert math.isnan(noise([1.0, math.nan]).sd) and noise([1.0, math.nan]).n == 1


def test_rate_sensitivity_by_hand() -> None:
    losses = {1e-3: 2.0, 1e-2: 1.5, 1e-1: math.nan, 1.0: 9.0}
    assert rate_sensitivity(losses, 4.0) == pytest.approx((0.5 + 0 + 2.5 + 2.5) / 4)
    # An additional learning rate in between must not change the weight of its interval.
    dense = {1e-3: 2.0, 1e-2: 1.5, 10**-1.5: 4.0, 1e-1: math.nan, 1.0: 9.0}
    assert rate_sensitivity(dense, 4.0) == pytest.approx((0.5 * 1 + 0 + 2.5 * 0.5 + 2.5 * 0.75 + 2.5) / 4.0)


def test_few_runs_give_no_test() -> None:
    assert math.isnan(paired([], []).mean)
    one = paired([1.0], [1.5])
    assert (one.mean, one.n, one.method) == (-0.5, 1, "one seed: no test")
    assert math.isnan(one.p) and math.isnan(one.low)
    pair = compare({"a": {1: 1.0}, "b": {1: 1.5}}).pairs[0]
    assert pair.better is None and pair.planned_seeds is None and math.isnan(pair.p) and math.isnan(pair.detectable)
    two = paired([1.0, 1.1], [1.5, 1.7])
    assert two.high - two.low > 1  # 12.7 standard errors each way


def test_constant_differences_give_no_t_test() -> None:
    same = paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.p, same.low, same.high, same.method) == (1.0, 0.0, 0.0, "equal in every seed")
    shifted = paired([0.1 + 0.2, 2.3, 3.3], [0.0, 2.0, 3.0])  # 0.3 each, up to rounding
    assert shifted.mean == pytest.approx(0.3) and math.isnan(shifted.p) and "no test" in shifted.method


def test_diverged_and_missing_runs_are_left_out_and_counted() -> None:
    found = compare(
        {
            "base": {1: 3.0, 2: 3.1, 3: 3.2, 4: 3.15},
            "late": {1: 2.9, 2: 3.0, 3: 3.12},
            "wild": {1: 2.5, 2: math.nan, 3: math.inf, 4: 2.7},
            "gone": {1: math.nan, 2: math.nan},
            "none": {},
        },
        "base",
    )
    pairs = {p.a: p for p in found.pairs}
    assert (pairs["late"].difference.n, pairs["late"].left_out) == (3, 1)
    assert pairs["wild"].ranked and (pairs["wild"].difference.n, pairs["wild"].left_out) == (4, 0)
    assert pairs["wild"].difference.mean == pytest.approx(-0.475) and math.isnan(pairs["wild"].difference.low)
    assert found.arm("wild").diverged == (2, 3) and found.arm("wild").n == 2
    assert found.arm("gone").n == 0 and math.isnan(found.arm("gone").mean) and math.isnan(pairs["gone"].p)
    assert [a.label for a in found.ordered][:3] == ["wild", "late", "base"]
    assert found.arm("wild").rank == 1 and math.isnan(found.arm("none").rank)
    # Holm's correction counts all four comparisons, also those without a p-value.
    assert pairs["late"].p == pytest.approx(4 * pairs["late"].difference.p)


def test_better_decides_whether_low_or_high_wins() -> None:
    values = {"a": {1: 1.0, 2: 1.1, 3: 1.05, 4: 1.02}, "b": {1: 2.0, 2: 2.12, 3: 2.05, 4: 2.01}}
    assert compare(values).pairs[0].better == "a" == compare(values, "b").pairs[0].better
    assert compare(values, better="high").pairs[0].better == "b"
    assert compare(values, better="high").ordered[0].label == "b" and compare(values, better="high").arm("b").rank == 1


def test_compare_applies_each_correction() -> None:
    rng = np.random.default_rng(3)
    values = {f"a{i}": dict(enumerate(rng.normal(0.4 * i, 1, 8))) for i in range(4)}
    raw = [p.difference.p for p in compare(values, "a0").pairs]
    assert raw == pytest.approx(
        [paired(list(values[f"a{i}"].values()), list(values["a0"].values())).p for i in (1, 2, 3)]
    )
    for correction, expected in (("holm", holm(raw)), ("bh", benjamini_hochberg(raw)), ("none", raw)):
        found = [p.p for p in compare(values, "a0", correction=correction).pairs]  # type: ignore[arg-type]
        assert found == pytest.approx(list(expected))
    table = np.array([[values[a][s] for a in values] for s in range(8)])
    guarded = np.maximum(dunnett(table), np.minimum(1, 2 * np.array(raw)))
    assert [p.p for p in compare(values, "a0", correction="dunnett").pairs] == pytest.approx(guarded.tolist())
    lost = compare(values | {"gone": {}}, "a0", correction="dunnett").pairs
    assert math.isnan(lost[-1].p) and all(a.p >= b - 1e-12 for a, b in zip(lost, guarded, strict=False))
    with pytest.raises(ValueError, match="baseline"):
        compare(values, correction="dunnett")
    with pytest.raises(ValueError, match="none of the arms"):
        compare(values, "a9")
