"""Simultaneous tests of contrasts and competing explanations, against scipy and simulations written out here."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from ablatio.report.statistics.contrasts import Model, model_of
from ablatio.report.statistics.effects import fit
from ablatio.report.statistics.explanations import alternatives
from ablatio.report.statistics.screening import half_normal, null_maxima, screen

LETTERS = "abcdefghijk"


def runs_of(
    matrix: np.ndarray, seeds: int, noise: float, rng: int = 0, **sizes: float
) -> tuple[list[dict[str, str]], list[int], list[float]]:
    """Two-level runs: a=0.1 adds 0.1 from low to high; ab=0.1 is the interaction of a and b."""
    draw = np.random.default_rng(rng)
    arms, numbers, values = [], [], []
    for seed, row in product(range(seeds), matrix):
        arms.append({LETTERS[i]: f"{LETTERS[i]}{'-+'[int(x > 0)]}" for i, x in enumerate(row)})
        numbers.append(seed)
        known = sum(size / 2 * math.prod(row[LETTERS.index(x)] for x in word) for word, size in sizes.items())
        values.append(3 + 0.3 * seed + known + noise * float(draw.normal()))
    return arms, numbers, values


def two_level(matrix: np.ndarray, seeds: int, noise: float, rng: int = 0, **sizes: float) -> Model:
    levels = {x: [f"{x}-", f"{x}+"] for x in LETTERS}
    return model_of(*runs_of(matrix, seeds, noise, rng, **sizes), levels=levels)


def plackett_burman(foldover: bool = False) -> np.ndarray:
    import pyDOE3

    table = pyDOE3.pbdesign(11)
    return np.vstack([table, -table]) if foldover else table


@pytest.mark.parametrize(("levels", "seeds"), [(3, 6), (5, 4)])
def test_pairs_of_one_factor_equal_tukeys_test(levels: int, seeds: int) -> None:
    """Oracle: the studentized range of scipy, for a randomized block design."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.01, (seeds, levels)) + 0.1 * rng.normal(size=(seeds, 1)) + [0.012, *[0.0] * (levels - 1)]
    arms = [{"norm": f"n{i}"} for _ in range(seeds) for i in range(levels)]
    found = screen(model_of(arms, [s for s in range(seeds) for _ in range(levels)], values.ravel().tolist()))
    left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    df = (seeds - 1) * (levels - 1)
    error = math.sqrt((left**2).sum() / df / seeds)
    assert found.scale == "residual" and found.df == df and len(found.contrasts) == levels * (levels - 1) // 2
    reach = stats.studentized_range.isf(0.05, levels, df) * error
    for c in found.contrasts:
        low, high = (int(x[1:]) for x in c.levels[0])
        value = values[:, high].mean() - values[:, low].mean()
        assert c.value == pytest.approx(value)
        assert c.p == pytest.approx(stats.studentized_range.sf(abs(value) / error, levels, df), abs=0.012)
        assert (c.high - c.low) / 2 == pytest.approx(reach, rel=0.02)


@pytest.mark.parametrize("m", [7, 15])
def test_simultaneous_margin_of_lenth_has_the_stated_chance(m: int) -> None:
    """Oracle: Lenth's formula written out for one study at a time, with other random numbers."""
    critical = float(np.quantile(null_maxima(np.eye(m), math.nan), 0.95))
    rng, beyond = np.random.default_rng(99), 0
    for _ in range(4000):
        sizes = sorted(abs(rng.normal(size=m)))
        first = 1.5 * sizes[m // 2]
        kept = [s for s in sizes if s < 2.5 * first]
        beyond += sizes[-1] > critical * 1.5 * float(np.median(kept))
    assert beyond / 4000 == pytest.approx(0.05, abs=0.011)


def test_margins_of_a_saturated_design_are_lenths() -> None:
    model = two_level(plackett_burman(), 1, 0.01, c=0.1)
    found = screen(model)
    plot = half_normal(fit(model))
    assert found.scale == "lenth" and math.isnan(found.df) and found.margin == pytest.approx(plot.simultaneous)
    assert plot.names[-1] == "c" and plot.margin < plot.simultaneous < plot.sizes[-1]
    assert {c.name for c in found.contrasts if c.p < 0.05} == {"c"}


def test_exchanged_levels_turn_the_sign_of_every_contrast() -> None:
    arms, seeds, values = runs_of(plackett_burman(), 2, 0.02, a=0.1, b=-0.05)
    plain = screen(model_of(arms, seeds, values, levels={x: [f"{x}-", f"{x}+"] for x in LETTERS}))
    turned = screen(model_of(arms, seeds, values, levels={x: [f"{x}+", f"{x}-"] for x in LETTERS}))
    for one, other in zip(plain.contrasts, turned.contrasts, strict=True):
        assert one.levels[0] == other.levels[0][::-1] and one.p == other.p
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def test_study_without_any_spread_is_not_tested() -> None:
    """Scores that do not depend on the seed at all, up to rounding."""
    found = screen(two_level(plackett_burman(), 3, 0.0, a=0.1))
    assert found.scale == "none" and all(math.isnan(c.p) for c in found.contrasts)
    assert found.contrasts[0].value == pytest.approx(0.1)


def test_crossing_is_a_difference_of_differences() -> None:
    full = np.array(list(product([-1, 1], repeat=2)))
    arms, seeds, values = runs_of(full, 4, 0.001, a=0.1, ab=0.06)
    crossing = next(c for c in screen(model_of(arms, seeds, values)).contrasts if c.kind == "crossing")
    mean = {
        (a, b): np.mean([v for arm, v in zip(arms, values, strict=True) if arm == {"a": f"a{a}", "b": f"b{b}"}])
        for a, b in product("-+", repeat=2)
    }
    assert crossing.levels == (("a-", "a+"), ("b-", "b+"))
    assert crossing.value == pytest.approx(mean["+", "+"] - mean["-", "+"] - mean["+", "-"] + mean["-", "-"])


def test_one_interaction_explains_the_main_effects_that_it_imitates() -> None:
    """An interaction of a and b loads on the other nine main effects of a Plackett-Burman design with 1/3."""
    model = two_level(plackett_burman(), 3, 0.01, ab=0.08)
    found = screen(model)
    claimed = [c.name for c in found.contrasts if c.p < 0.05]
    assert sorted(claimed) == list("cdefghijk")
    for best, *_ in alternatives(model, claimed, found.sd).values():
        assert best.name == "a x b" and best.ratio > 0.05 and best.terms <= 2


def test_real_main_effects_keep_their_claim_beside_a_real_interaction() -> None:
    model = two_level(plackett_burman(), 3, 0.01, 2, a=0.08, b=0.08, ab=0.06)
    found = screen(model)
    claimed = [c.name for c in found.contrasts if c.p < 0.05]
    other = alternatives(model, claimed, found.sd)
    assert {n for n in claimed if not any(a.ratio >= 0.05 for a in other[n])} == {"a", "b"}
    assert all(other[n][0].name == "a x b" for n in claimed if n not in "ab")


def test_foldover_shows_the_interaction_itself() -> None:
    model = two_level(plackett_burman(foldover=True), 2, 0.01, ab=0.05)
    found = sorted((c for c in screen(model).contrasts if c.p < 0.05), key=lambda c: (c.p, -abs(c.value)))
    assert found[0].name == "a x b" and not found[0].separate
    assert all(len(c.factors) == 2 for c in found)


def test_fully_aliased_interactions_are_no_alternatives() -> None:
    """2^(3-1): each main effect equals an interaction, which no data can tell apart."""
    base = np.array(list(product([-1, 1], repeat=2)))
    model = two_level(np.column_stack([base, base.prod(1)]), 3, 0.01, a=0.1)
    assert alternatives(model, ["a"], 0.01) == {"a": ()}


def test_orthogonal_array_names_the_levels_that_differ() -> None:
    """3^4 in nine arms, one level of one factor worse: its pairs alone are beyond chance, in 30 studies but two."""
    rows = [(i, j, (i + j) % 3, (i + 2 * j) % 3) for i, j in product(range(3), repeat=2)]
    wrong = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        arms = [{f"f{k}": f"f{k}{x}" for k, x in enumerate(row)} for row in rows] * 2
        values = [0.08 * (a["f0"] == "f01") + 0.01 * float(rng.normal()) for a in arms]
        found = [c for c in screen(model_of(arms, [1] * 9 + [2] * 9, values)).contrasts if c.p < 0.05]
        assert {("f00", "f01"), ("f01", "f02")} <= {c.levels[0] for c in found}
        wrong += any("f01" not in c.levels[0] for c in found)
    assert wrong <= 5  # 1.5 expected


def test_order_of_the_runs_does_not_matter() -> None:
    arms, seeds, values = runs_of(plackett_burman(), 2, 0.02, a=0.1, bc=0.05)
    order = np.random.default_rng(3).permutation(len(values))
    levels = {x: [f"{x}-", f"{x}+"] for x in LETTERS}
    first = screen(model_of(arms, seeds, values, levels=levels))
    again = screen(model_of(*([x[i] for i in order] for x in (arms, seeds, values)), levels=levels))
    for name in LETTERS:
        one, other = first.of(name)[0], again.of(name)[0]
        assert one.value == pytest.approx(other.value) and one.p == pytest.approx(other.p, abs=0.02)
