"""Validity of the sentences on effects of settings: simulated studies through the whole report, sentences parsed.

    python benchmarks/validity_effects.py                      # 5000 studies a cell; results/validity_effects.json
    python benchmarks/validity_effects.py --resume             # only the cells that the file lacks
    python benchmarks/validity_effects.py --replace --only X   # cells whose name contains X anew, the others stay

Each cell simulates studies of one design and one truth, makes a table of runs of each, and reads the English verdict
with a parser that shares no code with the report.  Counted are

false claims   studies in which a sentence claims a difference that is not there: a pair of levels that are equal, or
               an interaction that does not exist; a sentence that names the true effect among its aliases or
               alternatives is right
found          studies in which the planted effect is claimed with its levels
covered        studies in which every printed interval of a claim, or of the table, covers the true difference

Promised are false claims in at most 5 % of the studies of a cell, plus one point, and intervals that all cover in 95 %
or more, less one point.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _results import commit, read, share_of, write

from ablatio.registry.kinds import designs
from ablatio.registry.kinds.search_space import Axis
from ablatio.report.analysis.findings import Findings, find
from ablatio.report.read.run import Run
from ablatio.report.read.table import Table
from ablatio.sweep.study import Study

RESULTS = Path(__file__).parent / "results" / "validity_effects.json"
FALSE, COVERAGE = 0.06, 0.94  # promised shares of studies: the most with a false claim, the least with all covering
SEED_SPREAD, NOISE = 0.02, 0.01  # standard deviations of the shift of a seed and of a run, in nats


@dataclass(frozen=True)
class Cell:
    """One kind of study.

    levels   number of levels of each factor; a factor is called f0, f1 ..., its levels f0a, f0b ...
    mains    {"f0b": 0.03}: what a level adds
    pair     ("f0", "f1", 0.03): interaction of two two-level factors, arms with equal letters minus the others
    """

    name: str
    design: str
    levels: Sequence[int]
    seeds: int
    knobs: Mapping[str, object] = field(default_factory=dict)
    mains: Mapping[str, float] = field(default_factory=dict)
    pair: tuple[str, str, float] | None = None

    @property
    def axes(self) -> list[Axis]:
        return [Axis(f"f{i}", tuple(f"f{i}{'abcdef'[j]}" for j in range(n))) for i, n in enumerate(self.levels)]

    def arms(self) -> list[dict[str, str]]:
        axes = self.axes
        made = designs.build(self.design, dict(self.knobs), axes=axes, baseline={a.key: a.values[0] for a in axes})
        return [dict(arm) for arm in made.arms()]

    def mean(self, arm: Mapping[str, str]) -> float:
        """True score of an arm."""
        total = 3.0 + sum(self.mains.get(level, 0.0) for level in arm.values())
        if self.pair:
            a, b, size = self.pair
            total += size / 2 * (1 if arm[a][-1] == arm[b][-1] else -1)
        return total

    def difference(self, factor: str, low: str, high: str) -> float:
        """True main effect of a factor from one level to another."""
        assert low.startswith(factor) and high.startswith(factor)
        return self.mains.get(high, 0.0) - self.mains.get(low, 0.0)


PB, ARRAY = "plackett_burman", "orthogonal"
THREE = {"generators": "a b c ab ac bc abc"}  # 2^(7-4), resolution III
INTERACTION = [
    Cell(f"interaction of {size}: Plackett-Burman, {seeds}", PB, [2] * 11, int(seeds[0]), pair=("f0", "f1", size))
    for size, seeds in ((0.08, "3 seeds"), (0.04, "3 seeds"), (0.02, "3 seeds"), (0.08, "1 seed"))
]
CELLS = [
    Cell("null: Plackett-Burman, 11 factors, 3 seeds", PB, [2] * 11, 3),
    Cell("null: Plackett-Burman, 11 factors, 1 seed", PB, [2] * 11, 1),
    Cell("null: Plackett-Burman, 5 factors in 12 arms, 2 seeds", PB, [2] * 5, 2, {"runs": 12}),
    Cell("null: Plackett-Burman folded over, 11 factors, 2 seeds", PB, [2] * 11, 2, {"foldover": True}),
    Cell("null: fractional, resolution III, 7 factors, 2 seeds", "fractional", [2] * 7, 2, THREE),
    Cell("null: fractional, resolution IV, 7 factors, 1 seed", "fractional", [2] * 7, 1),
    Cell("null: orthogonal array 3^4, 2 seeds", ARRAY, [3] * 4, 2),
    Cell("null: orthogonal array 3^4, 1 seed", ARRAY, [3] * 4, 1),
    Cell("null: full 2 x 2 x 4, 3 seeds", "full", [2, 2, 4], 3),
    Cell("main: orthogonal array 3^4, one level worse by 0.08", ARRAY, [3] * 4, 2, mains={"f0b": 0.08}),
    Cell("main: orthogonal array 3^4, one level worse by 0.03", ARRAY, [3] * 4, 3, mains={"f0b": 0.03}),
    Cell("main: Plackett-Burman, one effect of 0.02, 3 seeds", PB, [2] * 11, 3, mains={"f2b": 0.02}),
    Cell("main: Plackett-Burman, two effects, 3 seeds", PB, [2] * 11, 3, mains={"f2b": 0.03, "f5b": -0.03}),
    Cell("main: Plackett-Burman, one effect of 0.08, 1 seed", PB, [2] * 11, 1, mains={"f2b": 0.08}),
    *INTERACTION,
    Cell("interaction of 0.04: Plackett-Burman, 6 factors", PB, [2] * 6, 3, {"runs": 12}, pair=("f0", "f1", 0.04)),
    Cell("interaction of 0.04: fractional, resolution III", "fractional", [2] * 7, 2, THREE, pair=("f0", "f1", 0.04)),
    Cell("interaction of 0.04: folded over, 2 seeds", PB, [2] * 11, 2, {"foldover": True}, pair=("f0", "f1", 0.04)),
    Cell("two effects of 0.05 and their interaction of 0.04: Plackett-Burman, 3 seeds", PB, [2] * 11, 3,
         mains={"f0b": 0.05, "f1b": 0.05}, pair=("f0", "f1", 0.04)),
]  # fmt: skip


def table_of(cell: Cell, rng: np.random.Generator, arms: Sequence[Mapping[str, str]]) -> Table:
    """A study of this cell as a table of finished runs."""
    study = Study(cell.design, design={"name": cell.design}, axes=cell.axes, seeds=tuple(range(1, cell.seeds + 1)))
    runs = []
    for seed in study.seeds:
        shift = SEED_SPREAD * rng.normal()
        for i, arm in enumerate(arms):
            score = cell.mean(arm) + shift + NOISE * rng.normal()
            runs.append(
                Run(Path("runs") / f"{seed}-{i}", "study", f"{seed}-{i}", arm, seed, "run", "done",
                    scores={"val/loss": score}, main={"name": "val/loss", "better": "lower"}, size={"tokens": 1.0})
            )  # fmt: skip
    return Table(study, [Path("study")], runs)


@dataclass
class Claim:
    """What one sentence says: a difference of a factor, or an interaction; and the interactions that it names."""

    factor: str
    low: str
    high: str
    value: float
    interval: tuple[float, float]
    named: set[frozenset[str]]
    main: bool


NUMBER = r"([+-]\d+\.\d+)"
MAIN = re.compile(
    rf"^(\w+), from (\w+) to (\w+)(?:, the clearest of \d+ differences)?: {NUMBER} nats \[{NUMBER}, {NUMBER}\]"
)
CROSSING = re.compile(
    rf"^(\w+) x (\w+): from (\w+) to (\w+), the change with (\w+) exceeds that with (\w+) by {NUMBER} nats "
    rf"\[{NUMBER}, {NUMBER}\]"
)
CELL_SENTENCE = re.compile(r"^(\w+) x (\w+): (\w+), (\w+) together")
GROUP = re.compile(r"^\d+ settings stand out \(([^)]*)\)")
ALSO = re.compile(rf"from (\w+) to (\w+) {NUMBER}")
PAIR = re.compile(r"\b(f\d+) x (f\d+)\b")


def claims_of(sentences: Sequence[str]) -> list[Claim]:
    """All differences and interactions that the sentences claim; a group that is explained away claims nothing."""
    found = []
    for text in sentences:
        pairs = {frozenset(p) for p in PAIR.findall(text)}
        if match := MAIN.match(text):
            factor, low, high, *numbers = match.groups()
            value, left, right = map(float, numbers)
            dismissed = "less likely" in text
            named = set() if dismissed else pairs
            found.append(Claim(factor, low, high, value, (left, right), named, True))
            for low, high, value in ALSO.findall(text.partition("also resolved:")[2]):
                found.append(Claim(factor, low, high, float(value), (-np.inf, np.inf), named, True))
        elif match := CROSSING.match(text):
            a, b, _, _, _, _, value, left, right = match.groups()
            found.append(Claim(f"{a} x {b}", "", "", float(value), (float(left), float(right)), pairs, False))
        elif match := CELL_SENTENCE.match(text):
            found.append(Claim(" x ".join(match.groups()[:2]), "", "", np.nan, (-np.inf, np.inf), pairs, False))
    return found


def is_false(cell: Cell, claim: Claim) -> bool:
    """True if a claim names neither a true difference nor the true interaction."""
    true_pair = {frozenset(cell.pair[:2])} if cell.pair else set()
    if claim.named & true_pair:
        return False
    if not claim.main:
        return True
    truth = cell.difference(claim.factor, claim.low, claim.high)
    return truth == 0 or np.sign(truth) != np.sign(claim.value)


def is_found(cell: Cell, claims: Sequence[Claim], sentences: Sequence[str]) -> bool:
    """True if every planted effect is named."""
    if cell.pair:
        a, b, _ = cell.pair
        return any({a, b} == set(p) for text in sentences for p in PAIR.findall(text))
    return all(
        any(c.main and level in (c.low, c.high) and not is_false(cell, c) for c in claims) for level in cell.mains
    )


def is_covered(cell: Cell, claims: Sequence[Claim]) -> bool:
    """True if each interval of a claimed main effect covers the truth (estimates are aliased under an interaction)."""
    for c in claims:
        if c.main and not cell.pair:
            truth = cell.difference(c.factor, c.low, c.high)
            if not c.interval[0] - 5e-4 <= truth <= c.interval[1] + 5e-4:
                return False
    return True


def all_cover(cell: Cell, findings: Findings) -> bool:
    """True if all intervals of the table of effects cover their true differences."""
    assert findings.factors is not None
    contrasts = [c for c in findings.factors.screen.contrasts if c.kind == "pair"]
    return all(c.low <= cell.difference(c.factors[0], *c.levels[0]) <= c.high for c in contrasts)


def simulate(cell: Cell, studies: int, seed: int = 0) -> dict[str, Any]:
    """Shares of studies of a cell: false claims, planted effects found, intervals that cover."""
    rng, arms = np.random.default_rng(seed), cell.arms()
    counts = dict.fromkeys(("false", "found", "claimed_covered", "all_covered", "any", "unclear"), 0)
    begun = time.perf_counter()
    for _ in range(studies):
        findings = find(table_of(cell, rng, arms))
        sentences = findings.said()[1:]
        claims = claims_of(sentences)
        counts["any"] += bool(claims)
        counts["unclear"] += any(GROUP.match(s) or "no main effect is claimed" in s for s in sentences)
        counts["false"] += any(is_false(cell, c) for c in claims)
        counts["found"] += is_found(cell, claims, sentences)
        counts["claimed_covered"] += is_covered(cell, claims)
        counts["all_covered"] += all_cover(cell, findings)
    shares = {"false_claims": share_of(counts["false"], studies, high=FALSE)}
    if cell.mains or cell.pair:
        shares["found"] = share_of(counts["found"], studies)  # no promise: what such a study can see
    if not cell.pair:  # under an interaction the estimates are those of sums
        shares["all_intervals_cover"] = share_of(counts["all_covered"], studies, low=COVERAGE)
        shares["claimed_intervals_cover"] = share_of(counts["claimed_covered"], studies, low=COVERAGE)
    return {
        "name": cell.name, "arms": len(arms), "seeds": cell.seeds, "studies": studies, **shares,
        "claims": counts["any"] / studies, "claims_left_to_interactions": counts["unclear"] / studies,
        "kept": all(share["kept"] for share in shares.values()),
        "seconds": round(time.perf_counter() - begun, 1), "commit": commit(),
    }  # fmt: skip


def main() -> int:
    """Simulate the cells whose name contains --only and write their shares; 1 if a promise is not kept."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--studies", type=int, default=5000, help="simulated studies of each cell")
    options.add_argument("--only", default="", help="cells whose name contains this")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--resume", action="store_true", help="keep the cells that the file has")
    options.add_argument("--replace", action="store_true", help="keep the other cells that the file has")
    args = options.parse_args()
    names = [cell.name for cell in CELLS]
    made = {n: c for n, c in read(args.out).items() if n in names} if args.resume or args.replace else {}
    for number, cell in enumerate(CELLS):
        if args.only in cell.name and not (args.resume and cell.name in made):
            made[cell.name] = simulate(cell, args.studies, seed=number)
            print(json.dumps(made[cell.name]), flush=True)
            write(args.out, [made[n] for n in names if n in made])
    return int(not all(cell["kept"] for cell in made.values()))


if __name__ == "__main__":
    sys.exit(main())
