"""Arms that are whole recipes: `ablatio train -m recipe=instructgpt stages.ppo.alignment.kl_coef=0.05,0.2 seed=1,2`.

Each stage of each arm is a job of the study, and `takes` lists the jobs whose runs it starts from.  Its config refers
to them as `runs/ID`.  An id hashes the settings of its job, which name the runs that *it* starts from, back to the
first stage; so stages of two arms with the same settings, seed and inputs are one job.  It runs once and both arms
continue from the same weights: that makes sweeps of recipes affordable and the comparison fair.

Nothing else knows of recipes: the engine starts a job when the jobs that it depends on are done, and ledger, resume,
retry and launchers work as for any job.  Runs of the last stage are compared (role `run`), the others (role `stage`)
are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ablatio.config import schema as run_config
from ablatio.config.compose import Composed
from ablatio.config.inherit import Coming
from ablatio.config.words import key_of, quoted, value_of
from ablatio.errors import ConfigError, Problem
from ablatio.registry.kinds.search_space import Arm
from ablatio.registry.registry import REGISTRIES
from ablatio.sweep import request, size_matching
from ablatio.sweep.arms import Cell, Planner, job_id, nameless
from ablatio.sweep.recipes.plan import ONE, RecipeRequest, Staged, compose_stages, sorted_for, split, words_of
from ablatio.sweep.recipes.schema import RECIPE, Recipe, find
from ablatio.sweep.request import SweepRequest
from ablatio.sweep.study import Job, placed, run_of


@dataclass(frozen=True, slots=True)
class RecipeCell(Cell):
    """An arm with its stages, composed for the first seed; `composed` is that of the last stage.

    said    command line of the arm
    seeded  stages with a seed of their own: they run once for all seeds
    """

    stages: tuple[Staged, ...] = ()
    said: tuple[str, ...] = ()
    seeded: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        """Id that is equal for arms with the same meaning."""
        return " ".join(job_id(stage.composed.config) for stage in self.stages)


class RecipePlanner(Planner):
    """Planner whose cells are recipes, with one job per stage."""

    def __init__(self, sweep: SweepRequest) -> None:
        super().__init__(sweep)
        self._made: dict[tuple[str, ...], Composed] = {}
        _refuse(sweep)

    def made(self, arm: Arm, overrides: Sequence[str]) -> RecipeCell:
        """Compose all stages of an arm."""
        said = _read(overrides)[1]
        seeded = frozenset(n for n, words in said.one.items() if any(key_of(w) == request.SEED for w in words))
        stages = tuple(self._stages(overrides, self.sweep.seeds[0]))
        return RecipeCell(arm, stages[-1].composed, {}, stages, tuple(overrides), seeded)

    def _stages(self, overrides: Sequence[str], seed: int) -> list[Staged]:
        """Compose the stages with a seed, with `runs/ID` where they start from another run."""
        recipe, said = _read([*overrides, f"{request.SEED}={seed}"])
        place = [f"{key}={quoted(value)}" for key, value in said.place.items()]

        def compose(words: Sequence[str], coming: Coming) -> Composed:
            key = tuple(words)  # runs to start from are named by their content
            if key not in self._made:
                self._made[key] = self.composer.compose(words, coming)
            return self._made[key]

        return compose_stages(recipe, said, lambda name: place, lambda name, made: run_of(job_id(made.config)), compose)

    def jobs(self, cell: Cell, seed: int) -> list[Job]:
        """One job per stage; the last has the role `run`."""
        assert isinstance(cell, RecipeCell)
        stages = self._with_seed(cell, seed)
        ids = {stage.name: job_id(stage.composed.config) for stage in stages}
        command = (*nameless(cell.said), f"{request.SEED}={seed}")
        before: dict[str, set[str]] = {}  # the stage and all that it depends on
        found = list[Job]()
        for stage in stages:
            before[stage.name] = {stage.name}.union(*(before[name] for name in stage.takes))
            told = {k: v for k, v in cell.arm.items() if split(k)[0] in ("", *before[stage.name])}
            config = {k: v for k, v in stage.composed.public.items() if k != run_config.SWEEP}
            job = Job(
                ids[stage.name], told, int(stage.composed.config[request.SEED]), command, config, "stage",
                stage=stage.name, takes=tuple(dict.fromkeys(ids[name] for name in stage.takes)),
            )  # fmt: skip
            found.append(job)
        return [*found[:-1], replace(found[-1], arm=cell.arm, seed=seed, role="run")]

    def applicable(self, wish: Arm) -> tuple[Arm, list[str]]:
        """Return (the arm without settings that do not apply, its overrides), as for single runs.

        `stages.ppo.alignment.kl_coef` does not apply if ppo's alignment varies and has no kl_coef.
        """
        pairs = {key: f"{key}={value}" for key, value in wish.items()}
        recipe, said = _read([*self.sweep.fixed, *pairs.values()])
        words = {stage.name: words_of(recipe, said, stage) for stage in recipe.stages}

        def has(text: str) -> bool:
            stage, setting = split(key_of(text))
            kind, _, knob = setting.partition(".")
            if not self._varies(key_of(text)):
                return True
            return any(_has(words[name], kind, knob) for name in ([stage] if stage else words))

        arm = {key: value for key, value in wish.items() if has(pairs[key])}
        kept = [text for text in self.sweep.fixed if has(text)]
        self.used |= {*arm, *map(key_of, kept)}
        return arm, [*kept, *(pairs[key] for key in arm)]

    def _varies(self, key: str) -> bool:
        """True for a knob of a kind of which stages of different arms have different options."""
        stage, setting = split(key)
        kind, _, knob = setting.partition(".")
        return bool(knob) and bool({kind, f"{ONE}{stage}.{kind}"} & {axis.key for axis in self.sweep.axes})

    def _knobs(self) -> dict[str, str]:
        return {key: value_of(text) for text in self.sweep.fixed if self._varies(key := key_of(text))}

    def _with_seed(self, cell: RecipeCell, seed: int) -> Sequence[Staged]:
        """The stages with another seed; composed anew only if other settings may depend on it."""
        if seed == self.sweep.seeds[0]:
            return cell.stages
        if any(stage.composed.interpolated for stage in cell.stages):
            return self._stages(cell.said, seed)
        runs: dict[str, str] = {}
        found = []
        for stage in cell.stages:
            own = {} if stage.name in cell.seeded else {request.SEED: seed}
            old = stage.composed
            config, public = ({**placed(node, runs), **own} for node in (old.config, old.public))
            runs[run_of(job_id(old.config))] = run_of(job_id(config))
            found.append(Staged(stage.name, stage.what, stage.takes, Composed(config, public, old.overrides)))
        return found


def _read(overrides: Sequence[str]) -> tuple[Recipe, RecipeRequest]:
    """(recipe of an arm, its settings)."""
    name = next(value_of(text) for text in overrides if key_of(text) == RECIPE)
    recipe = find(name)
    return recipe, sorted_for(recipe, [text for text in overrides if key_of(text) != RECIPE])


def _has(words: Sequence[str], kind: str, knob: str) -> bool:
    """True if the option that a stage chooses has the knob, or the stage does not choose one."""
    chosen = [value_of(text) for text in words if key_of(text) == kind]
    if not chosen or kind not in REGISTRIES:
        return True
    entry = REGISTRIES[kind].entries.get(chosen[-1])
    return entry is not None and entry.knob(knob.split(".")[0]) is not None


def _refuse(sweep: SweepRequest) -> None:
    """Refuse settings that need arms of one run."""
    settings, why = sweep.settings, "and an arm of this sweep is a recipe"
    problems = []
    if settings["tune"]:
        problems.append(Problem("tune", f"{settings['tune']} is tuned with trials of one run, {why}", "tune=null"))
    if settings["match"] in size_matching.MEASURES:
        problems.append(Problem("match", f"{settings['match']} are made equal run by run, {why}", "match=none"))
    if problems:
        raise ConfigError(problems)
