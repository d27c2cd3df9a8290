"""Do losses of single documents give a test of two settings more power?  Simulated, with seeds as what is sampled.

    python benchmarks/validity_documents.py        # 20,000 studies a cell; results/validity_documents.json

The claim of a report is on a setting, so it has to hold for new seeds.  All runs are scored on the same documents d,
and run (arm a, seed s) has the losses

    L[a, s, d] = mu[d] + load[d] * luck[a, s] + effect[a, d] + noise[a, s, d]

Everything is in sd of the paired difference of two runs.  The sizes below are those of 24 runs (two norms, 12 seeds,
300 steps, `eval=[held_out]`, whose losses by document stand in items.jsonl): the luck of a run moves all documents, and
what it does to one document beyond that is small.

seeds      the paired t-test of the report: one mean over the documents for each seed
documents  one difference for each document, of the means over seeds (paired by document as in arXiv:2411.00640): its
           sample are the documents, so it tests these runs and not the settings
weights    as `seeds`, with the documents weighted by 1 / variance of their residuals over the seeds
control    as `seeds`, with a control variate: the contrast of documents that luck moves much and little, whose
           regression is taken out (its directions are taken as known, which favors it)
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from ablatio.report.statistics.paired_tests import t_test

RESULTS = Path(__file__).parent / "results" / "validity_documents.json"
DOCUMENTS, ALPHA = 64, 0.05
LOAD, NOISE = (
    0.04,
    0.08,
)  # sd over documents of the loads, whose mean is 1; of a document's residual in a paired difference
BATCH = 2000  # studies at a time


@dataclass(frozen=True)
class Cell:
    """effect: mean over the documents; like_luck: it follows the loads; spread: sd over documents of its own part."""

    name: str
    seeds: int = 5
    effect: float = 0.0
    like_luck: bool = False
    spread: float = 0.0


CELLS = [
    *(Cell(f"no effect, {n} seeds", n) for n in (3, 5, 10)),
    *(Cell(f"no effect on the mean, sd {x} by document, 5 seeds", spread=x) for x in (0.03, 0.3)),
    *(Cell(f"effect of 2, the same for each document, {n} seeds", n, 2.0) for n in (3, 5)),
    *(Cell(f"effect of 2, by document as luck is, {n} seeds", n, 2.0, like_luck=True) for n in (3, 5)),
]


def draw(cell: Cell, studies: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Paired differences (studies, seeds, documents), and the loads (studies, documents) with mean 1."""
    loads = 1 + LOAD * rng.normal(size=(studies, DOCUMENTS))
    loads /= loads.mean(1, keepdims=True)
    own = cell.spread * rng.normal(size=(studies, DOCUMENTS))
    effect = cell.effect * (loads if cell.like_luck else 1.0) + own - own.mean(1, keepdims=True)
    luck = rng.normal(size=(studies, cell.seeds, 1))
    noise = NOISE * rng.normal(size=(studies, cell.seeds, DOCUMENTS))
    return loads[:, None] * luck + effect[:, None] + noise, loads


def by_seeds(d: Any, loads: Any) -> Any:
    """Two-sided p over the seeds of the mean over the documents."""
    return t_test(d.mean(2))[-1]


def by_documents(d: Any, loads: Any) -> Any:
    """Two-sided p over the documents of the mean over the seeds."""
    return t_test(d.mean(1))[-1]


def by_weights(d: Any, loads: Any) -> Any:
    """Two-sided p over the seeds of a weighted mean over the documents."""
    apart = d - d.mean(1, keepdims=True) - d.mean(2, keepdims=True) + d.mean((1, 2), keepdims=True)
    weights = 1 / apart.var(1)
    return t_test((d * (weights / weights.sum(1, keepdims=True))[:, None]).sum(2))[-1]


def by_control(d: Any, loads: Any) -> Any:
    """Two-sided p of the intercept of mean = intercept + slope * contrast, taking the contrast to be 0 on average."""
    y, contrast = d.mean(2), (d * (loads - 1)[:, None]).mean(2)  # (studies, seeds)
    x = np.stack([np.ones_like(contrast), contrast], -1)
    inverse = np.linalg.inv(np.swapaxes(x, 1, 2) @ x)
    found = inverse @ np.swapaxes(x, 1, 2) @ y[..., None]
    free = y.shape[1] - 2
    variance = ((y - (x @ found)[..., 0]) ** 2).sum(1) / free
    return 2 * special.stdtr(free, -np.abs(found[:, 0, 0]) / np.sqrt(variance * inverse[:, 0, 0]))


METHODS: Mapping[str, Callable[[Any, Any], Any]] = {
    "seeds": by_seeds, "documents": by_documents, "weights": by_weights, "control": by_control,
}  # fmt: skip


def simulate(cell: Cell, studies: int, seed: int) -> dict[str, Any]:
    """Share of studies in which each method finds a difference."""
    rng, hits = np.random.default_rng(seed), dict.fromkeys(METHODS, 0)
    for _ in range(studies // BATCH or 1):
        d, loads = draw(cell, min(studies, BATCH), rng)
        for name, p_of in METHODS.items():
            hits[name] += int((p_of(d, loads) <= ALPHA).sum())
    drawn = min(studies, BATCH) * (studies // BATCH or 1)
    return {"cell": cell.name, "studies": drawn, **{name: round(count / drawn, 4) for name, count in hits.items()}}


def main() -> None:
    """Simulate all cells and write their shares."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--studies", type=int, default=20_000)
    options.add_argument("--out", type=Path, default=RESULTS)
    args = options.parse_args()
    found = [simulate(cell, args.studies, seed) for seed, cell in enumerate(CELLS)]
    print(*(json.dumps(row) for row in found), sep="\n")
    written = {"date": time.strftime("%Y-%m-%d"), "cells": found}
    args.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
