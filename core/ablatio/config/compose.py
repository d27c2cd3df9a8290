"""Compose a run's config with Hydra and report all its problems at once, with a corrected command that runs."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablatio.config import budget, hydra_habits, kind_lists, yaml_files
from ablatio.config import schema as run_config
from ablatio.config.environment import Path, from_environment
from ablatio.config.hydra_sources import groups, register_with_hydra
from ablatio.config.inherit import Coming, inherited
from ablatio.config.overrides import classify_overrides, key_problem, normal, prefixed
from ablatio.config.words import key_of, value_of
from ablatio.errors import ConfigError, EnvironmentFault, Problem, UserError
from ablatio.registry import parts_file
from ablatio.registry.registry import REGISTRIES, ContractError
from ablatio.storage.paths import shipped

MAIN = "train"
SETTLED = ("steps", "tokens", "epochs", "batch_tokens", "batch_size", "accumulate")  # of the section `train`
PLAIN_LOGGING = {"version", "root", "disable_existing_loggers"}


@dataclass(frozen=True, slots=True)
class Composed:
    """A checked config. `config` is plain and resolved; `overrides` is the command line as given.

    public: the config as it may be written to files: values from the environment stay unresolved
    interpolated: True if some value refers to another (`${...}`)
    """

    config: dict[str, Any]
    public: dict[str, Any]
    overrides: list[str]
    interpolated: bool = False


def compose_run(overrides: Sequence[str], coming: Coming = MappingProxyType({})) -> Composed:
    """Compose and check the config of one run; raise ConfigError with all problems at once.

    coming: configs of planned runs, by their folders; the model of this run may start from one of them
    """
    register_with_hydra()
    yaml_files.take_in(overrides)
    with yaml_files.read_once():
        return _compose_run(overrides, coming)


def _compose_run(overrides: Sequence[str], coming: Coming) -> Composed:
    asked, problems = overrides, hydra_habits.refused(overrides)
    overrides = [text for text in overrides if not hydra_habits.is_refused(text)]
    words = cleaned(overrides, coming)
    good, values, more = classify_overrides(words)
    problems += more
    # All at once first: finding out which override is wrong takes further compositions of 0.24 s each.
    node = None if problems else try_compose(words)
    if node is None:
        node, more = _diagnose(good, values)
        problems += more
    if not problems and node is None:
        _compose(words)  # raises: Hydra refuses the whole although each override alone is valid
    if node is None:
        raise config_error(with_origin(problems, words), [prefixed(o) for o in overrides], coming)
    refuse_hydra_settings(node)
    public, resolved = plain(node)
    interpolated = "${" in repr(OmegaConf.to_container(node, resolve=False))
    wrong = {p.where for p in problems}
    config, more = checked(resolved, overrides)
    problems += [_decoded(p, public) for p in more if p.where not in wrong]
    if problems:
        raise config_error(with_origin(problems, words), [prefixed(o) for o in overrides], coming)
    return Composed(config, with_budget(public, config), list(asked), interpolated)


def checked(resolved: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """(the config with the types of its knobs and the steps of its budget, problems); without problems it can run."""
    # A budget is computed from numbers, which only the check makes sure of.
    if problems := run_config.check(resolved):
        return {}, problems
    return budget.settled(run_config.cast(resolved), overrides)


def with_budget(public: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config for files, with the steps and batches of the checked one where they follow from another setting."""
    train = {k: v for k, v in config["train"].items() if k in SETTLED and v != public["train"].get(k)}
    return {**public, "train": {**public["train"], **train}} if train else public


def cleaned(overrides: Sequence[str], coming: Coming = MappingProxyType({})) -> list[str]:
    """Overrides in Hydra's grammar, preceded by those that the model's origin implies."""
    return [normal(o) for o in inherited(overrides, coming)]


def config_of(node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(public, resolved) config of a node that Hydra composed, checked again because a launcher may have changed it."""
    public, resolved = plain(node)
    if problems := run_config.check(resolved):
        raise ConfigError(problems)
    return public, run_config.cast(resolved)


def _compose(overrides: list[str]) -> Any:
    """The composed node; an error raised by Hydra becomes a ConfigError with Hydra's message."""
    try:
        return _hydra_compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError([Problem("config", _first_lines(error))]) from None


def _hydra_compose(overrides: list[str]) -> Any:
    # Hydra keeps its state in the process, and refuses a second composition otherwise.
    GlobalHydra.instance().clear()
    # A fixed version of Hydra's defaults: with another one a config would mean something else.
    with initialize_config_dir(str(shipped("conf")), version_base="1.3", job_name="ablatio"):
        return compose(MAIN, overrides=overrides, return_hydra_config=True)


def try_compose(overrides: list[str]) -> Any:
    """The node that Hydra composes, with Hydra's own settings; None if Hydra refuses the overrides."""
    try:
        with yaml_files.read_once():
            return _hydra_compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):  # TypeError: range() in a list of options
        return None


def plain(node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config for files, config for the run): in the first, values from the environment stay unresolved."""
    # Otherwise nothing can be removed from a composed node.
    OmegaConf.set_struct(node, False)
    node.pop("hydra", None)
    raw: Any = OmegaConf.to_container(node, resolve=False)
    try:
        resolved: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([_unresolved(error)]) from None
    resolved = kind_lists.without_equal_layers(kind_lists.without_unused(resolved))
    kept = {k: v for k, v in kind_lists.without_equal_layers(raw).items() if k in resolved}
    return _merge_public(kept, resolved, from_environment(node, kept, resolved), ()), resolved


def _merge_public(raw: Any, resolved: Any, open_paths: Collection[Path], here: Path) -> Any:
    """The resolved config, with the values at `open_paths` as they were written."""
    if here in open_paths:
        return raw
    if isinstance(raw, dict):
        return {k: _merge_public(v, resolved[k], open_paths, (*here, k)) for k, v in raw.items()}
    if isinstance(raw, list):
        pairs = enumerate(zip(raw, resolved, strict=True))
        return [_merge_public(a, b, open_paths, (*here, number)) for number, (a, b) in pairs]
    return resolved


def refuse_hydra_settings(node: Any) -> None:
    """Raise ConfigError for settings of Hydra that have no effect, or would build objects from names in the config."""
    hydra: Any = OmegaConf.to_container(node.hydra, resolve=False)
    problems = hydra_habits.of_files(hydra)
    if hydra.get("callbacks"):
        problems.append(hydra_habits.of_hydra("hydra.callbacks"))
    for key in ("job_logging", "hydra_logging"):
        # Beyond these a logging config names classes and factories, which Python's `dictConfig` calls.
        if set(hydra.get(key) or {}) - PLAIN_LOGGING:
            problems.append(hydra_habits.of_hydra(f"hydra.{key}"))
    if problems:
        raise ConfigError(problems)


def _decoded(problem: Problem, public: Any) -> Problem:
    """The problem of a value; for one from the environment, which is text, with the way to read it as a number."""
    raw = public
    for part in problem.where.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    if not isinstance(raw, str) or "oc.env:" not in raw or "oc.decode" in raw:
        return problem
    what = f"{problem.what}; a value from the environment is text, and oc.decode reads it as a number or a list"
    return replace(problem, what=what, fix=f"{problem.where}=${{oc.decode:{raw}}}")


def _unresolved(error: BaseException) -> Problem:
    """Problem of a reference that leads nowhere."""
    text = _first_lines(error)
    missing = re.search(r"Environment variable '([^']*)' not found", text)
    where = re.search(r"full_key: (\S+)", str(error))
    if missing is None:
        return Problem("config", text)
    key, name = where[1] if where else "config", missing[1]
    return Problem(key, f"the environment variable {name} is not set; `export {name}=...` sets it")


def with_origin(problems: Sequence[Problem], overrides: Sequence[str]) -> list[Problem]:
    """Return the problems; one of a value that a YAML file sets names the file."""
    said, origins = {key_of(text) for text in overrides}, dict[str, str]()
    for text in overrides:
        file = yaml_files.options_of(key_of(text)).get(value_of(text).strip("'\""))
        with suppress(OSError, EnvironmentFault, ContractError):
            settings = file.read() if file else {}
            keys = {f"{k}.{knob}" for k, v in settings.items() if isinstance(v, dict) for knob in v} | {*settings}
            origins |= dict.fromkeys(keys - said, file.origin if file else "")
    return [replace(p, what=f"{p.what} (set in {origins[p.where]})") if p.where in origins else p for p in problems]


def _first_lines(error: BaseException) -> str:
    chain: list[str] = []
    while error is not None and len(chain) < 2:
        chain += [line.strip() for line in str(error).splitlines() if line.strip()][:2]
        error = error.__cause__  # type: ignore[assignment]
    return "; ".join(dict.fromkeys(chain))


def _diagnose(good: list[str], values: list[tuple[str, Override]]) -> tuple[Any, list[Problem]]:
    """(the config composed from everything that is valid, the problems of the remaining values)."""
    node = try_compose(good)
    if node is None:
        return None, []
    tree: Any = OmegaConf.to_container(node, resolve=False)
    options = groups()
    problems = {text: key_problem(parsed, tree, options) for text, parsed in values}
    node = try_compose(good + [text for text, problem in problems.items() if problem is None])
    return node, [p for p in problems.values() if p]


def config_error(problems: list[Problem], overrides: list[str], coming: Coming = MappingProxyType({})) -> ConfigError:
    """ConfigError with the problems, and the command with all fixes applied if every problem has one.

    A fix is shown only if the config composed with it no longer has the problem.
    """
    # Of a combination no single setting is wrong: its override stays, and the fix is added.
    wrong = {p.where for p in problems if not p.combination}
    fixes = dict[str, str]()
    for p in problems:  # of one key the first fix
        if "=" in p.fix:
            fixes.setdefault(p.fix.split("=")[0], p.fix)
    kept = [
        o
        for o in overrides
        if o not in wrong and (key := o.lstrip("+").split("=")[0]) not in wrong | set(fixes) and not _lost(key, fixes)
    ]
    repaired = [*kept, *fixes.values()]
    if all("=" in p.fix for p in problems) and repaired != overrides and _left_over(repaired, coming) == set():
        error = ConfigError(problems)
        command = shlex.join(["ablatio", "train", *parts_file.words(), *repaired])
        error.args = (f"{error}\nThis runs: {command}",)
        return error
    known = {p.where for p in problems}
    for number, p in enumerate(problems):
        if "=" in p.fix:
            left = _left_over([*kept, p.fix], coming)
            # A fix that brings another problem would send the user in a circle.
            if left is None or p.fix.split("=")[0] in left or p.where in left or left - known:
                problems[number] = replace(p, fix="")
    return ConfigError(problems)


def _lost(key: str, fixes: Mapping[str, str]) -> bool:
    """True for a knob of a part that a fix replaces by one without this knob."""
    kind, _, knob = key.partition(".")
    option, registry = fixes.get(kind, "").partition("=")[2], REGISTRIES.get(kind)
    if not knob or registry is None or registry.multiple or option not in registry.entries:
        return False
    return knob.partition(".")[0] not in [k.name for k in registry[option].knobs]


def _left_over(overrides: list[str], coming: Coming) -> set[str] | None:
    """Keys with a problem in the config composed from these overrides; None if it cannot be composed."""
    try:
        node = try_compose(cleaned(overrides, coming))
        return None if node is None else {p.where for p in checked(plain(node)[1], overrides)[1]}
    except UserError:
        return None
