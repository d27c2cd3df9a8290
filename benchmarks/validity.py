"""What the report promises, by simulation: false claims, coverage of the printed intervals, power of the plan.

python benchmarks/validity.py                                 # 5000 studies a cell, 200 folders; results/validity.json
python benchmarks/validity.py --studies 20000 --only null     # cells whose name contains the word
python benchmarks/validity.py --replace --only "null, skewed" # these anew, the others as they are in the file

Each study goes through the whole report (`find`), and its sentences are read by patterns (_report_reader.py), so that
a sentence that says more than its number is found as well.  The folders go through `ablatio report`; their sentences
are compared with scipy's and statsmodels' numbers.
"""

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _report_reader import claims, intervals, on_margin, problems, reached
from _results import commit, write
from _simulated import (
    LEVEL,
    SD,
    Asked,
    Noise,
    Simulated,
    correlated,
    crossed,
    diverging,
    falling,
    heavy,
    normal,
    one_factor,
    plackett_burman,
    sequential,
    skewed,
    spread,
    table_of,
    write_folder,
)  # fmt: skip

RESULTS = Path(__file__).parent / "results" / "validity.json"
FOLDERS = "sentences of folders"
Said = Sequence[str]
Measure = Callable[[Said, Simulated], tuple[int, int]]  # (hits, trials) of one study


@dataclass(frozen=True)
class Cell:
    """One promise in one situation: the share of hits among the trials lies between low and high."""

    name: str
    make: Callable[[np.random.Generator], Simulated]
    measure: Measure
    low: float
    high: float
    asked: Asked = field(default_factory=Asked)
    options: Mapping[str, Any] = field(default_factory=dict)


def false_claim(said: Said, found: Simulated) -> tuple[int, int]:
    """1 if any sentence calls an arm better that is not."""
    truth = dict(zip(found.names, found.truth, strict=True))
    equal = max(found.truth) == min(found.truth)
    wrong = [1 for a, b in claims(said) if equal or (a and b and truth[a] >= truth[b])]
    return bool(wrong), 1


def covered(said: Said, found: Simulated) -> tuple[int, int]:
    """Intervals that hold their true difference, of all that are printed; each pair once."""
    truth = dict(zip(found.names, found.truth, strict=True))
    told = {(i.a, i.b): i for sentence in said for i in intervals(sentence)}
    return sum(i.low <= truth[i.a] - truth[i.b] <= i.high for i in told.values()), len(told)


def covered_in_headline(said: Said, found: Simulated) -> tuple[int, int]:
    """As `covered`, of the headline alone."""
    return covered(said[:1], found)


def covered_together(said: Said, found: Simulated) -> tuple[int, int]:
    """1 if each interval that holds for all comparisons together contains its true difference."""
    truth = dict(zip(found.names, found.truth, strict=True))
    wide = [(i, i.together) for sentence in said for i in intervals(sentence) if i.together]
    return all(low <= truth[i.a] - truth[i.b] <= high for i, (low, high) in wide), 1


def arm1_wins(said: Said, found: Simulated) -> tuple[int, int]:
    return any(pair == ("arm1", "base") for pair in claims(said)), 1


def wins_on_survivors(said: Said, found: Simulated) -> tuple[int, int]:
    """1 if the arm whose runs diverge is called better, or a difference of means stands beside diverged runs.

    That the other arm ranks above it, with diverged runs as the worst, is true: it diverges less often.
    """
    lost = bool(np.isnan(found.scores).any())
    means = lost and any(i.claimed for sentence in said for i in intervals(sentence))
    return bool(means or arm1_wins(said, found)[0]), 1


def says(kind: str) -> Measure:
    """1 if any pair gets this answer on the margin."""
    return lambda said, found: (bool(on_margin(said, kind)), 1)


def reaches(said: Said, found: Simulated) -> tuple[int, int]:
    return bool(reached(said)), 1


def stops_before(first: int) -> Measure:
    """1 if the target is said to be reached from a step earlier than the first at which it truly is."""
    return lambda said, found: (any(step is not None and step < first for step in reached(said).values()), 1)


def null_cells() -> list[Cell]:
    """False claims: 5 % are accepted, one point more is the tolerance."""
    limits = 0.0, 0.06
    cells = [
        Cell(f"null, baseline, {k} arms, {n} seeds", one_factor([0] * k, n), false_claim, *limits)
        for k, n in ((2, 2), (2, 5), (4, 3), (4, 5), (8, 3), (8, 10), (20, 5))
    ]
    no_base = Asked(baseline=False)
    cells += [
        Cell(f"null, no baseline, {k} arms, {n} seeds", one_factor([0] * k, n), false_claim, *limits, no_base)
        for k, n in ((4, 3), (4, 10), (8, 5), (12, 5))
    ]
    noises: dict[str, Noise] = {
        "one arm varies 3 times": spread(1, 3), "baseline varies 3 times": spread(0, 3), "heavy tails": heavy,
        "heavy tails, one arm 3 times": spread(1, 3, heavy), "correlated arms": correlated,
        "skewed baseline": skewed([0], 1), "all skewed": skewed(range(4), 1),
    }  # fmt: skip
    for name, noise in noises.items():
        for n in (3, 5, 10):
            cells.append(Cell(f"null, {name}, 4 arms, {n} seeds", one_factor([0] * 4, n, noise), false_claim, *limits))
    moderated = {"method": "moderated"}
    for name, noise in {"equal spread": normal, **noises}.items():
        for k, n in ((4, 3), (8, 3), (4, 5), (8, 10)):
            if k == 4 or name != "all skewed":
                make, title = one_factor([0] * k, n, noise), f"null, moderated, {name}, {k} arms, {n} seeds"
                cells.append(Cell(title, make, false_claim, *limits, options=moderated))
    for title, noise in {"": normal, ", one arm varies 3 times": spread(1, 3)}.items():
        make = one_factor([0] * 5, 3, noise)
        title = f"null, moderated, no baseline{title}, 5 arms, 3 seeds"
        cells.append(Cell(title, make, false_claim, *limits, no_base, moderated))
    # The paired t-test does not hold here, as no test that keeps its power does: a sample that misleads has no outlier
    # to show it.  The report says so where it sees the spread, and `--interval skewed` holds.
    wild = {
        "skewed baseline varies 3 times": skewed([0], 3), "skewed baseline varies 5 times": skewed([0], 5),
        "skewed arm varies 3 times": skewed([1], 3),
    }  # fmt: skip
    for name, noise in wild.items():
        for k, n in ((4, 3), (4, 5), (4, 10), (2, 5)):
            title, make = f"{name}, {k} arms, {n} seeds", one_factor([0] * k, n, noise)
            high = 0.07 if "5 times" in name else 0.06  # an extreme: the sentence promises 6 in 100, rounded
            cells.append(
                Cell(f"null, skewed test, {title}", make, false_claim, 0.0, high, options={"method": "skewed"})
            )
            if "5 times" not in name:
                cells.append(Cell(f"said limit of the t-test, {title}", make, false_claim, 0.0, 0.11))
    for k, n in ((4, 5), (8, 10)):
        title, make = f"null, skewed test, equal spread, {k} arms, {n} seeds", one_factor([0] * k, n)
        cells.append(Cell(title, make, false_claim, *limits, options={"method": "skewed"}))
    pairs = one_factor([0] * 4, 5, skewed([1], 3))
    title = "null, skewed test, no baseline, skewed arm varies 3 times, 4 arms, 5 seeds"
    cells.append(Cell(title, pairs, false_claim, *limits, no_base, {"method": "skewed"}))
    for where in ("anywhere", "where it is worst"):
        for n in (5, 10):
            title = f"null, 40 % diverge {where}, {n} seeds"
            cells.append(Cell(title, diverging(n, 0.4, where), wins_on_survivors, *limits))
    for k, first, most in ((2, 2, 8), (4, 3, 8), (4, 3, 20), (8, 3, 20)):
        make = sequential([0] * k, first, most)
        cells.append(Cell(f"null, sequential looks, {k} arms, {first} to {most} seeds", make, false_claim, *limits))
    strict, screen = Asked(settings={"alpha": 0.01}), Asked(baseline=False, design="plackett_burman")
    return [
        *cells,
        Cell("null, alpha 0.01, 4 arms, 5 seeds", one_factor([0] * 4, 5), false_claim, 0.0, 0.012, strict),
        Cell("null, factorial 3 x 3, 3 seeds", crossed((3, 3), 3), false_claim, *limits, no_base),
        Cell("null, factorial 2 x 2 x 2 with a baseline, 3 seeds", crossed((2, 2, 2), 3), false_claim, *limits),
        Cell("null, Plackett-Burman of 7, 1 seed", plackett_burman(1), false_claim, *limits, screen),
        Cell("null, Plackett-Burman of 7, 2 seeds", plackett_burman(2), false_claim, *limits, screen),
    ]


def rule_cells() -> list[Cell]:
    """False answers on margins and targets, where the truth stands on the boundary."""
    limits, margin = (0.0, 0.06), 1.5 * SD
    asked = Asked(settings={"margin": f"{margin:g}nats"})
    target = Asked(settings={"target": f"{LEVEL:g}"})
    steps = list(range(100, 1100, 100))
    late = [3, 2.5, 2, 1.5, 1, 0.5, 0, -2, -3, -4]  # beyond the target from step 800 on
    better, worse, both = [0, -1.5, -1.5, -1.5], [0, 1.5, 1.5, 1.5], [0, 1.5, -1.5, 1.5]
    no_base, uneven = Asked(False, settings=asked.settings), spread(1, 3)
    return [
        Cell("margin, superior at its limit, 4 arms", one_factor(better, 5), says("superior"), *limits, asked),
        Cell("margin, equivalent at its limit, 4 arms", one_factor(both, 5), says("equivalent"), *limits, asked),
        Cell("margin, not inferior at its limit, 4 arms", one_factor(worse, 5), says("not inferior"), *limits, asked),
        Cell("margin, superior, no baseline, 2 arms", one_factor([0, -1.5], 5), says("superior"), *limits, no_base),
        Cell("margin, superior, unequal spread", one_factor(better, 5, uneven), says("superior"), *limits, asked),
        Cell("target, at its limit, 1 arm, 5 seeds", one_factor([0], 5), reaches, *limits, target),
        Cell("target, at its limit, 4 arms, 5 seeds", one_factor([0] * 4, 5), reaches, *limits, target),
        Cell("target, flat curve at its limit", falling(5, steps, [0] * 10), stops_before(10_000), *limits, target),
        Cell("target, step before the true one", falling(10, steps, late), stops_before(800), *limits, target),
    ]  # fmt: skip


def coverage_cells() -> list[Cell]:
    """Coverage of printed intervals: 95 %, one point to either side; above it for heavy tails."""
    limits, some = (0.94, 0.96), [0, 0.5, -1, 2]
    moderated = {"method": "moderated"}
    cells = [Cell(f"coverage, 4 arms, {n} seeds", one_factor(some, n), covered, *limits) for n in (2, 3, 5, 10)]
    cells += [
        Cell("coverage, no baseline, 4 arms, 5 seeds", one_factor(some, 5), covered, *limits, Asked(False)),
        Cell("coverage, one arm varies 3 times, 5 seeds", one_factor(some, 5, spread(1, 3)), covered, *limits),
        Cell("coverage, heavy tails, 5 seeds", one_factor(some, 5, heavy), covered, 0.94, 1.0),
        Cell("coverage, moderated, 4 arms, 3 seeds", one_factor(some, 3), covered, *limits, options=moderated),
        *(Cell(f"coverage, for all comparisons together, 4 arms, {n} seeds", one_factor(some, n), covered_together,
               0.94, 1.0) for n in (2, 5)),
        Cell("coverage, headline, 2 arms, 5 seeds", one_factor([0, 1], 5), covered_in_headline, *limits, Asked(False)),
        Cell("coverage, headline, 2 arms, baseline, 5 seeds", one_factor([0, -1], 5), covered_in_headline, *limits),
        # Intervals that hold at all looks at once: the last one alone covers more often.
        *(Cell(f"coverage, sequential looks, {k} arms, 3 to 8 seeds", sequential(effects, 3, 8), covered, 0.94, 1.0)
          for k, effects in ((2, [0, -1]), (4, some))),
        *headline_cells(),
    ]  # fmt: skip
    return cells


def headline_cells() -> list[Cell]:
    """Coverage of the interval of the largest of several differences, of which the headline names it alone.

    The true differences to the baseline lie half a printed digit apart from the digits: an end that is rounded to the
    truth itself would count as covering, which is one study in a hundred.
    """
    some, many, weak = [0, 0.55, -0.95, 1.95], [0, *[-1.95] * 3], [0, *[-0.95] * 7]
    equal, apart = [0, *[-3.95] * 7], list(np.linspace(0, -8, 8))
    makes: dict[str, tuple[Callable[..., Simulated], Asked, float]] = {
        # Above 0.96: weak winners of 5 seeds, where the means that fit have gaps, and equal winners, whose differences
        # to one baseline are correlated, so that k * alpha/k is more than their chance.
        "4 arms, 5 seeds": (one_factor(some, 5), Asked(), 0.98),
        "many winners, 10 seeds": (one_factor(many, 10), Asked(), 0.96),
        "weak winners, 5 seeds": (one_factor(weak, 5), Asked(), 0.98),
        "equal winners, 8 arms, 10 seeds": (one_factor(equal, 10), Asked(), 0.97),
        "spread winners, 8 arms, 10 seeds": (one_factor(apart, 10), Asked(), 0.96),
        "weak winners, 3 seeds": (one_factor([0, *[-1.95] * 7], 3), Asked(), 0.97),
        "spread winners, no baseline, 8 arms, 3 seeds": (one_factor(apart, 3), Asked(False), 0.96),
        # One that beats all others is told without a number: the rest are studies in which it fell short, and how far
        # differs with its effect.
        "one winner, no baseline, 3 arms, 8 seeds": (one_factor([0, 0, -1.45], 8), Asked(False), 0.98),
    }
    return [
        Cell(f"coverage, headline, {name}", make, covered_in_headline, 0.94, high, asked)
        for name, (make, asked, high) in makes.items()
    ]


def power_cells() -> list[Cell]:
    """Share of studies that find the difference which the planner was asked for, against its promise."""
    from ablatio.report.statistics import power, seeds_needed

    cells = []
    for arms, delta, wanted in ((2, 1.5, 0.8), (2, 3.0, 0.9), (4, 2.0, 0.8), (8, 2.5, 0.8)):
        n = seeds_needed(delta, math.sqrt(2), arms, 0.05, wanted)
        promise = power(n, delta, math.sqrt(2), arms)
        make = one_factor([0, -delta, *[0] * (arms - 2)], n)
        name = f"power, {arms} arms, {delta:g} sd, {n} seeds (promised {promise:.3f})"
        cells.append(Cell(name, make, arm1_wins, promise - 0.05, promise + 0.05))
    for method in ("t", "moderated", "skewed"):  # what a test gains or costs beside the default: no promise
        for k, n, delta in ((8, 3, 2.5), (8, 5, 2.5), (4, 5, 2.5)):
            make = one_factor([0, -delta, *[0] * (k - 2)], n)
            name = f"power, {method}, {k} arms, {n} seeds, {delta} sd"
            cells.append(Cell(name, make, arm1_wins, 0.0, 1.0, options={"method": method}))
    return cells


def all_cells() -> list[Cell]:
    null = sorted(null_cells(), key=lambda cell: str(cell.options.get("method", "")))  # the default test first
    return [*rule_cells(), *coverage_cells(), *power_cells(), *null]


def run_cell(cell: Cell, studies: int) -> dict[str, Any]:
    """Simulate a cell; the random numbers depend on its name alone."""
    from ablatio.report.analysis.findings import find

    rng, started = np.random.default_rng(zlib.crc32(cell.name.encode())), time.perf_counter()
    counts = np.zeros((studies, 2))
    for i in range(studies):
        found = cell.make(rng)
        counts[i] = cell.measure(find(table_of(found, cell.asked), **cell.options).said(), found)
    hits, trials = counts.sum(0)
    share = hits / trials if trials else math.nan
    per_study = counts[:, 1].mean() or 1.0
    error = float((counts[:, 0] - share * counts[:, 1]).std(ddof=1) / math.sqrt(studies) / per_study)
    return {
        "name": cell.name, "studies": studies, "trials": int(trials), "share": round(float(share), 5),
        "standard_error": round(error, 5), **judged(cell, float(share)),
        "seconds": round(time.perf_counter() - started, 1), "commit": commit(),
    }  # fmt: skip


def judged(cell: Cell, share: float) -> dict[str, Any]:
    """The promise of a cell, and whether a share keeps it."""
    return {"low": round(cell.low, 4), "high": round(cell.high, 4), "kept": bool(cell.low <= share <= cell.high)}


def check_folders(count: int) -> dict[str, Any]:
    """Studies in folders through `ablatio report`; sentences that disagree with scipy and statsmodels."""
    from ablatio.cli.report import run

    rng, wrong = np.random.default_rng(200), list[str]()
    with tempfile.TemporaryDirectory() as place:
        for i in range(count):
            arms, seeds = int(rng.integers(2, 7)), int(rng.integers(2, 9))
            effects = [0.0, *rng.normal(0, 2, arms - 1)]
            noise = (normal, heavy, spread(1, 3))[i % 3]
            asked = Asked(baseline=bool(i % 4))
            folder = write_folder(Path(place) / f"study{i}", one_factor(effects, seeds, noise)(rng), asked)
            with contextlib.redirect_stdout(io.StringIO()):
                run([str(folder), "--quiet"])
            report = folder / "report"
            found = problems((report / "report.md").read_text(), (report / "results.csv").read_text())
            wrong += [f"study {i}: {text}" for text in found]
    found = {"name": FOLDERS, "studies": count, "problems": wrong, "kept": not wrong}
    return found | {"commit": commit()}


def main() -> int:
    """Run the cells and write the results; 1 if a promise is not kept."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--studies", type=int, default=5000, help="simulated studies of each cell")
    options.add_argument("--folders", type=int, default=200, help="studies that are written and reported as folders")
    options.add_argument("--only", nargs="+", default=[""], help="cells whose name contains one of these")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--resume", action="store_true", help="keep the cells that the file has")
    options.add_argument("--replace", action="store_true", help="keep the other cells that the file has")
    args = options.parse_args()
    from ablatio.registry.discovery import load

    load()
    cells = {cell.name: cell for cell in all_cells()}
    old = json.loads(args.out.read_text())["cells"] if args.resume or args.replace else []
    made: dict[str, dict[str, Any]] = {c["name"]: c for c in old if c["name"] in (*cells, FOLDERS)}
    for name in made.keys() & cells.keys():
        made[name] |= judged(cells[name], made[name]["share"])

    def chosen(name: str) -> bool:
        return any(word in name for word in args.only) and not (args.resume and name in made)

    for name in filter(chosen, cells):
        made[name] = found = run_cell(cells[name], args.studies)
        mark = "" if found["kept"] else "   NOT KEPT"
        print(f"{found['share']:.4f} ± {found['standard_error']:.4f}  {name}{mark}", flush=True)
        write(args.out, list(made.values()))
    if args.folders and chosen(FOLDERS):
        made[FOLDERS] = found = check_folders(args.folders)
        print(f"{len(found['problems'])} problems in the sentences of {args.folders} folders")
        print(*found["problems"][:20], sep="\n")
        write(args.out, list(made.values()))
    return int(not all(cell["kept"] for cell in made.values()))


if __name__ == "__main__":
    sys.exit(main())
