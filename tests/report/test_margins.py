"""Tests against a margin, against a target, moderated t and shrunk means, each against an independent oracle."""

import math

import numpy as np
import pytest
from helpers.closed_tests import closed_tests
from scipy import integrate, stats

from ablatio.report.statistics import (
    Difference,
    against_margin,
    against_target,
    compare,
    holm,
    moderate,
    paired,
    shrink,
    stopping_step,
)
from ablatio.report.statistics.paired_tests import t_test

RNG = np.random.default_rng(7)


def _pairs(count: int, n: int, shift: float = 0.0) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(RNG.normal(size=n) + shift * i, RNG.normal(size=n)) for i in range(count)]


@pytest.mark.parametrize("better", ["low", "high"])
def test_margin_tests_equal_scipys_and_holms_closed_tests(better: str) -> None:
    arms, margin = _pairs(4, 6, 0.4), 0.7
    found = against_margin([paired(a, b) for a, b in arms], margin, better=better)
    sign = -1 if better == "low" else 1
    gains = [sign * (a - b) for a, b in arms]  # above 0: a is better
    expected = {
        "superior": [stats.ttest_1samp(g, margin, alternative="greater").pvalue for g in gains],
        "inferior": [stats.ttest_1samp(g, -margin, alternative="less").pvalue for g in gains],
        "not inferior": [stats.ttest_1samp(g, -margin, alternative="greater").pvalue for g in gains],
        "equivalent": [
            max(
                stats.ttest_1samp(g, side * margin, alternative=way).pvalue
                for side, way in ((-1, "greater"), (1, "less"))
            )
            for g in gains
        ],
    }
    for kind, raw in expected.items():
        assert [t.p[kind] for t in found] == pytest.approx(closed_tests(raw), abs=1e-12), kind
    assert [t.advantage for t in found] == pytest.approx([g.mean() for g in gains])
    assert [t.n for t in found] == [6] * 4


def test_margin_answers_and_their_order() -> None:
    noise = np.array([-0.01, 0.0, 0.01, 0.02, -0.02])
    base = np.full(5, 3.0)
    lower = [base - gain + noise for gain in (0.2, -0.2, 0.0, 0.1, 0.1)]
    spread = [1, 1, 1, 1, 20]
    found = against_margin(
        [paired(base + (x - base - noise) + noise * s, base) for x, s in zip(lower, spread, strict=True)], 0.1
    )
    assert [t.outcome for t in found] == ["superior", "inferior", "equivalent", "not inferior", "open"]
    both = against_margin([paired(lower[0], base)], 0.1, directed=False)[0]
    one = against_margin([paired(lower[0], base)], 0.1)[0]
    assert both.p["superior"] == pytest.approx(2 * one.p["superior"])  # either arm might have won


def test_margin_of_pairs_that_cannot_be_tested() -> None:
    same = paired([3.0, 3.1, 3.2], [3.0, 3.1, 3.2])
    shifted = paired([3.5, 3.6, 3.7], [3.0, 3.1, 3.2])
    single = paired([3.0], [3.1])
    outcomes = [t.outcome for t in against_margin([same, shifted, single], 0.01)]
    assert outcomes == ["equivalent", "no test", "no test"]
    with pytest.raises(ValueError, match="above 0"):
        against_margin([same], 0.0)


@pytest.mark.parametrize(("better", "side"), [("low", "less"), ("high", "greater")])
def test_target_equals_a_one_sample_t_test(better: str, side: str) -> None:
    values = {"a": RNG.normal(3.0, 0.1, 5), "b": RNG.normal(3.3, 0.1, 7)}
    found = against_target(values, 3.2, better=better, alpha=0.02)
    for name, x in values.items():
        test = stats.ttest_1samp(x, 3.2, alternative=side)
        assert found[name].p == pytest.approx(min(1.0, 2 * test.pvalue))
        limits = test.confidence_interval(0.98)
        assert found[name].bound == pytest.approx(limits.high if side == "less" else limits.low)
        assert found[name].reached == (2 * test.pvalue <= 0.02) and found[name].n == len(x)


def test_a_diverged_seed_has_not_reached_the_target() -> None:
    found = against_target({"a": [1.0, 1.1, 1.05, math.nan], "b": [1.0, 1.1, 1.05, 1.0], "c": [1.0]}, 3.0)
    assert [found[k].reached for k in "abc"] == [False, True, False]
    assert (found["a"].diverged, found["a"].n) == (1, 3) and math.isnan(found["a"].p)


def test_stopping_step_is_the_earliest_of_an_unbroken_run_to_the_end() -> None:
    noise = np.array([[-0.01], [0.0], [0.01], [0.02], [-0.02]])
    steps = [100, 200, 300, 400, 500]
    assert stopping_step(steps, np.array([4, 2, 2, 2, 2]) + noise, 3.0) == 200
    assert stopping_step(steps, np.array([2, 4, 4, 2, 2]) + noise, 3.0) == 400  # an early dip counts for nothing
    assert stopping_step(steps, np.array([2, 2, 2, 2, 4]) + noise, 3.0) is None
    one_late = np.array([4, 2, 2, 2, 2]) + noise
    one_late[0, 1] = 6.0  # all seeds are judged at one step
    assert stopping_step(steps, one_late, 3.0) == 300
    assert stopping_step(steps, np.array([-4, -4, -2, -2, -2]) + noise, -3.0, better="high") == 300


def test_stopping_step_keeps_alpha_over_all_steps() -> None:
    """The curve is flat at the target: any stopping step is false, and so is the earliest p <= 0.05, far more often."""
    rng = np.random.default_rng(1)
    curves = 0.5 * rng.normal(size=(1500, 5, 1)) + rng.normal(size=(1500, 5, 8))
    false = [stopping_step(range(1, 9), study, 0.0) is not None for study in curves]
    naive = (stats.ttest_1samp(curves, 0.0, axis=1, alternative="less").pvalue <= 0.05).any(1)
    assert np.mean(false) == pytest.approx(0.05, abs=0.02)
    assert naive.mean() > 0.12


def test_moderated_t_by_its_formula_and_its_limits() -> None:
    values = RNG.normal(size=(4, 6, 1)) * np.array([1.0, 1, 1, 3, 1, 1])[None, :, None]
    x = values[:, :, 0]  # (seeds, arms)
    d = [paired(x[:, i], x[:, 0]) for i in range(1, 6)]
    pooled = np.mean([np.var(x[:, i] - x[:, 0], ddof=1) for i in range(1, 6)])
    for before, after in zip(d, moderate(d), strict=True):
        variance = (before.sd**2 + pooled) / 2  # five pairs: equal weight
        expected = 2 * stats.t.sf(abs(before.mean) / math.sqrt(variance / 4), 6)
        assert after.p == pytest.approx(expected)
        assert (after.low, after.high, after.mean, after.sd) == (before.low, before.high, before.mean, before.sd)
    assert moderate(d[:1]) == d[:1]  # one pair: the paired t-test
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert moderate([same, *d])[0] == same and moderate([same, *d])[1:] == moderate(d)


def _p_values(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Holm's p of the paired and of the moderated t-test: differences (studies, pairs, seeds)."""
    mean, sd, low, high, p = t_test(differences)
    n, steady = differences.shape[-1], []
    for row in zip(mean, low, high, p, sd, strict=True):
        pairs = [Difference(m, lo, hi, q, n, s, "paired t") for m, lo, hi, q, s in zip(*row, strict=True)]
        steady.append([d.p for d in moderate(pairs)])
    return holm(p), holm(np.array(steady))


def test_moderation_adds_power_and_keeps_the_null_where_pooling_does_not() -> None:
    """Eight arms, three seeds, equal but for one arm of three times the spread; then one arm 2.5 sd better."""
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(3000, 8, 3))
    uneven = noise * np.array([1, 1, 3, 1, 1, 1, 1, 1])[:, None]
    d = uneven[:, 1:] - uneven[:, :1]
    left = uneven - uneven.mean(1, keepdims=True) - uneven.mean(2, keepdims=True) + uneven.mean((1, 2), keepdims=True)
    pooled = 2 * (left**2).sum((1, 2)) / 14
    naive = holm(2 * stats.t.sf(np.abs(d.mean(-1)) / np.sqrt(pooled / 3)[:, None], 14))
    assert (_p_values(d)[1] <= 0.05).any(1).mean() <= 0.06 < 0.07 < (naive <= 0.05).any(1).mean()
    shifted = noise[:, 1:] - noise[:, :1] - 2.5 * (np.arange(7) == 0)[:, None]
    paired_p, moderated_p = _p_values(shifted)
    assert (moderated_p[:, 0] <= 0.05).mean() > 1.8 * (paired_p[:, 0] <= 0.05).mean()
    assert (moderated_p[:, 1:] <= 0.05).any(1).mean() <= 0.06


def test_compare_offers_the_moderated_test() -> None:
    values = {f"arm{i}": dict(enumerate(RNG.normal(size=4))) for i in range(5)}
    t, steady = (compare(values, "arm0", method=m) for m in ("t", "moderated"))
    expected = holm([d.p for d in moderate([p.difference for p in t.pairs])])
    assert [p.p for p in steady.pairs] == pytest.approx(expected.tolist())
    assert [p.difference.low for p in steady.pairs] == [p.difference.low for p in t.pairs]


def test_probability_to_be_best_and_shrinkage() -> None:
    rng = np.random.default_rng(3)
    x = 3 + 0.02 * rng.normal(size=(6, 5)) + np.array([0, 0.01, 0.02, 0.03, 0.05, 0.05])[:, None]
    study = {f"arm{i}": dict(enumerate(row)) for i, row in enumerate(x)}
    found = shrink(study)
    means = np.array([s.mean for s in found.values()])
    assert sum(s.best for s in found.values()) == pytest.approx(1)
    assert np.abs(means - x.mean()).max() < np.abs(x.mean(1) - x.mean()).max()  # towards the grand mean
    assert np.argsort(means).tolist() == np.argsort(x.mean(1)).tolist()
    sd = next(iter(found.values())).sd

    def arm0_is_lowest(v: float) -> float:
        return stats.norm.pdf(v, means[0], sd) * np.prod(stats.norm.sf(v, means[1:], sd))

    exact = integrate.quad(arm0_is_lowest, means[0] - 9 * sd, means[0] + 9 * sd)[0]
    assert found["arm0"].best == pytest.approx(exact, abs=1e-6)
    assert shrink({k: study[k] for k in ("arm0", "arm1")}) == {}


def test_equal_arms_share_the_probability_to_be_best() -> None:
    rng = np.random.default_rng(11)
    best = [max(s.best for s in shrink(_null(rng)).values()) for _ in range(200)]
    assert np.mean(best) < 0.6  # the naive winner of five equal arms would be certain


def _null(rng: np.random.Generator) -> dict[str, dict[int, float]]:
    return {f"arm{i}": dict(enumerate(rng.normal(size=4))) for i in range(5)}
