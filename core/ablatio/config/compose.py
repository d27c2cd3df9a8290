"""Compose a run's config with Hydra and report all its problems at once, with a corrected command that runs."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablatio.config import kind_lists, yaml_files
from ablatio.config import schema as run_config
from ablatio.config.environment import Path, from_environment
from ablatio.config.hydra_sources import groups, register_with_hydra
from ablatio.config.inherit import Coming, inherited
from ablatio.config.overrides import classify_overrides, key_problem, normal, prefixed
from ablatio.errors import ConfigError, Problem, UserError
from ablatio.storage.paths import shipped

MAIN = "train"
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
    with yaml_files.read_once():
        return _compose_run(overrides, coming)


def _compose_run(overrides: Sequence[str], coming: Coming) -> Composed:
    words = cleaned(overrides, coming)
    good, values, problems = classify_overrides(words)
    node = None if problems else try_compose(words)
    if node is None:
        node, more = _diagnose(good, values)
        problems += more
    if not problems and node is None:
        _compose(words)  # raises: Hydra refuses the whole although each override alone is valid
    if node is None:
        raise _config_error(problems, [prefixed(o) for o in overrides], coming)
    refuse_hydra_settings(node)
    public, resolved = plain(node)
    interpolated = "${" in repr(OmegaConf.to_container(node, resolve=False))
    problems += [p for p in run_config.check(resolved) if p.where not in {q.where for q in problems}]
    if problems:
        raise _config_error(problems, [prefixed(o) for o in overrides], coming)
    return Composed(run_config.cast(resolved), public, list(overrides), interpolated)


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
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3", job_name="ablatio"):
        return compose(MAIN, overrides=overrides, return_hydra_config=True)


def try_compose(overrides: list[str]) -> Any:
    """The node that Hydra composes, with Hydra's own settings; None if Hydra refuses the overrides."""
    try:
        with yaml_files.read_once():
            return _hydra_compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def plain(node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config for files, config for the run): in the first, values from the environment stay unresolved."""
    OmegaConf.set_struct(node, False)
    node.pop("hydra", None)
    raw: Any = OmegaConf.to_container(node, resolve=False)
    try:
        resolved: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([Problem("config", _first_lines(error))]) from None
    resolved = kind_lists.without_unused(resolved)
    kept = {k: v for k, v in raw.items() if k in resolved}
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
    """Raise UserError for callbacks and logging handlers: Hydra would build these objects from names in the config."""
    if OmegaConf.select(node, "hydra.callbacks"):
        raise UserError(
            "hydra.callbacks would build objects from names in the config; parts are chosen by name from a registry"
        )
    for key in ("hydra.job_logging", "hydra.hydra_logging"):
        if set(OmegaConf.select(node, key) or {}) - PLAIN_LOGGING:
            raise UserError(
                f"{key} would build handlers from names in the config; leave it at `none`, a run writes its own log"
            )


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


def _config_error(problems: list[Problem], overrides: list[str], coming: Coming) -> ConfigError:
    """ConfigError with the problems and, if it composes, the user's command with all fixes applied."""
    error = ConfigError(problems)
    fixes = {p.fix.split("=")[0]: p.fix for p in problems if "=" in p.fix}
    wrong = {p.where for p in problems if not p.combination}
    kept = [o for o in overrides if o not in wrong and not {o.lstrip("+").split("=")[0]} & (wrong | set(fixes))]
    repaired = [*kept, *fixes.values()]
    if repaired != overrides and _runs(repaired, coming):
        error.args = (f"{error}\nThis runs: {shlex.join(['ablatio', 'train', *repaired])}",)
    return error


def _runs(overrides: list[str], coming: Coming) -> bool:
    node = try_compose(cleaned(overrides, coming))
    return node is not None and not run_config.check(plain(node)[1])
