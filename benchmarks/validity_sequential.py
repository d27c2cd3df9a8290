"""Simulated sequential studies: false claims, coverage, and runs against a fixed plan of equal power.

    python benchmarks/validity_sequential.py --studies 20000     # writes benchmarks/results/validity_sequential.json

Studies go through the stopping rule of `ablatio train -m until=resolved`.  Arms are paired by seed and share the
baseline; differences are in sd of a paired difference.  Runs are counted with the baseline, which runs as long as any
arm does.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from ablatio.report.statistics import holm, seeds_needed
from ablatio.sweep import group_sequential
from ablatio.sweep.group_sequential import Boundaries, look_sizes
from ablatio.sweep.stopping_rule import EQUAL, OPEN, RESOLVED, StoppingRule, t_test_p

RESULTS = Path(__file__).parent / "results" / "validity_sequential.json"
COMPARISONS, MOST = (1, 3, 7), (8, 20)  # arms besides the baseline; most seeds
DELTAS = (1.2, 0.8)  # planned differences, in sd
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


def spending(studies: int) -> list[dict[str, Any]]:
    """The efficiency cells with spending of O'Brien-Fleming type instead of the power family."""
    plain, levels = group_sequential.spent, group_sequential.LEVELS
    group_sequential.spent = obrien_fleming
    group_sequential.LEVELS = tuple(x for x in levels if x <= 0.3)  # with higher ones its boundaries are not nested
    try:
        return [efficiency(m, 1.2, studies) for m in COMPARISONS]
    finally:
        group_sequential.spent, group_sequential.LEVELS = plain, levels


# Shares of runs vary less than false claims: a fifth of the studies is enough for them.
PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "no effect": lambda n: [
        false_claims(m, most, n, noise)
        for noise in NOISES for m in COMPARISONS for most in MOST if noise == "normal" or most == MOST[-1]
    ],
    "at the margin": lambda n: [false_equality(m, most, n) for m in COMPARISONS for most in MOST],
    "efficiency, 1.3 times the seeds at most": lambda n: [
        efficiency(m, delta, n // 5, 1.3) for m in COMPARISONS for delta in DELTAS
    ],
    "efficiency, twice the seeds at most": lambda n: [
        efficiency(m, delta, n // 5) for m in COMPARISONS for delta in DELTAS
    ],
    "efficiency with spending of O'Brien-Fleming type": lambda n: spending(n // 5),
}  # fmt: skip


def summary(cells: dict[str, Any]) -> dict[str, float]:
    """Largest share of false claims with normal noise, and mean shares of the runs of a fixed plan."""
    found = {}
    for name, rows in cells.items():
        if "false winners" in rows[0]:
            found["most false winners, normal noise"] = max(r["false winners"] for r in rows if r["noise"] == "normal")
        if "share of its runs" in rows[0]:
            found[f"mean share of the runs: {name}"] = float(np.mean([r["share of its runs"] for r in rows]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--only", choices=[*PARTS], nargs="*", help="parts to measure anew; the others stay")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for part in args.only or PARTS:
        rows = {"studies": args.studies, "cells": PARTS[part](args.studies)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(args.out.read_text()) if args.out.exists() else {"parts": {}}
        parts = known["parts"] | {part: rows}
        results = {"date": time.strftime("%Y-%m-%d"), "parts": {name: parts[name] for name in PARTS if name in parts}}
        results["summary"] = summary({name: of["cells"] for name, of in results["parts"].items()})
        args.out.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps({part: rows, "summary": results["summary"]}, indent=2), flush=True)
