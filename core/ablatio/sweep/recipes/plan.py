"""Plan a recipe: its stages with the settings of the command line, composed and checked before the first one runs.

A setting on the command line applies to all stages (`seed=2`, `size=tiny`); `stages.sft.train.steps=50` applies to one
stage and takes precedence.  A setting given again replaces the recipe's; choosing another option
(`optimizer=lion`) drops the recipe's knobs of that kind.  Tokenizer settings apply to stages that start from scratch:
an existing model brings its own tokenizer.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ablatio.config.budget import BUDGETS
from ablatio.config.compose import Composed, compose_run
from ablatio.config.inherit import Coming
from ablatio.config.schema import NAME_PATTERN, Run, is_run_name, section_knobs
from ablatio.config.words import key_of, quoted, value_of
from ablatio.errors import ConfigError, Problem, UserError, did_you_mean
from ablatio.registry.registry import REGISTRIES
from ablatio.sweep.recipes.schema import RECIPE, Recipe, Stage, find, folder_name

ONE = "stages."  # prefix of a setting of one stage
REFERENCE = re.compile(r"\$\{stage\.([^}]*)\}")
OWN = ("task", "model", "model.start", "model.path")  # each stage has its own
PLACE = ("out", "name")  # of the recipe's folder; those of stages follow from it
Compose = Callable[[Sequence[str], Coming], Composed]


@dataclass(frozen=True, slots=True)
class Staged:
    """A composed stage; `takes`: the earlier stages that it depends on."""

    name: str
    what: str
    takes: tuple[str, ...]
    composed: Composed


@dataclass(frozen=True, slots=True)
class Planned(Staged):
    """A stage with the folder it runs in."""

    folder: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned recipe.  overrides: the command that makes the same again, including the folder's name."""

    recipe: Recipe
    folder: Path
    overrides: tuple[str, ...]
    stages: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """A sorted command line: settings of all stages, of single stages, and the recipe's folder."""

    every: tuple[str, ...]
    one: Mapping[str, tuple[str, ...]]
    place: Mapping[str, str]


def split(key: str) -> tuple[str, str]:
    """Split a key into (stage, setting): `stages.sft.train.steps` -> sft, train.steps; stage "" means all."""
    if not key.startswith(ONE):
        return "", key
    stage, _, setting = key.removeprefix(ONE).partition(".")
    return stage, setting


def plan_recipe(overrides: Sequence[str]) -> Plan:
    """Plan `ablatio train recipe=NAME OVERRIDES`.  Raises ConfigError with the problems of all stages."""
    named = [value_of(text) for text in overrides if key_of(text) == RECIPE]
    if len(named) != 1:
        raise UserError(
            f"{len(named)} recipes came ({', '.join(named)}), one was expected\n    try: recipe={named[-1]}"
        )
    recipe = find(named[0])
    said = sorted_for(recipe, [text for text in overrides if key_of(text) != RECIPE])
    name = said.place.get("name") or f"{recipe.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    folder = Path(said.place["out"]).expanduser() / name
    folders = {s.name: folder / folder_name(n, s.name) for n, s in enumerate(recipe.stages, 1)}
    found = compose_stages(
        recipe,
        said,
        places=lambda stage: (f"out={quoted(str(folder))}", f"name={folders[stage].name}"),
        path_of=lambda stage, composed: str(folders[stage]),
    )
    stages = tuple(Planned(s.name, s.what, s.takes, s.composed, folders[s.name]) for s in found)
    again = tuple(text for text in overrides if key_of(text) != "name")
    return Plan(recipe, folder, (*again, f"name={name}"), stages)


def merge_overrides(*layers: Iterable[str]) -> tuple[str, ...]:
    """Merge layers of settings: later ones replace the same key, and the knobs of an option they choose."""
    found: list[str] = []
    for layer in map(tuple, layers):
        keys = {key_of(text) for text in layer}
        keys |= set(BUDGETS) if keys & set(BUDGETS) else set()  # a run has one budget: the later one
        knobs = tuple(f"{key}." for key in keys if split(key)[1] in REGISTRIES)
        found = [text for text in found if key_of(text) not in keys and not key_of(text).startswith(knobs)]
        found += layer  # duplicates within one layer stay, for composition to refuse
    return tuple(found)


def sorted_for(recipe: Recipe, overrides: Sequence[str]) -> RecipeRequest:
    """Sort the command line of a recipe, without `recipe=`."""
    names = [stage.name for stage in recipe.stages]
    every, one, place = list[str](), dict[str, tuple[str, ...]](), {"out": str(_default("out"))}
    for text in overrides:
        key, first = key_of(text), key_of(text).split(".")[0]
        if key.startswith(ONE):
            stage, setting = split(text.lstrip("+~"))
            if stage not in names or not setting:
                raise _no_stage(text, stage, names)
            if key_of(setting) in PLACE:
                raise UserError(
                    f"{text} came: the folder of a stage follows from the recipe's\n    try: name=my-recipe"
                )
            one[stage] = (*one.get(stage, ()), setting)
        elif key in PLACE:
            place[key] = _plain(text)
        elif key in OWN:
            raise UserError(
                f"{text} came for all stages, and each has its own {key}\n"
                f"    try: {ONE}{names[0]}.{text}, which is of the stage {names[0]} alone"
            )
        elif first in names and first not in REGISTRIES:
            raise UserError(f"{text} came; a setting of one stage begins with `{ONE}`\n    try: {ONE}{text}")
        else:
            every.append(text)
    if "name" in place and not is_run_name(place["name"]):
        what = f"{place['name']!r} is not a valid folder name; expected {NAME_PATTERN}"
        raise ConfigError([Problem("name", what, "name=my-recipe")])
    return RecipeRequest(tuple(every), one, place)


def _default(name: str) -> Any:
    return next(knob.default for knob in section_knobs(Run) if knob.name == name)


def _plain(text: str) -> str:
    """Parse the value of a setting in Hydra's grammar."""
    try:
        return str(OverridesParser.create().parse_override(text).value())
    except HydraException:
        what = f"{text!r} is no setting; write key=value, and quote special characters"
        raise ConfigError([Problem(text, what)]) from None


def _no_stage(text: str, stage: str, names: Sequence[str]) -> UserError:
    return UserError(
        f"{text} came, and there is no stage `{stage}`{did_you_mean(stage, names)}\n"
        f"    there are {', '.join(names)}; try: {ONE}{names[0]}.train.steps=50"
    )


def compose_stages(
    recipe: Recipe,
    said: RecipeRequest,
    places: Callable[[str], Sequence[str]],
    path_of: Callable[[str, Composed], str],
    compose: Compose = compose_run,
) -> list[Staged]:
    """Compose each stage with the configs of earlier ones.  Raises ConfigError with the problems of all stages.

    places   overrides for a stage's own folder
    path_of  where a stage will lie, for those that depend on it
    """
    found, coming, lost = list[Staged](), dict[str, Mapping[str, Any]](), set[str]()
    problems: dict[str, Problem] = {}
    known = {stage.name: stage.name for stage in recipe.stages}  # a stage that failed to compose has only its name
    for number, stage in enumerate(recipe.stages):
        earlier = [s.name for s in recipe.stages[:number]]
        words = words_of(recipe, said, stage)
        takes = tuple(dict.fromkeys(name for text in words for name in REFERENCE.findall(text)))
        if any(name in lost for text in words if key_of(text) == "model.path" for name in REFERENCE.findall(text)):
            lost.add(stage.name)  # its model is unknown
            continue
        try:
            words = tuple(_filled(text, stage.name, known, earlier) for text in words)
            composed = compose([*words, *places(stage.name)], coming)
        except ConfigError as error:
            problems |= {str(p): p for p in (_told(p, stage.name, said) for p in error.problems)}
            lost.add(stage.name)
            continue
        known[stage.name] = path_of(stage.name, composed)
        coming[known[stage.name]] = composed.public
        found.append(Staged(stage.name, stage.what, takes, composed))
    if problems:
        raise ConfigError([*problems.values()])
    return found


def words_of(recipe: Recipe, said: RecipeRequest, stage: Stage) -> tuple[str, ...]:
    """Overrides of a stage: the recipe's, those for all stages, those for this one."""
    words = merge_overrides(recipe.overrides, stage.overrides, said.every, said.one.get(stage.name, ()))
    if not takes_model(words):
        return words
    spoken = [text for text in said.every if key_of(text).split(".")[0] == "tokenizer"]
    return tuple(text for text in words if text not in spoken)


def takes_model(words: Iterable[str]) -> bool:
    """True if the overrides start from an existing model."""
    return any(text in ("model=run", "model=hf", "model.start=run", "model.start=hf") for text in words)


def _filled(text: str, stage: str, known: Mapping[str, str], earlier: Sequence[str]) -> str:
    """Replace `${stage.NAME}` in a setting by the folder of that earlier stage."""
    key, _, value = text.partition("=")
    if "${stage." not in value:
        return text
    whole = REFERENCE.fullmatch(value.strip("\"'"))
    if whole is None:
        raise ConfigError([Problem(key, f"{value} came; a reference is the whole value, as in {key}=${{stage.sft}}")])
    if whole[1] not in earlier:
        near, there = did_you_mean(whole[1], earlier), ", ".join(earlier) or "none"
        what = f"{value} came, and {stage} has no earlier stage `{whole[1]}`{near}; there are {there}"
        raise ConfigError([Problem(key, what)])
    return f"{key}={quoted(known[whole[1]])}"


def _told(problem: Problem, stage: str, said: RecipeRequest) -> Problem:
    """Report a problem under its name on the command line: that of one stage, or of all."""
    if key_of(problem.where) in {key_of(text) for text in said.every}:
        return problem
    fix = f"{ONE}{stage}.{problem.fix}" if problem.fix else ""
    return replace(problem, where=f"{ONE}{stage}.{problem.where}", fix=fix)
