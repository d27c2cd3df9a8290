"""Boundaries of sequential paired t-tests: they keep their level with few pairs, and agree with known special cases."""

import math

import numpy as np
import pytest
from scipy import special, stats

from ablatio.sweep.group_sequential import (
    LEVELS,
    Boundaries,
    chance_to_be_equal,
    chance_to_resolve,
    look_sizes,
    repeated_interval,
    spent,
)
from ablatio.sweep.stopping_rule import (
    EQUAL,
    HOPELESS,
    NAMES,
    OPEN,
    RESOLVED,
    UNTESTED,
    StoppingRule,
    moments,
    t_test_p,
)

STUDIES = 40_000
SCHEDULES = [(3, 5, 8), (2, 4), (3, 4, 6, 10)]


def t_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(-1), x.std(-1, ddof=1)


@pytest.fixture(scope="module", params=SCHEDULES, ids=str)
def boundaries(request: pytest.FixtureRequest) -> Boundaries:
    return Boundaries.of(request.param)


@pytest.mark.parametrize("level", [0.05, 0.05 / 4])
def test_looks_keep_their_level_and_spend_it_as_planned(boundaries: Boundaries, level: float) -> None:
    """Independent normal differences with an unknown spread; every interim rejection counts."""
    x = np.random.default_rng(1).normal(0, 3.0, size=(STUDIES, boundaries.sizes[-1]))
    rejected = np.zeros(STUDIES, dtype=bool)
    for look, n in enumerate(boundaries.sizes):
        p = stats.ttest_1samp(x[:, :n], 0, axis=1).pvalue
        rejected |= p <= boundaries.p_at(look, level)
        planned = spent(level, n / boundaries.sizes[-1])
        assert rejected.mean() == pytest.approx(planned, abs=4 * math.sqrt(planned / STUDIES) + 0.02 * planned)


def test_boundaries_are_nested_and_one_look_is_the_plain_t_test(boundaries: Boundaries) -> None:
    table = np.array(boundaries.nominal)
    assert (np.diff(table, axis=0) >= 0).all() and (table <= np.array(LEVELS)[:, None] * (1 + 1e-6)).all()
    single = Boundaries.of([6])
    for level in (0.001, 0.05, 0.3):
        assert single.p_at(0, level) == pytest.approx(level, rel=1e-4)
        assert single.level_of(0, level) == pytest.approx(level, rel=1e-4)


def test_sequential_p_inverts_the_boundary(boundaries: Boundaries) -> None:
    for look in range(len(boundaries.sizes)):
        for level in (1e-4, 0.01, 0.05, 0.4):
            assert boundaries.level_of(look, boundaries.p_at(look, level)) == pytest.approx(level, rel=1e-6)
        assert boundaries.level_of(look, 1.0) == 1.0 and math.isnan(boundaries.level_of(look, math.nan))
        assert boundaries.level_of(look, 0.0) == pytest.approx(LEVELS[0])
    assert Boundaries.read(boundaries.as_dict()) == boundaries


def test_repeated_intervals_of_all_looks_cover_together(boundaries: Boundaries) -> None:
    truth, x = 0.4, np.random.default_rng(2).normal(0.4, 1.0, size=(4000, boundaries.sizes[-1]))
    inside = np.ones(len(x), dtype=bool)
    for look, n in enumerate(boundaries.sizes):
        mean, sd = t_of(x[:, :n])
        nominal = boundaries.p_at(look, 0.05)
        inside &= np.abs(mean - truth) <= special.stdtrit(n - 1, 1 - nominal / 2) * sd / math.sqrt(n)
    assert inside.mean() == pytest.approx(0.95, abs=0.012)
    low, high = repeated_interval(1.0, 2.0, 9, 0.05)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 8, 1.0, 2.0 / 3))


def test_predictive_probabilities_equal_simulated_futures() -> None:
    rng = np.random.default_rng(3)
    n, most, mean, sd, nominal = 6, 15, 0.3, 1.0, 0.03
    wide = mean + rng.standard_t(n - 1, size=200_000) * sd * math.sqrt(1 / n + 1 / (most - n))
    final = (n * mean + (most - n) * wide) / most
    reach = stats.t.isf(nominal / 2, most - 1) * sd / math.sqrt(most)
    assert chance_to_resolve(mean, sd, n, most, nominal) == pytest.approx((np.abs(final) > reach).mean(), abs=0.005)
    expected = (np.abs(final) + reach < 0.9).mean()
    assert chance_to_be_equal(mean, sd, n, most, nominal, 0.9) == pytest.approx(expected, abs=0.005)


def test_look_sizes_start_and_end_as_asked() -> None:
    assert look_sizes(3, 8) == (3, 4, 5, 6, 7, 8) and look_sizes(5, 5) == (5,)
    for first, most in ((2, 40), (3, 200), (10, 11)):
        sizes = look_sizes(first, most)
        steps = np.diff(sizes)
        assert sizes[0] == first and sizes[-1] == most and (steps > 0).all() and (np.diff(steps) >= -1).all()
        assert steps[-1] >= steps[-2:][0]  # the last look is no afterthought: it would be left little to spend
    for bad in ((1, 5), (5, 4)):
        with pytest.raises(ValueError, match="looks from"):
            look_sizes(*bad)


@pytest.mark.parametrize("arms", [2, 4])
def test_studies_without_effects_claim_nothing_in_95_of_100(arms: int) -> None:
    """Whole studies through the stopping rule: arms share the baseline, Holm over arms, futility, equality."""
    rule = StoppingRule(Boundaries.of((3, 4, 6, 9)), arms - 1, margin=1.5)
    rng = np.random.default_rng(arms)
    x = rng.normal(size=(20_000, arms, 9))
    for true, wrong in ((0.0, RESOLVED), (1.5, EQUAL)):
        d = x[:, 1:] - x[:, :1] + true
        p, states = np.ones(d.shape[:2]), np.zeros(d.shape[:2], dtype=int)
        for look, n in enumerate(rule.sizes):
            p, states = rule.decide(look, *t_of(d[..., :n]), n, p, states)
        assert (states == wrong).any(1).mean() <= 0.05 + 3 * math.sqrt(0.05 / len(x))


def test_rule_decides_each_kind_of_comparison() -> None:
    rule = StoppingRule(Boundaries.of((3, 6, 12)), 6, margin=0.5)
    mean, sd = [5.0, 0.0, 0.6, 0.0, 0.7, 9.0], [0.05, 0.05, 0.9, 0.0, 3.0, 1.0]
    states = np.array([OPEN, OPEN, OPEN, OPEN, OPEN, UNTESTED])
    p, found = rule.decide(1, mean, sd, 6, np.ones(6), states)
    assert [NAMES[s] for s in found] == ["resolved", "equal", "open", "equal", "hopeless", "untested"]
    assert p[0] < 0.001 and p[5] == 1.0
    again, kept = rule.decide(2, np.zeros(6), np.ones(6), 12, p, found)
    assert (again[[0, 1, 3, 4, 5]] == p[[0, 1, 3, 4, 5]]).all()
    assert [NAMES[s] for s in kept][:2] == ["resolved", "equal"]
    assert HOPELESS not in rule.decide(2, [0.01] * 6, [9.0] * 6, 12, np.ones(6), np.zeros(6, dtype=int))[1]


def test_moments_see_rounding_as_no_spread() -> None:
    a = np.array([3.0, 2.5, 2.75])
    assert moments(a, a + 1e-15) == (0.0, 0.0, 3) and moments(a + 0.1, a)[1] == 0.0
    assert moments([2.0], [1.0])[0] == 1.0 and math.isnan(moments([2.0], [1.0])[1]) and moments([], [])[2] == 0
    mean, sd, n = moments(a, a[::-1])
    assert t_test_p(mean + 0.2, sd, n) == pytest.approx(stats.ttest_1samp(a - a[::-1] + 0.2, 0).pvalue)
