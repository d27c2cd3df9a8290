"""Checked arms: refused and duplicate ones are recorded, the others become jobs."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablatio.config import budget
from ablatio.config import schema as run_config
from ablatio.config.compose import Composed
from ablatio.config.compose_many import Composer, has, is_value
from ablatio.config.grammar import parse
from ablatio.config.hydra_sources import groups
from ablatio.config.suggestions import unknown_key
from ablatio.config.words import value_of
from ablatio.errors import AblatioError, ConfigError, Problem
from ablatio.registry.kinds.search_space import Arm
from ablatio.registry.registry import REGISTRIES
from ablatio.sweep import request
from ablatio.sweep.recipes.plan import split
from ablatio.sweep.request import SweepRequest
from ablatio.sweep.study import Job, Role, label_of
from ablatio.training.budget import with_steps
from ablatio.training.run_folder import earlier_id

ORIGIN = ("model", "model.start", "model.path")  # settings that choose parts
ENOUGH = 8  # stop after this many faulty arms: the rest fail alike


@dataclass(frozen=True, slots=True)
class Cell:
    """One checked arm.  `more`: settings that make it comparable with others, such as a narrower d_ff."""

    arm: Arm
    composed: Composed
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The arm as text: `norm=rmsnorm position=rope`."""
        return label_of(self.arm)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its resolved config."""
        return self.composed.config

    @property
    def id(self) -> str:
        """Id that is equal for arms with the same meaning."""
        return job_id(self.config)


class Planner:
    """Turns arms into checked cells; records refused arms, duplicates, and the settings that took effect."""

    def __init__(self, sweep: SweepRequest) -> None:
        self.sweep = sweep
        self.composer = Composer()
        self.refused: list[tuple[Arm, list[Problem]]] = []
        self.same: dict[str, str] = {}  # arm -> its duplicate
        self.used: set[str] = set()
        self._ids: dict[str, Arm] = {}
        self._tried: set[tuple[tuple[str, str], ...]] = set()

    def cells(self, arms: Iterable[Arm]) -> list[Cell]:
        """Return a cell for each runnable arm, duplicates once.  Raises ConfigError for mistakes in arms."""
        mistakes: list[tuple[Arm, list[Problem]]] = []
        made, total = list[Cell](), 0
        for total, wish in enumerate(arms, 1):  # noqa: B007 (the number of arms)
            try:
                cell = self.cell(wish)
            except ConfigError as error:
                mistakes.append((self.applicable(wish)[0], error.problems))
                if len(mistakes) == ENOUGH:
                    break
                continue
            made += [cell] if cell else []
        if mistakes:
            raise ConfigError(by_problem(mistakes, total))
        self.refuse_unused()
        return made

    def refuse_unused(self) -> None:
        """Raise ConfigError for axes and knobs that none of the arms so far has: they would change nothing."""
        values = {axis.key: ",".join(axis.values) for axis in self.sweep.axes} | self._knobs()
        if unused := [key for key in values if key not in self.used]:
            raise ConfigError([self._unused(key, values[key]) for key in unused])

    def refuse_unused_of_search(self) -> None:
        """`refuse_unused` for a search, which does not list its arms: tries each option of each kind that varies."""
        first = self.sweep.first
        self.used |= {axis.key for axis in self.sweep.axes}
        for axis in self.sweep.axes:
            for value in axis.values if axis.key in REGISTRIES else ():
                self.applicable({**first, axis.key: value})
        self.refuse_unused()

    def cell(self, wish: Arm) -> Cell | None:
        """Return the cell of an arm; None if refused or equal to an earlier one.  Raises ConfigError for a mistake."""
        arm, overrides = self.applicable(wish)
        key = tuple(sorted(arm.items()))
        if key in self._tried:
            return None
        self._tried.add(key)
        try:
            cell = self.made(arm, overrides)
        except ConfigError as error:
            if wrong := [p for p in error.problems if not p.combination]:
                raise ConfigError(wrong) from None
            self.refused.append((arm, error.problems))
            return None
        found = self._ids.setdefault(cell.id, arm)
        if found is not arm:
            self.same[label_of(arm)] = label_of(found)
            return None
        return cell

    def made(self, arm: Arm, overrides: Sequence[str]) -> Cell:
        """Compose a cell from an arm's overrides."""
        return Cell(arm, with_steps(self.composer.compose(overrides)))

    def applicable(self, wish: Arm) -> tuple[Arm, list[str]]:
        """Return (the arm without settings that do not apply, its overrides).

        `norm.eps` does not apply if the chosen norm has no eps; a fixed knob of a kind that varies is dropped likewise.
        """
        shared = [text for text in self.sweep.fixed if not self._value_key(text)]
        pairs = {key: f"{key}={value}" for key, value in wish.items()}
        shape = self.composer.tree([*shared, *(t for t in pairs.values() if not self._value_key(t))])
        if shape is None:  # only Hydra can compose it, and reports what is wrong
            self.used |= {*pairs, *self._knobs()}
            return wish, [*self.sweep.fixed, *pairs.values()]
        dropped = {key for key in self._knobs() if not has(shape[0], key)}
        kept = [text for text in self.sweep.fixed if self._value_key(text) not in dropped]
        arm = {k: v for k, v in wish.items() if not self._value_key(pairs[k]) or has(shape[0], k)}
        self.used |= {*arm, *(self._knobs().keys() - dropped)}
        return arm, [*kept, *(pairs[key] for key in arm)]

    def _knobs(self) -> dict[str, str]:
        """{key: value} of the fixed knobs of kinds that vary, which some arms may not have."""
        varied = {axis.key.split(".")[0] for axis in self.sweep.axes} & REGISTRIES.keys()
        found = {key: value_of(text) for text in self.sweep.fixed if (key := self._value_key(text))}
        return {key: value for key, value in found.items() if key.split(".")[0] in varied}

    @staticmethod
    def _value_key(text: str) -> str:
        """Key of an override that sets a plain value; else an empty string."""
        parsed = parse(text)
        own = parsed is not None and is_value(parsed) and parsed.key_or_group not in ORIGIN
        return parsed.key_or_group if parsed is not None and own else ""

    def _unused(self, key: str, values: str) -> Problem:
        """The problem of an axis or a knob that applies to no arm, with the nearest key that would."""
        bare = split(key)[1]
        whose, section = key.removesuffix(bare), bare.split(".")[0]
        known = {f"{kind}.{k.name}" for kind, r in REGISTRIES.items() if r.in_run for e in r for k in e.knobs}
        known |= {f"{n}.{k.name}" for n, s in run_config.SECTIONS.items() for k in run_config.section_knobs(s)}
        if bare in known:
            having = [e.name for e in REGISTRIES[section] if e.knob(bare.split(".", 1)[1])]
            why = f"no arm has it; it is a knob of {section}={', '.join(having)}"
            return Problem(key, why, f"{whose}{section}={having[0]}")
        entries = REGISTRIES[section].entries if section in REGISTRIES else {}
        options = [v for a in self.sweep.axes if a.key in (section, f"{whose}{section}") for v in a.values]
        tree = (self.composer.tree([t for t in self.sweep.fixed if not self._value_key(t)]) or ({},))[0]
        if theirs := {k.name: k.default for option in options if option in entries for k in entries[option].knobs}:
            tree = {**tree, section: theirs}
        problem = unknown_key(bare, values, tree, groups())
        fix = f"{whose}{problem.fix}" if problem.fix and self._composes(whose, key, problem.fix) else ""
        return Problem(key, f"no arm has it: {problem.what}", fix)

    def _composes(self, whose: str, key: str, fix: str) -> bool:
        """True if the first value of a corrected setting composes; that of a stage of a recipe is not tried."""
        others = [text for text in self.sweep.fixed if self._value_key(text) != key]
        try:
            return bool(whose) or bool(self.composer.compose([*others, fix.split(",")[0]]))
        except AblatioError:
            return False

    def composed(self, cell: Cell, more: Mapping[str, str] | None = None) -> Composed:
        """Compose a cell with further settings."""
        settings = {**cell.more, **(more or {})}
        shared = nameless(cell.composed.overrides)
        shared = budget.without(shared) if budget.STEPS in settings else shared
        return with_steps(self.composer.compose([*shared, *(f"{k}={v}" for k, v in settings.items())]))

    def jobs(self, cell: Cell, seed: int) -> list[Job]:
        """All jobs of an arm with a seed."""
        return [self.job(cell, seed)]

    def job(
        self,
        cell: Cell,
        seed: int,
        *,
        more: Mapping[str, str] | None = None,
        role: Role = "run",
        until: int | None = None,
    ) -> Job:
        """One run of a cell; `more`: settings beyond the cell's own."""
        block = self.sweep.blocks.get(seed)
        if block or more or cell.more or self.composer.interpolated:
            composed = self.composed(cell, {**(more or {}), **(block or {request.SEED: str(seed)})})
        else:  # the seed is the only difference
            known = cell.composed
            seeded = {**known.config, request.SEED: seed}, {**known.public, request.SEED: seed}
            composed = Composed(*seeded, [*nameless(known.overrides), f"{request.SEED}={seed}"])
        public = {k: v for k, v in composed.public.items() if k != run_config.SWEEP}
        tried = dict(more or {}) if role == "trial" else {}
        return Job(job_id(composed.config), cell.arm, seed, tuple(composed.overrides), public, role, until, tried=tried)


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """Deduplicate jobs by id: a job that several arms or seeds need runs once."""
    found: dict[str, Job] = {}
    for job in jobs:
        found[job.id] = found[job.id].shared_with(job) if job.id in found else job
    return [*found.values()]


def nameless(overrides: Sequence[str]) -> list[str]:
    """Drop `name=`: a repeated single run would find its folder taken."""
    return [text for text in overrides if not text.startswith("name=")]


def job_id(config: Mapping[str, Any]) -> str:
    """Hash of the settings that determine the numbers and of the source of each part that they name."""
    parts = {
        f"{entry.kind}/{entry.name}": entry.digest
        for entry, _ in run_config.chosen(config)
        if not REGISTRIES[entry.kind].volatile
    }
    # The names of options stand in `parts`, but not their order; the alphabetical one is left out, as in older studies.
    orders = [[*(config.get(r.kind) or ())] for r in REGISTRIES.values() if r.ordered and r.usual_names]
    given = [order for order in orders if order != sorted(order)]
    made = json.dumps([earlier_id(config), parts, *given], sort_keys=True)
    return hashlib.sha256(made.encode()).hexdigest()[:16]


def by_problem(found: Sequence[tuple[Arm, list[Problem]]], total: int) -> list[Problem]:
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
