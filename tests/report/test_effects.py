"""Main effects and interactions: equal to statsmodels' least squares, and planted effects found in small designs."""

import math
from itertools import product

import numpy as np
import pytest

from ablatio.report.statistics import effects, half_normal

Rows = tuple[list[dict[str, str]], list[int], list[float]]


def study(factors: dict[str, str], seeds: int, seed: int = 0, noise: float = 0.1) -> Rows:
    """Full factorial design: each level adds 0.1 times its character code, each seed adds 0.2 times its number."""
    rng = np.random.default_rng(seed)
    arms, numbers, values = [], [], []
    for levels, s in product(product(*factors.values()), range(seeds)):
        arms.append(dict(zip(factors, levels, strict=True)))
        numbers.append(s)
        values.append(sum(0.1 * ord(x) for x in levels) + 0.2 * s + noise * float(rng.normal()))
    return arms, numbers, values


def statsmodels_fit(rows: Rows, formula: str) -> object:
    import pandas as pd
    import statsmodels.formula.api as smf

    arms, seeds, values = rows
    table = pd.DataFrame([*arms]).assign(seed=seeds, y=values)
    return smf.ols(formula, table).fit()


@pytest.mark.parametrize("missing", [0, 3])
def test_effects_match_statsmodels(missing: int) -> None:
    from statsmodels.stats.anova import anova_lm

    rows = study({"a": "xyz", "b": "uv", "c": "pq"}, 3)
    rows = (rows[0][missing:], rows[1][missing:], rows[2][missing:])
    ours = effects(*rows)
    fit = statsmodels_fit(rows, "y ~ C(seed, Sum) + (C(a, Sum) + C(b, Sum) + C(c, Sum)) ** 2")
    table = anova_lm(fit, typ=3)
    assert [t.name for t in ours.terms] == ["a", "b", "c", "a x b", "a x c", "b x c"]
    assert ours.df == fit.df_resid and ours.sd == pytest.approx(math.sqrt(fit.mse_resid))
    first = {k: rows[0][0][k] for k in "abc"}
    for term in ours.terms:
        key = ":".join(f"C({f}, Sum)" for f in term.factors)
        assert term.p == pytest.approx(table.loc[key, "PR(>F)"], rel=1e-6)
        assert term.aliases == () and sum(e.value for e in term.effects) == pytest.approx(0, abs=1e-10)
    limits = fit.conf_int()
    for effect in ours.terms[0].effects:
        name = f"C(a, Sum)[S.{effect.levels[0]}]"
        if name in fit.params.index:  # statsmodels reports all levels but the last
            assert (effect.value, effect.low, effect.high) == pytest.approx(
                (fit.params[name], *limits.loc[name]), rel=1e-8
            )
    assert first  # levels keep the order of the rows
    both = next(e for e in ours.terms[3].effects if e.levels == ("x", "u"))
    assert both.value == pytest.approx(fit.params["C(a, Sum)[S.x]:C(b, Sum)[S.u]"], rel=1e-8)


def test_effect_intervals_cover_95_percent() -> None:
    held = []
    for seed in range(400):
        found = effects(*study({"a": "xyz", "b": "uv"}, 3, seed))
        held += [e.low <= true <= e.high for e, true in zip(found.terms[0].effects, (-0.1, 0.0, 0.1), strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def two_level(matrix: np.ndarray, seeds: int, active: dict[int, float], noise: float, rng: int = 0) -> Rows:
    """Runs of a two-level design in which some factors shift the score by `active[factor]` from - to +."""
    draw = np.random.default_rng(rng)
    arms, numbers, values = [], [], []
    for s, row in product(range(seeds), matrix):
        arms.append({f"f{i}": "-+"[int(x > 0)] for i, x in enumerate(row)})
        numbers.append(s)
        shift = sum(size * float(row[i]) / 2 for i, size in active.items())
        values.append(3 + shift + 0.5 * s + noise * float(draw.normal()))
    return arms, numbers, values


def effect_minus_to_plus(term: object) -> float:
    """Effect of the step from level - to level +, independent of the order of the levels."""
    by_level = {e.levels[0]: e.value for e in term.effects}  # type: ignore[attr-defined]
    return by_level["+"] - by_level["-"]


def test_plackett_burman_finds_planted_effects() -> None:
    import pyDOE3

    active = {1: 0.4, 6: -0.2}
    found = effects(*two_level(pyDOE3.pbdesign(11), 3, active, 0.02))
    assert [t.name for t in found.terms] == [f"f{i}" for i in range(11)]
    assert [effect_minus_to_plus(t) for t in found.terms] == pytest.approx(
        [active.get(i, 0.0) for i in range(11)], abs=0.03
    )
    assert {t.name for t in found.terms if t.p < 0.001} == {"f1", "f6"}
    assert all(len(t.touched_by) == 45 and t.aliases == () for t in found.terms)
    assert "f0 x f1" in found.left_out


def test_fractional_design_lists_aliases() -> None:
    """2^(4-1) with d = abc: main effects are not aliased with two-way interactions, which are aliased in pairs."""
    base = np.array(list(product([-1, 1], repeat=3)))
    matrix = np.column_stack([base, base.prod(1)])
    found = effects(*two_level(matrix, 3, {0: 0.3, 3: 0.5}, 0.02))
    names = {t.name: t for t in found.terms}
    assert [effect_minus_to_plus(names[f"f{i}"]) for i in range(4)] == pytest.approx([0.3, 0, 0, 0.5], abs=0.03)
    assert names["f0 x f1"].aliases == ("f2 x f3",) and names["f0 x f3"].aliases == ("f1 x f2",)
    assert all(names[f"f{i}"].aliases == () for i in range(4)) and found.left_out == ()
    half = np.column_stack([base[::2, :2], base[::2, :2].prod(1)])  # 2^(3-1): main effects alias interactions
    few = {t.name: t.aliases for t in effects(*two_level(half, 3, {0: 0.3}, 0.02)).terms}
    assert few == {"f0": ("f1 x f2",), "f1": ("f0 x f2",), "f2": ("f0 x f1",)}


def test_planted_interaction_is_found() -> None:
    base = np.array(list(product([-1, 1], repeat=3)))
    arms, seeds, values = two_level(base, 3, {0: 0.3}, 0.02)
    values = [v + 0.1 * (a["f0"] == a["f1"]) for v, a in zip(values, arms, strict=True)]
    found = {t.name: t for t in effects(arms, seeds, values).terms}
    assert found["f0 x f1"].p < 1e-4 and found["f0 x f2"].p > 0.01 and found["f1"].p > 0.01
    assert {e.levels: e.value for e in found["f0 x f1"].effects}["+", "+"] == pytest.approx(0.05, abs=0.02)


def test_unreplicated_design_gives_half_normal_plot() -> None:
    """Unreplicated designs have no error estimate, so Lenth's margin is used; oracle: his method written out here."""
    base = np.array(list(product([-1, 1], repeat=4)))
    found = effects(*two_level(base, 1, {0: 0.5, 2: -0.3}, 0.02), interactions=True)
    assert found.df == 16 - 1 - 4 - 6
    plot = half_normal(found)
    assert set(plot.names[-2:]) == {"f0", "f2"} and plot.margin < 0.1 < plot.sizes[-2]
    sizes = sorted(abs(c) for _, c in found.contrasts)
    assert list(plot.sizes) == sizes == sorted(sizes) and found.contrasts[0][1] == pytest.approx(0.5, abs=0.05)
    first = 1.5 * np.median(sizes)
    second = 1.5 * np.median([s for s in sizes if s <= 2.5 * first])
    from scipy import stats

    assert plot.margin == pytest.approx(second * stats.t.ppf(0.975, len(sizes) / 3))
    assert plot.quantiles == pytest.approx(stats.halfnorm.ppf((np.arange(10) + 0.5) / 10))
    saturated = effects(*two_level(base[:4], 1, {3: 0.5}, 0.02))
    assert saturated.df == 0 and math.isnan(saturated.sd) and math.isnan(saturated.terms[0].p)


def test_diverged_runs_and_incomplete_factors_are_left_out() -> None:
    arms, seeds, values = study({"a": "xy", "b": "uv"}, 4)
    for arm in arms:
        if arm["a"] == "x":
            arm["affine"] = "no"
    values[0] = math.nan
    found = effects(arms, seeds, values)
    assert (
        found.diverged == 1 and found.left_out == ("affine",) and [t.name for t in found.terms] == ["a", "b", "a x b"]
    )
    with pytest.raises(ValueError, match="two runs"):
        effects(arms[:1], seeds[:1], values[:1])


def test_one_at_a_time_design_estimates_main_effects_only() -> None:
    arms = [{"a": a, "b": b} for a, b in ("xu", "yu", "zu", "xv")] * 3
    seeds = [s for s in range(3) for _ in range(4)]
    values = [1 + 0.3 * (a["a"] == "y") + 0.1 * (a["b"] == "v") + 0.01 * i for i, a in enumerate(arms)]
    found = effects(arms, seeds, values)
    assert [t.name for t in found.terms] == ["a", "b"]
    assert all("a x b" in (*t.aliases, *t.touched_by) for t in found.terms)
