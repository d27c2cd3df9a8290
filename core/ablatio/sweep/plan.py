"""The plan of a sweep: its arms, those that cannot run and why, and its jobs; all are known before the first starts."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ablatio import config as run_config
from ablatio.compose import Composed
from ablatio.errors import ConfigError, Problem
from ablatio.kinds import designs
from ablatio.registry import REGISTRIES
from ablatio.sweep import asked
from ablatio.sweep.asked import MAX_JOBS, Asked
from ablatio.sweep.compose import Composer, has, is_value
from ablatio.sweep.study import Arm, Job, Refused, Role, Study, label_of
from ablatio.tasks.folder import run_id

ENOUGH = 8  # arms with mistakes in them: the next ones have the same


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm as it will run: checked, with the seed of the first block."""

    arm: Arm
    composed: Composed


class Result(Protocol):
    """What became of a job: the summary of its run; empty when it failed."""

    @property
    def job(self) -> Job: ...

    @property
    def summary(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class Plan:
    """What is to be done.

    study   goes into the folder before the first run
    jobs    in the order in which they should run: all arms of one seed, then the next
    config  that of the first arm, for what concerns the folder: `out` and `name`
    """

    study: Study
    jobs: list[Job]
    config: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    launcher: Sequence[str] = ()

    def more(self, results: Sequence[Result]) -> list[Job]:
        """The jobs that follow from all that is known: new ones, or old ones with a later `until`."""
        return []


def plan_sweep(overrides: Sequence[str]) -> Plan:
    """The plan of `ablatio train -m OVERRIDES`; ConfigError with everything that is wrong with it."""
    sweep = asked.read(overrides)
    planner = Planner(sweep)
    cells = planner.cells(arms_of(sweep))
    if not cells:
        raise ConfigError(planner.problems())
    jobs = [planner.job(cell, seed) for seed in sweep.seeds for cell in cells]
    return Plan(planner.study(), jobs, cells[0].composed.config, sweep.settings.values, sweep.launcher)


def design_of(sweep: Asked) -> Any:
    """The design, made from the axes and its own knobs."""
    chosen = dict(sweep.settings.design)
    return designs.build(chosen.pop("name"), chosen, axes=sweep.axes, baseline=sweep.first)


def arms_of(sweep: Asked) -> Iterable[Arm]:
    """The design's arms, counted before any is made."""
    design = design_of(sweep)
    count = design.count() * len(sweep.seeds)
    if count > MAX_JOBS:
        name = sweep.settings.design["name"]
        raise asked.too_many(f"design={name} with {len(sweep.seeds)} seed{'s'[: len(sweep.seeds) > 1]}", count)
    return list(design.arms())


class Planner:
    """Makes checked cells of arms; remembers what was refused, what was the same, and which axes came to bear."""

    def __init__(self, sweep: Asked) -> None:
        self.sweep = sweep
        self.composer = Composer()
        self.refused: list[tuple[Arm, list[Problem]]] = []
        self.same: dict[str, str] = {}  # arm -> the one that it equals
        self.used: set[str] = set()
        self._ids: dict[str, Arm] = {}

    def cells(self, arms: Iterable[Arm]) -> list[Cell]:
        """One cell for each arm that can run; equal ones once.  ConfigError when arms hold mistakes."""
        made: list[Cell] = []
        mistakes: list[tuple[Arm, list[Problem]]] = []
        tried: set[tuple[tuple[str, str], ...]] = set()
        total = 0
        for wish in arms:
            total += 1
            arm, overrides = self.applicable(wish)
            key = tuple(sorted(arm.items()))
            if key in tried:
                continue
            tried.add(key)
            try:
                composed = self.composer.compose(overrides)
            except ConfigError as error:
                wrong = [p for p in error.problems if not p.combination]
                (mistakes if wrong else self.refused).append((arm, wrong or error.problems))
                if len(mistakes) == ENOUGH:
                    break
                continue
            found = self._ids.setdefault(job_id(composed.config), arm)
            if found is not arm:
                self.same[label_of(arm)] = label_of(found)
            else:
                made.append(Cell(arm, composed))
        if mistakes:
            raise ConfigError(_by_problem(mistakes, total))
        if unused := [axis.key for axis in self.sweep.axes if axis.key not in self.used]:
            raise ConfigError([self._unused(key) for key in unused])
        return made

    def applicable(self, wish: Arm) -> tuple[Arm, list[str]]:
        """(the arm without what it cannot have, its overrides): `norm.eps` says nothing where the norm has no eps.

        A fixed knob of a kind that varies is dropped likewise.
        """
        shared = [text for text in self.sweep.fixed if not self._value_key(text)]
        pairs = {key: f"{key}={value}" for key, value in wish.items()}
        shape = self.composer.tree([*shared, *(t for t in pairs.values() if not self._value_key(t))])
        if shape is None:  # only Hydra can tell, and it will say what is wrong
            self.used |= pairs.keys()
            return wish, [*self.sweep.fixed, *pairs.values()]
        varied = {axis.key.split(".")[0] for axis in self.sweep.axes} & REGISTRIES.keys()
        kept = [
            text
            for text in self.sweep.fixed
            if not (key := self._value_key(text)) or key.split(".")[0] not in varied or has(shape[0], key)
        ]
        arm = {k: v for k, v in wish.items() if not self._value_key(pairs[k]) or has(shape[0], k)}
        self.used |= arm.keys()
        return arm, [*kept, *(pairs[key] for key in arm)]

    @staticmethod
    def _value_key(text: str) -> str:
        """The key, where an override gives a plain value; else an empty string."""
        parsed = asked.parse(text)
        return parsed.key_or_group if parsed is not None and is_value(parsed) else ""

    def _unused(self, key: str) -> Problem:
        """An axis that no arm has: the nearest key that one has."""
        section = key.split(".")[0]
        known = {f"{kind}.{k.name}" for kind, r in REGISTRIES.items() if r.in_run for e in r for k in e.knobs}
        known |= {f"{n}.{k.name}" for n, s in run_config.SECTIONS.items() for k in run_config.section_knobs(s)}
        values = ",".join(next(a.values for a in self.sweep.axes if a.key == key))
        if key in known:
            having = [e.name for e in REGISTRIES[section] if e.knob(key.split(".", 1)[1])]
            why = f"no arm has it; it is a knob of {section}={', '.join(having)}"
            return Problem(key, why, f"{section}={having[0]}")
        problem = run_config.unknown(key, key, known)
        fix = f"{problem.fix}={values}" if problem.fix else ""
        return Problem(key, f"no arm has it: {problem.what}" if fix else "no arm has it", fix)

    def job(
        self,
        cell: Cell,
        seed: int,
        *,
        more: Mapping[str, str] | None = None,
        role: Role = "run",
        until: int | None = None,
    ) -> Job:
        """One run of a cell.  `more` are settings beside those of the arm: what was tuned or resized."""
        said = [text for text in cell.composed.overrides if not text.startswith("name=")]
        overrides = [*said, *(f"{k}={v}" for k, v in (more or {}).items()), f"seed={seed}"]
        composed = self.composer.compose(overrides)
        public = {k: v for k, v in composed.public.items() if k != run_config.SWEEP}
        return Job(job_id(composed.config), cell.arm, seed, tuple(overrides), public, role, until)

    def problems(self) -> list[Problem]:
        """Why no arm can run."""
        return _by_problem(self.refused, len(self.refused))

    def study(self) -> Study:
        sweep = self.sweep
        return Study(
            name=sweep.name,
            question=str(sweep.study.get("question", "")),
            expected=str(sweep.study.get("expected", "")),
            design=dict(sweep.settings.design),
            axes=sweep.axes,
            seeds=sweep.seeds,
            baseline=sweep.baseline,
            refused=[Refused(arm, "; ".join(f"{p.where}: {p.what}" for p in found)) for arm, found in self.refused],
            settings=sweep.settings.changed,
            overrides=sweep.overrides,
            same=dict(self.same),
        )


def job_id(config: Mapping[str, Any]) -> str:
    """Hash of the settings that make the numbers, and of the source of each part that they name."""
    parts = {f"{entry.kind}/{entry.name}": entry.digest for entry, _ in run_config.chosen(config)}
    made = json.dumps([run_id(config), parts], sort_keys=True)
    return hashlib.sha256(made.encode()).hexdigest()[:16]


def _by_problem(found: Sequence[tuple[Arm, list[Problem]]], total: int) -> list[Problem]:
    """Each problem once, with the arms that have it."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for arm, problems in found:
        for p in problems:
            where.setdefault((p.where, p.what, p.fix), []).append(label_of(arm))
    return [Problem(key, f"{what} ({_which(arms, total)})", fix) for (key, what, fix), arms in where.items()]


def _which(arms: Sequence[str], total: int) -> str:
    if len(arms) == total:
        return "every arm"
    return arms[0] if len(arms) == 1 else f"{len(arms)} of {total} arms, such as {arms[0]}"
