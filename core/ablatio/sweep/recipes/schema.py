"""Recipes: stages that follow one another, each a run that may start from the results of earlier ones.

    # InstructGPT (Ouyang et al. 2022): demonstrations, a reward model, then PPO against it.
    paper: arXiv:2203.02155
    overrides: [size=tiny, source=sentiment]
    stages:
      - stage: sft
        what: the best answers are shown
        overrides: [task=sft, train.steps=400]
      - stage: reward
        what: a model of which answer is preferred
        overrides: [task=reward, model=run, "model.path=${stage.sft}"]

Overrides are written as for `ablatio train`; those at the top apply to all stages.  `${stage.sft}` is the folder of an
earlier stage, inserted as text: nothing in a recipe is evaluated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablatio.config import yaml_files
from ablatio.config.schema import is_run_name
from ablatio.registry.registry import ContractError

RECIPE, FILE = "recipe", "recipe.json"
KEYS, STAGE_KEYS = ("paper", "overrides", "stages"), ("stage", "what", "overrides")


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of a recipe: its name, a description, and its settings."""

    name: str
    what: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe; overrides apply to all stages."""

    name: str
    paper: str
    overrides: tuple[str, ...]
    stages: tuple[Stage, ...]


def load(file: yaml_files.File) -> Recipe:
    """Read a recipe from a file.  Raises ContractError if it is malformed."""
    data = _mapping(file.read(), KEYS, str(file.path))
    stages = data.get("stages")
    if not isinstance(stages, list) or not stages:
        raise ContractError(f"{file.path}: `stages` is {stages!r:.40}; a list of one stage or more was expected")
    found = tuple(_stage(node, f"{file.path}, stage {number}") for number, node in enumerate(stages, 1))
    names = [stage.name for stage in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ContractError(f"{file.path}: two stages are called {twice[0]}")
    return Recipe(file.name, str(data.get("paper", "")), _overrides(data, str(file.path)), found)


def _stage(node: Any, where: str) -> Stage:
    data = _mapping(node, STAGE_KEYS, where)
    name = data.get("stage")
    if not isinstance(name, str) or not is_run_name(name) or "." in name:
        raise ContractError(f"{where}: `stage` is {name!r:.40}; a name of letters, digits, `_` and `-` was expected")
    return Stage(name, str(data.get("what", "")), _overrides(data, where))


def _mapping(data: Any, keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    unknown = [key for key in data if key not in keys] if isinstance(data, dict) else [type(data).__name__]
    if unknown:
        raise ContractError(f"{where}: `{unknown[0]}` came, and it may have {', '.join(keys)}")
    found: Mapping[str, Any] = data
    return found


def _overrides(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = data.get("overrides") or []
    if not isinstance(found, list) or not all(isinstance(text, str) and "=" in text for text in found):
        raise ContractError(f"{where}: `overrides` is {found!r:.60}; a list of settings, key=value, was expected")
    return tuple(found)


def find(name: str) -> Recipe:
    """Return a recipe by name.  Raises ConfigError if there is none, UserError if its file is no recipe."""
    from ablatio.config.overrides import no_option
    from ablatio.errors import ConfigError, UserError

    yaml_files.take_in([f"{RECIPE}={name}"])
    files = yaml_files.options_of(RECIPE)
    if name not in files:
        raise ConfigError([no_option(RECIPE, name, list(files))])
    try:
        return load(files[name])
    except ContractError as error:
        form = "stages: [{stage: first, overrides: [train.steps=500]}]"
        raise UserError(f"{error}\n    try: in this file, {form}; `ablatio list {RECIPE}` shows others") from None


def folder_name(number: int, stage: str) -> str:
    """01-sft: listings of the folder show the stages in order."""
    return f"{number:02d}-{stage}"
