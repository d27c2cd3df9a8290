"""Simulated sequential studies: false claims, coverage, and runs against a fixed plan of equal power.

    python benchmarks/validity_sequential.py --studies 20000     # writes benchmarks/results/validity_sequential.json

Studies go through the stopping rule of `ablatio train -m until=resolved`.  Arms are paired by seed and share the
baseline; differences are in sd of a paired difference.  Runs are counted with the baseline, which runs as long as any
arm does.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from ablatio.report.statistics import holm, seeds_needed
from ablatio.sweep import group_sequential
from ablatio.sweep.group_sequential import Boundaries, look_sizes
from ablatio.sweep.stopping_rule import EQUAL, OPEN, RESOLVED, StoppingRule, t_test_p

RESULTS = Path(__file__).parent / "results" / "validity_sequential.json"
EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # true differences, in units of the planned one
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "t, 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, size=shape) / np.sqrt(3),
    "skewed (chi-square, 4)": lambda rng, shape: (rng.chisquare(4, size=shape) - 4) / np.sqrt(8),
}


def differences(
    studies: int, comparisons: int, seeds: int, effect: Any = 0.0, noise: str = "normal", rng: int = 0
) -> Any:
    """Paired differences (studies, comparisons, seeds) with unit spread, correlated through the baseline."""
    values = NOISES[noise](np.random.default_rng(rng), (studies, comparisons + 1, seeds)) / np.sqrt(2)
    return values[:, 1:] - values[:, :1] + np.broadcast_to(effect, (studies, comparisons))[..., None]


def run_studies(rule: StoppingRule, d: Any) -> dict[str, Any]:
    """Decide all studies: states, last n, coverage error of the last interval, and runs with the baseline."""
    shape = d.shape[:2]
    p, states, last = np.ones(shape), np.full(shape, OPEN), np.zeros(shape, dtype=int)
    center, reach = np.zeros(shape), np.zeros(shape)
    for look, n in enumerate(rule.sizes):
        still = states == OPEN
        mean, sd = d[..., :n].mean(-1), d[..., :n].std(-1, ddof=1)
        width = -special.stdtrit(n - 1, rule.boundaries.p_at(look, 0.05) / 2) * sd / np.sqrt(n)
        last, center, reach = np.where(still, n, last), np.where(still, mean, center), np.where(still, width, reach)
        p, states = rule.decide(look, mean, sd, n, p, states)
    return {"p": p, "states": states, "center": center, "reach": reach, "runs": last.sum(1) + last.max(1)}


def false_claims(comparisons: int, most: int, studies: int, noise: str = "normal") -> dict[str, Any]:
    """Share of studies without any effect that name a winner; the same if each look were an uncorrected Holm test."""
    rule = StoppingRule(Boundaries.of(look_sizes(3, most)), comparisons)
    d = differences(studies, comparisons, most, noise=noise)
    found = run_studies(rule, d)
    naive = np.zeros(studies, dtype=bool)
    for n in rule.sizes:
        naive |= (holm(t_test_p(d[..., :n].mean(-1), d[..., :n].std(-1, ddof=1), n)) <= 0.05).any(1)
    one_look = (holm(t_test_p(d.mean(-1), d.std(-1, ddof=1), most)) <= 0.05).any(1)
    return {
        "comparisons": comparisons, "most seeds": most, "looks": len(rule.sizes), "noise": noise,
        "false winners": float((found["states"] == RESOLVED).any(1).mean()),
        "false winners of one look at the end": float(one_look.mean()),
        "false winners of uncorrected looks": float(naive.mean()),
        "coverage of the last interval": float((np.abs(found["center"]) <= found["reach"]).mean()),
    }  # fmt: skip


def false_equality(comparisons: int, most: int, studies: int, margin: float = 1.5) -> dict[str, Any]:
    """Share of studies in which an arm that differs by the margin is called equal."""
    rule = StoppingRule(Boundaries.of(look_sizes(3, most)), comparisons, margin=margin)
    found = run_studies(rule, differences(studies, comparisons, most, margin, rng=1))
    wrong = float((found["states"] == EQUAL).any(1).mean())
    return {"comparisons": comparisons, "most seeds": most, "margin": margin, "false equality": wrong}


def efficiency(comparisons: int, delta: float, studies: int, more: float = 2.0) -> dict[str, Any]:
    """Runs of sequential studies as a share of those of the fixed plan with the same power at `delta`.

    The true difference of each comparison is drawn from EFFECTS; power is that of the comparisons with `delta`.
    more: most seeds of the sequential study over those of a fixed plan with power 0.8
    """
    most = int(np.ceil(more * seeds_needed(delta, 1.0, comparisons + 1)))
    rule = StoppingRule(Boundaries.of(look_sizes(3, most)), comparisons)
    units = np.random.default_rng(2).choice(EFFECTS, size=(studies, comparisons))
    d = differences(studies, comparisons, 2 * most, units * delta, rng=3)
    found = run_studies(rule, d)
    planned = units == 1.0
    power = float((found["states"] == RESOLVED)[planned].mean())
    low, fixed = 1, 2 * most
    while fixed - low > 1:
        middle = (low + fixed) // 2
        low, fixed = (low, middle) if _fixed_power(d, middle, planned) >= power else (middle, fixed)
    runs = found["runs"].mean() / (comparisons + 1)
    each = {
        str(effect): float(run_studies(rule, differences(studies // 4, comparisons, most, effect * delta, rng=4))
                           ["runs"].mean() / (comparisons + 1) / fixed)
        for effect in EFFECTS
    }  # fmt: skip
    return {
        "comparisons": comparisons, "planned difference": delta, "most seeds": most, "power": power,
        "seeds of the fixed plan": fixed, "share of its runs": float(runs / fixed),
        "share of its runs if all differences are (in planned ones)": each,
    }  # fmt: skip


def _fixed_power(d: Any, n: int, planned: Any) -> float:
    p = holm(t_test_p(d[..., :n].mean(-1), d[..., :n].std(-1, ddof=1), n))
    return float((p <= 0.05)[planned].mean())


def obrien_fleming(level: Any, share: Any) -> Any:
    """Spending of O'Brien-Fleming type (Lan and DeMets 1983), for comparison."""
    return 2 * special.ndtr(special.ndtri(np.asarray(level) / 2) / np.sqrt(share))


def measure(studies: int, comparisons: Sequence[int] = (1, 3, 7), most: Sequence[int] = (8, 20)) -> dict[str, Any]:
    """All cells."""
    found: dict[str, Any] = {"studies": studies, "date": time.strftime("%Y-%m-%d")}
    found["no effect"] = [
        false_claims(m, n, studies, noise) for noise in NOISES for m in comparisons for n in most
        if noise == "normal" or n == most[-1]
    ]  # fmt: skip
    found["at the margin"] = [false_equality(m, n, studies) for m in comparisons for n in most]
    found["efficiency"] = [
        {"most seeds over those of a plan with power 0.8": more} | efficiency(m, delta, studies, more)
        for more in (1.3, 2.0) for m in comparisons for delta in (1.2, 0.8)
    ]  # fmt: skip
    half = len(found["efficiency"]) // 2
    for name, cells in (("1.3", found["efficiency"][:half]), ("2", found["efficiency"][half:])):
        mean = float(np.mean([cell["share of its runs"] for cell in cells]))
        found[f"mean share of the runs of the fixed plan, with {name} times the seeds at most"] = mean
    plain, levels = group_sequential.spent, group_sequential.LEVELS
    group_sequential.spent = obrien_fleming
    group_sequential.LEVELS = tuple(x for x in levels if x <= 0.3)  # with higher ones its boundaries are not nested
    try:
        found["efficiency with spending of O'Brien-Fleming type"] = [
            efficiency(m, 1.2, studies, 2.0) for m in comparisons
        ]
    finally:
        group_sequential.spent, group_sequential.LEVELS = plain, levels
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = measure(args.studies)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
