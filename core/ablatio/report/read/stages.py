"""Stages of recipes: task, inputs, and score before and after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ablatio.config.words import key_of, value_of
from ablatio.report.read.run import Run, inner, object_in, read_folder
from ablatio.sweep.study import Job, label_of

RECIPE = "recipe.json"  # in the folder of a single recipe; a sweep of recipes is a study
OF_CHANCE = ("seed", "out", "name", "trainer")


@dataclass(frozen=True, slots=True)
class Stage:
    """All runs of one stage with the same settings; scores are means over the finished ones.

    arm    the settings that tell it from others; empty if all arms share the stage
    takes  the stages whose runs it starts from
    """

    name: str
    arm: str
    task: str
    takes: Sequence[str]
    runs: int
    done: int
    score: str
    better: str
    before: float | None
    after: float | None
    seconds: float | None


def stages_of(runs: Sequence[Run]) -> list[Stage]:
    """Return the stages of recipes in order; empty if no run is a stage."""
    names = {run.id: run.stage for run in runs}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.stage:
            groups.setdefault((run.stage, label_of(run.arm) if run.arm else ""), []).append(run)
    order = ordered(runs)
    return [
        _stage(*key, groups[key], names) for key in sorted(groups, key=lambda key: order.index(key[0]))
    ]  # a stable sort: arms keep their order


def ordered(runs: Sequence[Run]) -> list[str]:
    """Return the names of stages, each after those that it depends on."""
    names = {run.id: run.stage for run in runs}
    found: list[str] = []

    def put(stage: str) -> None:
        for run in runs:
            if run.stage == stage:
                # Depth first, since a stage may be listed before those that it starts from.
                for taken in run.takes:
                    if (earlier := names.get(taken, "")) and earlier != stage and earlier not in found:
                        put(earlier)
        if stage not in found:
            found.append(stage)

    for run in runs:
        if run.stage:
            put(run.stage)
    return found


def _stage(name: str, arm: str, runs: Sequence[Run], names: Mapping[str, str]) -> Stage:
    done = [run for run in runs if run.done]
    score = next((str(run.main["name"]) for run in done if "name" in run.main), "")
    better = next((str(run.main["better"]) for run in done if "better" in run.main), "")
    return Stage(
        name,
        arm,
        next((str(inner(run.config, "task").get("name", "")) for run in runs), ""),
        [names[taken] for taken in runs[0].takes if taken in names],
        len(runs),
        len(done),
        score,
        better,
        _mean(run.before for run in done),
        _mean(run.scores.get(score) for run in done),
        _mean(run.cost.get("seconds") for run in done),
    )


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def of_recipes(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return (runs of all stages of single recipes, what could not be read).

    The settings in which the recipes' commands differ are the arm; the last stage is the compared run.
    """
    told = [object_in(folder / RECIPE, {"overrides": list, "stages": list}) for folder in folders]
    said = [{key_of(str(text)): value_of(str(text)) for text in one.get("overrides") or ()} for one, _ in told]
    keys = dict.fromkeys(k for one in said for k in one if k.split(".")[0] not in OF_CHANCE)
    axes = [k for k in keys if len({one.get(k) for one in said}) > 1]
    runs = list[Run]()
    for folder, (one, _), words in zip(folders, told, said, strict=True):
        arm = {k: words[k] for k in axes if k in words}
        command = tuple(str(text) for text in one.get("overrides") or ())
        stages = [stage for stage in one.get("stages") or () if isinstance(stage, Mapping)]
        ids = {str(stage.get("stage")): f"{folder.name}/{stage.get('folder')}" for stage in stages}
        for number, stage in enumerate(stages, 1):
            place = folder / str(stage.get("folder"))
            config = object_in(place / "config.json")[0]
            seed = config.get("seed")
            job = Job(
                ids[str(stage.get("stage"))], arm, seed if isinstance(seed, int) else 0, command, config,
                "run" if number == len(stages) else "stage", stage=str(stage.get("stage")),
                takes=tuple(ids[name] for name in _list(stage.get("takes")) if str(name) in ids),
            )  # fmt: skip
            runs.append(replace(read_folder(place, folder.name, job), group=folder.parent.name))
    return runs, [trouble for _, trouble in told if trouble]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
