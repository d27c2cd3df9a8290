"""Do intervals of scaling laws cover, and does the verdict across scales keep its 5 %?

    python benchmarks/validity_scaling.py                          # 5000 studies a cell, 2000 of coverage
    python benchmarks/validity_scaling.py --resume                 # go on to that number of studies
    python benchmarks/validity_scaling.py --replace --only holds   # these cells anew, the others stay
    python benchmarks/validity_scaling.py --epoch svg_extracted_data.csv    # the 245 points of arXiv:2404.10102

Each cell simulates studies with a known truth and counts.  The verdict is read from its sentence, as a person would.
Promised are false verdicts in at most 5 % of the studies, plus one point, and intervals that cover in 95 %, within two
points, or more where the noise has heavy tails.
"""

import argparse
import csv
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _results import commit, read, share_of, write

from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.scaling_verdict import arm_trends, sentences
from ablatio.report.read.run import Run
from ablatio.report.statistics.scaling_law import Chinchilla, fit_law

TRUTH = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}  # arXiv:2203.15556, equation 10
W = np.array([math.log(1.69), math.log(406.4), 0.34, math.log(410.7), 0.28])
FORM = Chinchilla()
NAMES = ("prediction", "new run", *TRUTH)
RESULTS = Path(__file__).parent / "results" / "validity_scaling.json"
ROUND = 250  # studies of a cell after which the others have their turn
FALSE, COVERS = (0.0, 0.06), (0.93, 0.97)  # promised shares of studies


@dataclass(frozen=True)
class Grid:
    """sizes x lengths x seeds runs; noise: sd of a run's log loss; shared: of the shift that a seed's runs share.

    tail: degrees of freedom of Student's t for the noise; 0: normal
    """

    sizes: int = 4
    seeds: int = 1
    noise: float = 0.003
    shared: float = 0.0
    tail: int = 0
    draws: int = 400


GRIDS = {
    "16 runs, one seed": Grid(),
    "27 runs, three seeds": Grid(sizes=3, seeds=3),
    "27 runs, three seeds with a shared shift": Grid(sizes=3, seeds=3, shared=0.003),
    "18 runs, two seeds": Grid(sizes=3, seeds=2),
    "25 runs, noise 1 %": Grid(sizes=5, noise=0.01),
    "16 runs, heavy tails": Grid(tail=4),
}


def coverage(grid: Grid, numbers: range) -> Counter[str]:
    """Studies of these numbers whose 95 % intervals contain the truth, at twice the largest size and length."""
    n, d = (np.repeat(v.ravel(), grid.seeds) for v in np.meshgrid(
        np.geomspace(4e7, 1.6e10, grid.sizes), np.geomspace(1e9, 5e11, grid.sizes)))  # fmt: skip
    seeds = np.tile(np.arange(grid.seeds), len(n) // grid.seeds)
    place = {"N": 2 * float(n.max()), "D": 2 * float(d.max())}
    truth = float(FORM.log_loss(W, {k: np.array([v]) for k, v in place.items()})[0])
    held = Counter[str]()
    for study in numbers:
        rng = np.random.default_rng(study)
        noise = _noise(rng, grid.tail, len(n) + 1) * grid.noise
        shift = rng.normal(0, grid.shared, grid.seeds + 1)
        losses = np.exp(FORM.log_loss(W, {"N": n, "D": d}) + noise[:-1] + shift[seeds])
        fit = fit_law("chinchilla", {"N": n, "D": d}, losses, seeds=seeds, draws=grid.draws, seed=study)
        held["prediction"] += _inside(fit.loss_interval(place), math.exp(truth))
        held["new run"] += _inside(fit.run_interval(place), math.exp(truth + noise[-1] + shift[-1]))
        for name, value in TRUTH.items():
            held[name] += _inside(fit.coefficient_interval(name), value)
    return held


def _noise(rng: np.random.Generator, tail: int, n: int) -> np.ndarray:
    return rng.standard_t(tail, n) / math.sqrt(tail / (tail - 2)) if tail else rng.normal(size=n)


def _inside(interval: tuple[float, float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


@dataclass(frozen=True)
class Scales:
    """A study over sizes.

    gain       of each arm over the baseline, in nats; slope: change of the gain per tenfold of the parameters
    noise      sd of a run at each size; shared: of a shift per seed, and per seed and arm
    """

    sizes: tuple[float, ...] = (1e6, 4e6, 1.6e7)
    lengths: tuple[float, ...] = (1e7,)
    seeds: int = 3
    arms: int = 2
    gain: float = 0.02
    slope: float = 0.0
    noise: tuple[float, ...] = (0.005, 0.005, 0.005)
    shared: float = 0.01
    tail: int = 0
    keys: Mapping[str, str] = field(default_factory=lambda: {"N": "model.d_model", "D": "train.steps"})


NULLS = {
    "3 sizes, 3 seeds": Scales(),
    "3 sizes, 3 seeds, unequal spread": Scales(noise=(0.02, 0.008, 0.002)),
    "3 sizes, 3 seeds, heavy tails": Scales(tail=3),
    "3 sizes, 5 seeds, 5 arms": Scales(seeds=5, arms=5),
    "3 sizes, 3 lengths, 4 seeds": Scales(lengths=(1e7, 4e7, 1.6e8), seeds=4),
    "2 sizes, 4 seeds, no gain": Scales(sizes=(1e6, 4e6), noise=(0.005, 0.005), seeds=4, gain=0.0),
    "6 sizes, one seed": Scales(sizes=tuple(1e6 * 2.0**k for k in range(6)), noise=(0.005,) * 6, seeds=1),
}
SHRINKS = {
    "gain gone after two decades, 5 seeds": Scales(
        sizes=(1e5, 1e6, 1e7), seeds=5, gain=0.02, slope=-0.02, noise=(0.005,) * 3
    ),
    "gain doubles per decade, 5 seeds": Scales(
        sizes=(1e5, 1e6, 1e7), seeds=5, gain=0.02, slope=0.02, noise=(0.005,) * 3
    ),
}
HOLDS = {
    "constant gain, 8 seeds": Scales(seeds=8, gain=0.05, noise=(0.003,) * 3),
    "change at the margin, 8 seeds": Scales(
        seeds=8, gain=0.05, slope=-0.25 * 0.05 / math.log10(16), noise=(0.003,) * 3
    ),
}
KINDS = {
    "grows": "grows with", "shrinks": "shrinks with", "reverses": "reverses with", "changes": "but at neither end",
    "holds": " holds with", "open": "is not resolved", "not testable": "cannot be tested",
}  # fmt: skip


def study_arms(study: Scales, rng: np.random.Generator) -> list[Arm]:
    """Arms of one simulated study; the first is the baseline."""
    middle = float(np.mean(np.log10(study.sizes)))
    seed_shift = rng.normal(0, study.shared, study.seeds)
    made = []
    for arm in range(study.arms):
        own_shift = rng.normal(0, study.shared, study.seeds)
        for size, spread in zip(study.sizes, study.noise, strict=True):
            for length in study.lengths:
                gain = 0.0 if arm == 0 else study.gain + study.slope * (math.log10(size) - middle)
                loss = 3 - 0.2 * math.log10(size) - 0.1 * math.log10(length) - gain
                values = loss + seed_shift + own_shift + spread * _noise(rng, study.tail, study.seeds)
                made.append(_arm(f"a{arm}", study, size, length, values))
    return made


def _arm(name: str, study: Scales, size: float, length: float, values: np.ndarray) -> Arm:
    settings = {"norm": name, study.keys["N"]: f"{size:g}"}
    if len(study.lengths) > 1:
        settings[study.keys["D"]] = f"{length:g}"
    of = {"parameters": size, "tokens": length}
    runs = [Run(Path(), "", f"{name}{s}", settings, s, "run", "done", size=of) for s in range(len(values))]
    label = " ".join(f"{k}={v}" for k, v in settings.items())
    return Arm(label, label, settings, runs, baseline=name == "a0", values=dict(enumerate(values.tolist())))


def verdicts(study: Scales, numbers: range) -> Counter[str]:
    """Studies of these numbers that say each word of at least one arm; `failed hold-out` counts refused predictions."""
    counts = Counter[str]()
    for number in numbers:
        said = sentences(arm_trends(study_arms(study, np.random.default_rng(number))), "nats")
        kinds = {kind for text in said for kind, words in KINDS.items() if words in text.split(":")[0]}
        assert kinds, said
        counts.update(kinds)
        counts["any change"] += bool(kinds & {"grows", "shrinks", "reverses", "changes"})
        counts["failed hold-out"] += any("nothing is predicted" in text for text in said)
    return counts


def noise_free() -> dict[str, Any]:
    """Largest relative error of the constants from noise-free losses, and the seconds of the fit."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(4e7, 1.6e10, 8), np.geomspace(1e9, 5e11, 8)))
    begun = time.perf_counter()
    fit = fit_law("chinchilla", {"N": n, "D": d}, np.exp(FORM.log_loss(W, {"N": n, "D": d})), draws=0)
    errors = [abs(fit.coefficients[k] / v - 1) for k, v in TRUTH.items()]
    return {"largest relative error": max(errors), "seconds": time.perf_counter() - begun}


def epoch_points(path: Path) -> dict[str, Any]:
    """Fit the points that Epoch AI read from Chinchilla's figure 4 (2404.10102), without the five highest losses."""
    rows = sorted(csv.DictReader(path.open()), key=lambda r: -float(r["loss"]))[5:]
    n, c, z = (np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss"))
    fit = fit_law("chinchilla", {"N": n, "D": c / 6 / n}, z, draws=400)
    return {
        "points": len(rows),
        "fitted": {k: [v, *fit.coefficient_interval(k)] for k, v in fit.coefficients.items()},
        "published": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    }


@dataclass(frozen=True)
class Cell:
    """Studies of one kind, what is counted in them, and the limits that are promised for some of the shares."""

    section: str
    name: str
    made: Grid | Scales
    measure: Callable[[Any, range], Counter[str]]
    counted: tuple[str, ...]
    promised: Mapping[str, tuple[float, float]]

    @property
    def title(self) -> str:
        return f"{self.section}: {self.name}"


def all_cells() -> list[Cell]:
    said = (*KINDS, "any change", "failed hold-out")
    cells = [Cell("no interaction with scale", n, c, verdicts, said, {"any change": FALSE}) for n, c in NULLS.items()]
    opposite = {name: "grows" if of.slope < 0 else "shrinks" for name, of in SHRINKS.items()}
    cells += [
        Cell("interaction with scale", n, c, verdicts, said, {opposite[n]: FALSE, "holds": FALSE})
        for n, c in SHRINKS.items()
    ]
    cells += [
        Cell("holds", n, c, verdicts, said, {"holds" if c.slope else "any change": FALSE}) for n, c in HOLDS.items()
    ]
    cells += [
        Cell("coverage", n, c, coverage, NAMES, dict.fromkeys(NAMES, (COVERS[0], 1.0) if c.tail else COVERS))
        for n, c in GRIDS.items()
    ]
    return cells


def run_cell(cell: Cell, studies: int, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Simulate a cell up to this number of studies, on top of those that it had `before`; study i has the seed i."""
    begun, first = time.perf_counter(), before["studies"] if before else 0
    counts = cell.measure(cell.made, range(first, studies))
    if before:
        counts.update({name: round(share["share"] * first) for name, share in before["shares"].items()})
    shares = {name: share_of(counts[name], studies, *cell.promised.get(name, (0.0, 1.0))) for name in cell.counted}
    return {
        "name": cell.title, "studies": studies, "shares": shares,
        "kept": all(share["kept"] for share in shares.values()),
        "seconds": round(time.perf_counter() - begun + (before["seconds"] if before else 0), 1), "commit": commit(),
    }  # fmt: skip


def main() -> int:
    """Run the cells and write the results; 1 if a promise is not kept."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--studies", type=int, default=5000, help="of each cell on verdicts")
    options.add_argument("--coverage", type=int, default=2000, help="studies of each cell on coverage")
    options.add_argument("--only", default="", help="cells whose name contains this, such as coverage")
    options.add_argument(
        "--epoch", type=Path, help="data/svg_extracted_data.csv of epoch-research/analyzing-chinchilla"
    )
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--resume", action="store_true", help="go on with the studies that the file has")
    options.add_argument("--replace", action="store_true", help="keep the other cells that the file has")
    args = options.parse_args()
    cells = {cell.title: cell for cell in all_cells() if args.only in cell.title}
    old = read(args.out) if args.resume or args.replace else {}
    made = {c.title: old[c.title] for c in all_cells() if c.title in old and (args.resume or c.title not in cells)}
    fits = json.loads(args.out.read_text()).get("fits", {}) if args.out.exists() else {}
    fits["noise free"] = noise_free()
    if args.epoch:
        fits["epoch"] = epoch_points(args.epoch)
    # In rounds, so that all cells have results when it is stopped; --resume goes on with them.
    for round_end in range(ROUND, max(args.studies, args.coverage) + ROUND, ROUND):
        for name, cell in cells.items():
            studies = min(round_end, args.coverage if cell.section == "coverage" else args.studies)
            if made.get(name, {"studies": 0})["studies"] < studies:
                made[name] = run_cell(cell, studies, made.get(name))
                write(args.out, [made[c.title] for c in all_cells() if c.title in made], fits=fits)
    for name, found in made.items():
        shown = {k: s["share"] for k, s in found["shares"].items() if s["share"]}
        print(name, found["studies"], shown, "" if found["kept"] else "NOT KEPT")
    return int(not all(cell["kept"] for cell in made.values()))


if __name__ == "__main__":
    sys.exit(main())
