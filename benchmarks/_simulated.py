"""Simulated studies: tables without files for thousands of them, and real folders for some."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ablatio.registry.kinds.search_space import Axis
from ablatio.report.read.run import Run
from ablatio.report.read.table import Table
from ablatio.sweep.group_sequential import Boundaries, look_sizes
from ablatio.sweep.sequential_study import SequentialDriver
from ablatio.sweep.study import JOBS, Job, Study, label_of, run_folder, write_job

LEVEL, SD, SEED_SD = 3.2, 0.01, 0.02  # nats: a typical loss, its noise, and the shift that arms of one seed share
METRIC = "val/loss"
NOWHERE = Path("simulated")
Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]  # standard noise of (seeds, arms)


@dataclass(frozen=True)
class Simulated:
    """One study: its true means in nats, its scores (seeds, arms; nan: diverged) and perhaps learning curves.

    arms    settings of each arm; by default one factor
    curves  steps, and scores (seeds, arms, steps)
    looks   record of a sequential study, and which runs it made (seeds, arms)
    """

    truth: Sequence[float]
    scores: np.ndarray
    arms: Sequence[Mapping[str, str]]
    curves: tuple[Sequence[int], np.ndarray] | None = None
    looks: tuple[dict[str, Any], np.ndarray] | None = None

    @property
    def names(self) -> list[str]:
        return [" ".join(arm.values()) for arm in self.arms]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape)


def heavy(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """t with 3 degrees of freedom, sd 1."""
    return rng.standard_t(3, shape) / np.sqrt(3)


def spread(arm: int, factor: float, base: Noise = normal) -> Noise:
    """One arm varies `factor` times as much."""

    def noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        found = base(rng, shape)
        found[:, arm] *= factor
        return found

    return noise


def skewed(arms: Sequence[int], factor: float) -> Noise:
    """Log-normal noise with mean 0 and sd `factor` in these arms, normal noise in the others."""

    def noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        found = rng.standard_normal(shape)
        drawn = np.exp(0.8 * rng.standard_normal(shape)) - np.exp(0.32)
        drawn *= factor / np.sqrt((np.exp(0.64) - 1) * np.exp(0.64))
        found[:, list(arms)] = drawn[:, list(arms)]
        return found

    return noise


def correlated(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """All arms but the first move together (correlation 0.9)."""
    found = rng.standard_normal(shape)
    found[:, 1:] = np.sqrt(0.9) * rng.standard_normal((shape[0], 1)) + np.sqrt(0.1) * found[:, 1:]
    return found


def one_factor(effects: Sequence[float], seeds: int, noise: Noise = normal) -> Callable[..., Simulated]:
    """Arms of one setting: `base`, `arm1` ...; effects in units of SD."""

    def make(rng: np.random.Generator) -> Simulated:
        k = len(effects)
        truth = LEVEL + SD * np.asarray(effects, dtype=float)
        shared = SEED_SD * rng.standard_normal((seeds, 1))
        arms = [{"norm": name} for name in ("base", *(f"arm{i}" for i in range(1, k)))]
        return Simulated(truth.tolist(), truth + shared + SD * noise(rng, (seeds, k)), arms)

    return make


def sequential(effects: Sequence[float], first: int, most: int, noise: Noise = normal) -> Callable[..., Simulated]:
    """Arms of one setting whose seeds come by planned looks, as the driver of a sweep decides."""
    make_all = one_factor(effects, most, noise)
    boundaries = Boundaries.of(look_sizes(first, most)).as_dict()

    def make(rng: np.random.Generator) -> Simulated:
        found = make_all(rng)
        arms = {label_of(arm): i for i, arm in enumerate(found.arms)}
        record: dict[str, Any] = {
            "baseline": next(iter(arms)), "comparisons": len(arms) - 1, "alpha": 0.05, "metric": METRIC, "margin": None,
            "seeds": list(range(1, most + 1)), "boundaries": boundaries, "budget": None, "looks": [], "end": "",
        }  # fmt: skip
        cells: list[Any] = [SimpleNamespace(label=label) for label in arms]

        def jobs_of(cell: Any, seeds: Sequence[int], results: object) -> tuple[list[Job], list[Job]]:
            return [], [Job(f"{cell.label} {s}", found.arms[arms[cell.label]], s, (), {}) for s in seeds]

        driver, results, ran = (
            SequentialDriver(cells, record, jobs_of),
            dict[str, Any](),
            np.zeros(found.scores.shape, bool),
        )
        while jobs := driver.more(results):
            for job in jobs:
                place = job.seed - 1, arms[job.label]
                ran[place] = True
                results[job.id] = {"status": "done", METRIC: float(found.scores[place])}
        return replace(found, looks=(record, ran))

    return make


def diverging(seeds: int, share: float, where: str) -> Callable[..., Simulated]:
    """Two equal arms; runs of the second diverge: `anywhere`, or where its seed would have been among the worst."""

    def make(rng: np.random.Generator) -> Simulated:
        found = one_factor((0, 0), seeds)(rng)
        own = found.scores[:, 1]
        lost = rng.random(seeds) < share if where == "anywhere" else own > np.quantile(own, 1 - share)
        scores = found.scores.copy()
        scores[lost, 1] = np.nan
        return Simulated(found.truth, scores, found.arms)

    return make


def crossed(levels: Sequence[int], seeds: int) -> Callable[..., Simulated]:
    """A full factorial of settings without any effect."""

    def make(rng: np.random.Generator) -> Simulated:
        keys = ("norm", "position", "activation")[: len(levels)]
        arms: list[dict[str, str]] = [{}]
        for key, count in zip(keys, levels, strict=True):
            arms = [arm | {key: f"{key[0]}{i}"} for arm in arms for i in range(count)]
        shape = seeds, len(arms)
        scores = LEVEL + SEED_SD * rng.standard_normal((seeds, 1)) + SD * rng.standard_normal(shape)
        return Simulated([LEVEL] * len(arms), scores, arms)

    return make


def plackett_burman(seeds: int) -> Callable[..., Simulated]:
    """Seven two-level settings in eight arms (cyclic construction) without any effect."""
    first = [1, 1, 1, -1, 1, -1, -1]
    rows = [[first[(i - shift) % 7] for i in range(7)] for shift in range(7)] + [[-1] * 7]
    keys = ("norm", "position", "activation", "init", "schedule", "mlp", "block")

    def make(rng: np.random.Generator) -> Simulated:
        arms = [{k: f"{k[0]}{int(v > 0)}" for k, v in zip(keys, row, strict=True)} for row in rows]
        scores = LEVEL + SEED_SD * rng.standard_normal((seeds, 1)) + SD * rng.standard_normal((seeds, len(arms)))
        return Simulated([LEVEL] * len(arms), scores, arms)

    return make


def falling(seeds: int, steps: Sequence[int], excess: Sequence[float]) -> Callable[..., Simulated]:
    """One arm whose true loss is LEVEL + SD * excess at each step; the noise of a seed is the same at 0.9 at all."""

    def make(rng: np.random.Generator) -> Simulated:
        own = rng.standard_normal((seeds, 1))
        drawn = 0.9 * own + np.sqrt(1 - 0.81) * rng.standard_normal((seeds, len(steps)))
        curves = LEVEL + SD * (np.asarray(excess, dtype=float) + drawn)
        return Simulated([LEVEL + SD * excess[-1]], curves[:, -1:], [{"norm": "base"}], (steps, curves[:, None]))

    return make


@dataclass(frozen=True)
class Asked:
    """How a study is asked: its baseline (the first arm, or none), its design, and settings of the sweep."""

    baseline: bool = True
    design: str = "full"
    settings: Mapping[str, Any] = field(default_factory=dict)


def study_of(found: Simulated, asked: Asked) -> Study:
    keys = dict.fromkeys(k for arm in found.arms for k in arm)
    axes = [Axis(k, tuple(dict.fromkeys(arm[k] for arm in found.arms))) for k in keys]
    seeds = list(range(1, len(found.scores) + 1))
    baseline = dict(found.arms[0]) if asked.baseline else None
    return Study(
        "simulated", design={"name": asked.design}, axes=axes, seeds=seeds, baseline=baseline, settings=asked.settings,
        sequential=found.looks[0] if found.looks else {},
    )  # fmt: skip


def table_of(found: Simulated, asked: Asked) -> Table:
    """The study as the report reads it, without files."""
    runs = []
    for a, arm in enumerate(found.arms):
        for s, score in enumerate(found.scores[:, a].tolist()):
            if found.looks and not found.looks[1][s, a]:
                continue
            done = score == score
            curves = {}
            if found.curves is not None:
                curves = {METRIC: (list(found.curves[0]), found.curves[1][s, a].tolist())}
            runs.append(
                Run(
                    NOWHERE,
                    "simulated",
                    f"{a}-{s + 1}",
                    arm,
                    s + 1,
                    "run",
                    "done" if done else "diverged",
                    scores={METRIC: score} if done else {},
                    main={"name": METRIC, "better": "lower"},
                    curves=curves,
                )
            )
    return Table(study_of(found, asked), [NOWHERE], runs)


def write_folder(folder: Path, found: Simulated, asked: Asked) -> Path:
    """The study as a sweep leaves it on disk."""
    (folder / JOBS).mkdir(parents=True)
    study_of(found, asked).write(folder)
    for a, arm in enumerate(found.arms):
        for s, score in enumerate(found.scores[:, a].tolist()):
            job = Job(f"{a:04x}{s:012x}", arm, s + 1, (*(f"{k}={v}" for k, v in arm.items()), f"seed={s + 1}"), {})
            write_job(folder, job)
            run = run_folder(folder, job.id)
            run.mkdir(parents=True)
            summary = {"status": "done", METRIC: score, "steps": 100, "tokens": 204800, "parameters": 1_000_000}
            summary |= {"score": {"name": METRIC, "value": score, "better": "lower"}}
            (run / "config.json").write_text(json.dumps({"seed": s + 1}))
            (run / "summary.json").write_text(json.dumps(summary))
    return folder
