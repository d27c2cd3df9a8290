"""The interval of a difference that is named because it is resolved, against simulation and brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablatio.report.analysis.verdict import verdict
from ablatio.report.statistics import benjamini_hochberg, compare, holm
from ablatio.report.statistics.selected import (
    interval_of_picked,
    largest_p_of_benjamini_hochberg,
    largest_p_of_holm,
    rivals,
    selected_interval,
)


# (1.4, 3, 0.002): three seeds and 28 comparisons, where most that is shown is shown for its small spread.
@pytest.mark.parametrize(
    ("truth", "n", "limit"), [(1.0, 5, 0.02), (0.5, 3, 0.02), (0.8, 8, 0.02), (1.4, 3, 0.002), (1.4, 2, 0.01)]
)
def test_shown_intervals_cover_and_usual_ones_do_not(truth: float, n: int, limit: float) -> None:
    rng = np.random.default_rng(n)
    shown = covered = usual = 0
    while shown < 600:
        x = rng.normal(truth, 1, (4000, n))
        p = stats.ttest_1samp(x, 0, axis=1).pvalue
        for row in x[(p < limit) & (x.mean(1) > 0)][: 600 - shown]:
            low, high = selected_interval(row.mean(), row.std(ddof=1), n, limit)
            ends = stats.ttest_1samp(row, 0).confidence_interval()
            shown, covered, usual = shown + 1, covered + (low <= truth <= high), usual + (ends[0] <= truth <= ends[1])
    assert covered / shown == pytest.approx(0.95, abs=0.025)
    assert usual < covered


@pytest.mark.parametrize(
    ("sample", "limit"), [([0.9, 1.4, 0.6, 1.2, 1.9], 0.03), ([1.0, 1.1, 1.15], 0.005), ([1.0, 1.02], 0.02)]
)
def test_ends_are_those_of_the_conditional_distribution(sample: list[float], limit: float) -> None:
    """Samples with the observed sum of squares about mu: directions on a sphere, kept where the t-test resolves."""
    x, rng = np.array(sample), np.random.default_rng(0)
    n = len(x)
    ends = selected_interval(x.mean(), x.std(ddof=1), n, limit)
    wide = selected_interval(x.mean(), x.std(ddof=1), n, limit, 0.01, 0.1)
    for end, share in zip((*ends, *wide), (0.025, 0.975, 0.01, 0.9), strict=True):
        directions = rng.normal(size=(1_000_000, n))
        directions *= np.linalg.norm(x - end) / np.linalg.norm(directions, axis=1, keepdims=True)
        kept = directions[stats.ttest_1samp(end + directions, 0, axis=1).pvalue <= limit]
        assert (kept.mean(1) >= x.mean() - end).mean() == pytest.approx(share, abs=0.004)


def _acceptable(t: float, n: int, limit: float, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Means below t, in standard errors and downwards, and P(t or more | resolved, sum of squares about the mean).

    From Student's t alone: about a mean mu, u / sqrt(1 - u^2) sqrt(n - 1) is a t of n - 1 degrees of freedom.
    """
    critical, free = stats.t.isf(limit / 2, n - 1), n - 1
    means = t - np.geomspace(1e-3, 40 * t, 1000)
    u = np.linspace(-1, 1, 40_003)[1:-1]
    cumulative = stats.t(free).cdf(u / np.sqrt(1 - u**2) * math.sqrt(free))
    mass = np.diff(cumulative, prepend=0.0)
    shares = []
    for mean in means:
        r = math.sqrt(free + (t - mean) ** 2)
        resolved = free * (mean / r + u) ** 2 > critical**2 * (1 - u**2)
        shares.append(mass[resolved & (u >= (t - mean) / r)].sum() / mass[resolved].sum())
    return means, np.array(shares)


@pytest.mark.parametrize(
    ("t", "n", "limit", "bridged"),
    [(15.5, 4, 0.025, False), (14.5, 4, 0.025, True), (40.0, 3, 0.025, False), (28.0, 3, 0.025, True)],
)
def test_a_shallow_gap_is_bridged_and_a_deep_one_ends_the_interval(
    t: float, n: int, limit: float, bridged: bool
) -> None:
    """The end towards 0 is the outermost mean before the share falls below 0.6 of its tail, found by a scan."""
    means, shares = _acceptable(t, n, limit, 0.025)
    fits = np.flatnonzero(shares >= 0.025)
    deep = np.flatnonzero(shares < 0.6 * 0.025)
    assert np.diff(fits).max() > 5  # a gap, and no rounding
    end = means[fits[fits < deep[0]][-1]] if len(deep) else means[fits[-1]]
    low, _ = selected_interval(t / math.sqrt(n), 1.0, n, limit)
    assert low * math.sqrt(n) == pytest.approx(end, abs=0.01 * t)
    usual = t - stats.t.isf(0.025, n - 1)
    assert (low * math.sqrt(n) == pytest.approx(usual, rel=1e-6)) != bridged


def test_far_beyond_the_selection_it_is_the_usual_interval() -> None:
    x = np.array([10.1, 9.9, 10.3, 9.8, 10.0])
    usual = stats.ttest_1samp(x, 0).confidence_interval()
    assert selected_interval(x.mean(), x.std(ddof=1), 5, 0.05) == pytest.approx(tuple(usual), abs=1e-4)
    low, high = selected_interval(-x.mean(), x.std(ddof=1), 5, 0.05)
    assert (-high, -low) == pytest.approx(tuple(usual), abs=1e-4)


def test_interval_of_two_seeds_and_of_a_bare_selection_is_finite() -> None:
    for n in (2, 3, 50):
        t = -stats.t.ppf(0.025, n - 1)
        low, high = selected_interval(t / math.sqrt(n), 1.0, n, 0.05, 0.005, 0.005)
        assert math.isfinite(low) and math.isfinite(high) and low < 0 < t / math.sqrt(n)


@pytest.mark.parametrize("effects", [[-4.0] * 7, [-1.0, -2.0, -3.0, -4.0], [-3.0, 0.0, 0.0]])
def test_interval_of_the_largest_covers_and_lies_in_that_of_bonferroni(effects: list[float]) -> None:
    """Equal winners, of which the largest estimate is picked; winners that differ; one winner alone."""
    rng = np.random.default_rng(len(effects))
    covered, lengths, trials = 0, [], 0
    while trials < 400:
        scores = np.array([0.0, *effects]) + rng.normal(size=(10, len(effects) + 1))
        values = {str(arm): dict(enumerate(column)) for arm, column in enumerate(scores.T)}
        comparison = compare(values, "0")
        won = [pair for pair in comparison.pairs if pair.better not in (None, "0")]
        pair = min(won, key=lambda pair: pair.difference.mean, default=None)
        found = interval_of_picked(comparison, pair, won) if pair is not None else None
        if pair is None or found is None:  # nothing is resolved, or another test
            continue
        d, k = pair.difference, len(won)
        limit = largest_p_of_holm([x.difference.p for x in comparison.pairs], comparison.pairs.index(pair), 0.05)
        low, high = selected_interval(d.mean, d.sd, d.n, limit, 0.025 / k, 0.025 / k)
        assert low <= found[0] + 1e-9 and found[1] <= high + 1e-9
        trials, covered = trials + 1, covered + (found[0] <= effects[int(pair.a) - 1] <= found[1])
        lengths.append((found[1] - found[0]) / (high - low))
    assert covered / trials == pytest.approx(0.95, abs=0.033)  # three standard errors
    assert np.mean(lengths) < (0.85 if len(won) > 2 else 1.001)


def test_rivals_are_the_differences_that_could_have_been_the_largest() -> None:
    """Their intervals overlap in size, whatever their signs are; a sure difference far below is none."""
    noise = np.random.default_rng(0).normal(0, 0.1, (5, 5))
    means = {"base": 0.0, "a": -5.0, "b": -4.9, "c": 5.05, "d": -1.0}
    values = {arm: dict(enumerate(mean + of)) for (arm, mean), of in zip(means.items(), noise, strict=True)}
    comparison = compare(values, "base")
    largest = max(comparison.pairs, key=lambda pair: abs(pair.difference.mean))
    assert all(pair.better for pair in comparison.pairs)
    assert rivals(largest.difference, comparison.pairs) == 3
    alone = interval_of_picked(comparison, largest, [largest])
    among = interval_of_picked(comparison, largest, comparison.pairs)
    far = interval_of_picked(comparison, largest, [largest, comparison.pairs[3]])
    assert alone is not None and among is not None and alone == far
    assert alone[0] > among[0] and alone[1] == among[1]  # the end towards 0 allows for the pick
    pairs = interval_of_picked(replace(comparison, baseline=None), largest, comparison.pairs)
    assert pairs is not None and pairs[0] == among[0] and pairs[1] > among[1]


@pytest.mark.parametrize(
    ("largest", "corrected"), [(largest_p_of_holm, holm), (largest_p_of_benjamini_hochberg, benjamini_hochberg)]
)
def test_largest_p_is_where_the_correction_stops_resolving(largest: object, corrected: object) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        p = list(rng.uniform(0, 1, int(rng.integers(1, 7))) ** 4)
        limit = largest(p, 0, 0.05)
        for factor, resolved in ((0.999, True), (1.001, False)):
            assert (corrected([limit * factor, *p[1:]])[0] <= 0.05) == resolved


def arms(**means: float) -> dict[str, dict[int, float]]:
    wobble = {"base": (0, 1, -1, 2, 0), "a": (1, 0, -2, 1, 1), "b": (0, -1, 1, 0, 2), "c": (2, 1, 0, -1, 0)}
    return {arm: {s: mean + 0.01 * wobble[arm][s] for s in range(5)} for arm, mean in means.items()}


def test_headline_of_one_comparison_is_its_sentence() -> None:
    """Nothing was chosen: the usual interval stands there, resolved or not."""
    for mean in (0.9, 0.995):
        found = verdict(compare(arms(base=1.0, a=mean), "base"))
        assert found.headline == found.sentences[0].text and "picked" not in found.headline


def test_headline_whose_interval_reaches_zero_says_that_the_size_is_open() -> None:
    found = verdict(compare(arms(base=1.0, a=0.98, b=1.0, c=1.0), "base"))
    low, high = (float(x) for x in found.headline.split("[")[1].split("]")[0].split(","))
    assert low < 0 < high and "allows for that: its size is open)" in found.headline


def test_headline_says_that_a_pair_was_picked() -> None:
    found = verdict(compare(arms(base=1.0, a=0.975, b=1.0, c=1.01), "base"))
    assert "a beats base by 0.027 nats, Holm p" in found.headline
    assert "picked because it is resolved, so it may look too large; [" in found.headline
    assert "picked" not in " ".join(s.text for s in found.sentences)  # all of them are shown
    chinese = verdict(compare(arms(base=1.0, a=0.975, b=1.0, c=1.01), "base"), language="zh").headline
    assert "因已分辨才列于此" in chinese


def test_a_difference_far_beyond_the_limit_keeps_its_sentence() -> None:
    found = verdict(compare(arms(base=1.0, a=0.2, b=1.0, c=1.01), "base"))
    assert found.headline == found.sentences[0].text and "picked" not in found.headline


@pytest.mark.parametrize("options", [{"correction": "dunnett"}, {"method": "bootstrap"}])
def test_headline_of_a_test_without_exact_interval_has_none(options: dict[str, str]) -> None:
    found = verdict(compare(arms(base=1.0, a=0.5, b=0.4, c=1.01), "base", **options))
    best = found.headline.partition("Largest difference")[2]
    assert ("may look too large)" in best and "[" not in best) or not best
