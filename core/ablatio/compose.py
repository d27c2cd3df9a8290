"""Hydra composes the config; the registries are its options, through the scheme `registry://`."""

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablatio import config as run_config
from ablatio import plugins
from ablatio.errors import ConfigError, Problem, UserError
from ablatio.paths import shipped
from ablatio.registry import REGISTRIES

MAIN = "train"
BASE = "settings"
ADDED = ("experiment", "preset", run_config.SWEEP)
MAX_ARMS = 10_000


class RegistrySource(ConfigSource):
    """Each part is the option `<kind>/<name>`, made when it is chosen; `settings` has the sections' defaults."""

    @staticmethod
    def scheme() -> str:
        return "registry"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        path = config_path.strip("/")
        return path in REGISTRIES or path in ("", run_config.SWEEP)

    def is_config(self, config_path: str) -> bool:
        path = _bare(config_path)
        kind, _, name = path.partition("/")
        if kind == run_config.SWEEP:
            return name in sweep_files()
        return path == BASE or (kind in REGISTRIES and name in REGISTRIES[kind].entries)

    def load_config(self, config_path: str) -> ConfigResult:
        path = _bare(config_path)
        if not self.is_config(path):
            raise ConfigLoadError(f"there is no {path}")
        kind, _, name = path.partition("/")
        package: str | None = None
        if path == BASE:
            content: Any = run_config.defaults()
        elif kind == run_config.SWEEP:
            content, package = read_yaml(sweep_files()[name]), "_global_"
        else:
            entry = REGISTRIES[kind].entries[name]
            content = entry.defaults
            if REGISTRIES[kind].many:
                package = f"{kind}.{name}"
            else:
                content = {"name": name} | content
        # Flags on DictConfig do not matter here: our own check looks at every value after the composition.
        return ConfigResult("registry", "registry://", OmegaConf.create(content), {"package": package})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        path = config_path.strip("/")
        groups = [*REGISTRIES, run_config.SWEEP] if path == "" and results_filter != ObjectType.CONFIG else []
        if results_filter == ObjectType.GROUP:
            return sorted(groups)
        if path == run_config.SWEEP:
            return sorted(sweep_files())
        return sorted(REGISTRIES[path].entries) if path in REGISTRIES else sorted(groups)


class AblatioSearchPath(SearchPathPlugin):
    """The registries, then the YAML folders of plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ablatio", "registry://")
        for source in plugins.sources():
            if source.conf is not None and source.provider.dist != "ablatio":
                search_path.append(source.provider.dist, f"file://{source.conf}")


def _bare(path: str) -> str:
    return path.strip("/").removesuffix(".yaml")


def read_yaml(path: Path) -> Any:
    """A YAML file of plain values; keys that would build objects are refused."""
    import yaml

    data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    plugins.refuse_objects(data, str(path))
    return data


def sweep_files() -> dict[str, Path]:
    """Studies by name: ours, and those in the folder that a plugin calls conf/sweep."""
    found = {p.stem: p for p in sorted(shipped("sweeps").glob("*.yaml"))}
    for source in plugins.sources():
        if source.conf is not None:
            found |= {p.stem: p for p in sorted((source.conf / run_config.SWEEP).glob("*.yaml")) if p.stem not in found}
    return found


def register_with_hydra() -> None:
    """Make Hydra know the registries; once."""
    plugins.load()
    if RegistrySource not in Plugins.instance().discover(ConfigSource):
        Plugins.instance().register(RegistrySource)
        Plugins.instance().register(AblatioSearchPath)


def groups() -> dict[str, list[str]]:
    """All groups and their options: kinds, sweeps, and the YAML folders of ours and of plugins."""
    found: dict[str, list[str]] = {kind: sorted(r.entries) for kind, r in REGISTRIES.items()}
    found[run_config.SWEEP] = sorted(sweep_files())
    for folder in [shipped("conf"), *(s.conf for s in plugins.sources() if s.conf is not None)]:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != "." and path.stem not in found.setdefault(group, []):
                found[group].append(path.stem)
    return found


@dataclass(frozen=True, slots=True)
class Composed:
    """A config that may run: `config` is plain and resolved, `overrides` are what the user said."""

    config: dict[str, Any]
    public: dict[str, Any]
    overrides: list[str]


def compose_run(overrides: Sequence[str]) -> Composed:
    """Compose and check one run; ConfigError with all problems at once."""
    register_with_hydra()
    cleaned = [_normal(o) for o in overrides]
    good, values, problems = _sorted(cleaned)
    node = None if problems else _try_compose(cleaned)
    if node is None:
        node, more = _diagnose(good, values)
        problems += more
    if not problems and node is None:
        _compose(cleaned)
    if node is None:
        raise _config_error(problems, cleaned)
    _refuse_hydra_settings(node)
    public, resolved = _plain(node)
    problems += [p for p in run_config.check(resolved) if p.where not in {q.where for q in problems}]
    if problems:
        raise _config_error(problems, cleaned)
    return Composed(run_config.cast(resolved), public, list(overrides))


def config_of(node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(public, resolved) of a node that Hydra composed, checked once more: a launcher may have come between."""
    public, resolved = _plain(node)
    if problems := run_config.check(resolved):
        raise ConfigError(problems)
    return public, run_config.cast(resolved)


def _compose(overrides: list[str]) -> Any:
    """The composed node; what Hydra refuses for a reason of its own is a ConfigError with its words."""
    try:
        return _hydra_compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError([Problem("config", _first_lines(error))]) from None


def _hydra_compose(overrides: list[str]) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3", job_name="ablatio"):
        return compose(MAIN, overrides=overrides, return_hydra_config=True)


def _try_compose(overrides: list[str]) -> Any:
    try:
        return _hydra_compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def _plain(node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what may be written down, what the run uses): values from the environment stay unresolved in the former."""
    OmegaConf.set_struct(node, False)
    node.pop("hydra", None)
    raw: Any = OmegaConf.to_container(node, resolve=False)
    try:
        resolved: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([Problem("config", _first_lines(error))]) from None
    return _merge_public(raw, resolved), resolved


def _merge_public(raw: Any, resolved: Any) -> Any:
    if isinstance(raw, dict):
        return {k: _merge_public(v, resolved[k]) for k, v in raw.items()}
    if isinstance(raw, list):
        return [_merge_public(a, b) for a, b in zip(raw, resolved, strict=True)]
    return raw if isinstance(raw, str) and re.search(r"\$\{\s*(oc\.)?env:", raw) else resolved


def _refuse_hydra_settings(node: Any) -> None:
    callbacks = OmegaConf.select(node, "hydra.callbacks")
    if callbacks:
        raise UserError("hydra.callbacks would build objects by their names; parts are chosen by name from a registry")


def _normal(override: str) -> str:
    """`experiment=x` means `+experiment=x`: these groups have no default that could be overridden."""
    key = override.split("=")[0]
    added = key in ADDED or (key in REGISTRIES and key not in run_config.NEEDED)
    return f"+{override}" if added else override


def _first_lines(error: BaseException) -> str:
    chain: list[str] = []
    while error is not None and len(chain) < 2:
        chain += [line.strip() for line in str(error).splitlines() if line.strip()][:2]
        error = error.__cause__  # type: ignore[assignment]
    return "; ".join(dict.fromkeys(chain))


def _sorted(overrides: list[str]) -> tuple[list[str], list[tuple[str, Override]], list[Problem]]:
    """(choices of options that can be made, values, what is wrong with the other choices)."""
    options, problems, chosen = groups(), list[Problem](), dict[str, str]()
    good, values = list[str](), list[tuple[str, Override]]()
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:  # a bad override, in one of the ways that the parser has to say so
            problems.append(Problem(text, f"{text!r} is no setting; write key=value, and quote special characters"))
            continue
        if parsed.key_or_group in options and not parsed.is_delete():
            found = list(_group_problems(parsed, options, chosen))
            problems += found
            good += [] if found else [text]
        else:
            values.append((text, parsed))
    return good, values, problems


def _diagnose(good: list[str], values: list[tuple[str, Override]]) -> tuple[Any, list[Problem]]:
    """(the config with all that can be composed, what is wrong with the other values)."""
    node = _try_compose(good)
    if node is None:
        return None, []
    tree: Any = OmegaConf.to_container(node, resolve=False)
    options = groups()
    problems = {text: _key_problem(parsed, tree, options) for text, parsed in values}
    node = _try_compose(good + [text for text, problem in problems.items() if problem is None])
    return node, [p for p in problems.values() if p]


def _group_problems(parsed: Override, options: dict[str, list[str]], chosen: dict[str, str]) -> Iterator[Problem]:
    group, value = parsed.key_or_group, parsed.value()
    if parsed.is_sweep_override():
        yield Problem(group, f"several values came: {_swept(parsed)}; -m runs one after the other")
        return
    many = group in REGISTRIES and REGISTRIES[group].many
    names = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not many:
        came = ", ".join(map(str, names))
        yield Problem(group, f"{len(names)} options came ({came}), a model has one {group}", f"{group}={names[0]}")
        return
    if group in chosen and not many:
        came = f"{chosen[group]} and {value}"
        yield Problem(group, f"two options came ({came}), a model has one {group}", f"{group}={value}")
        return
    chosen[group] = str(value)
    for name in names:
        if name not in options[group]:
            yield run_config.no_option(group, str(name), options[group])


def _swept(parsed: Override) -> str:
    return (parsed.input_line or "").split("=", 1)[-1]


def _key_problem(parsed: Override, tree: Any, options: dict[str, list[str]]) -> Problem | None:
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        return Problem(key, f"several values came: {_swept(parsed)}; -m runs one after the other, quotes make one text of them")
    if parsed.is_add() or key.startswith("hydra"):
        return None
    node, path = tree, ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            known = [k for k in (node if isinstance(node, dict) else {}) if k not in ("hydra", "name")]
            if not path:
                known += [g for g in options if "/" not in g]
            problem = run_config.unknown(key, part, known, prefix=f"{path}.".lstrip("."))
            return Problem(
                key, problem.what, f"{problem.fix}={parsed.get_value_element_as_str()}" if problem.fix else ""
            )
        node, path = node[part], f"{path}.{part}".lstrip(".")
    return None


def _config_error(problems: list[Problem], overrides: list[str]) -> ConfigError:
    """The problems, and the user's own command with every fix in it, if that runs."""
    error = ConfigError(problems)
    fixes = {p.fix.split("=")[0]: p.fix for p in problems if "=" in p.fix}
    wrong = {p.where for p in problems if not p.combination}
    kept = [o for o in overrides if o not in wrong and not {o.lstrip("+").split("=")[0]} & (wrong | set(fixes))]
    repaired = [*kept, *fixes.values()]
    if repaired != overrides and _runs(repaired):
        error.args = (f"{error}\nThis runs: {shlex.join(['ablatio', 'train', *repaired])}",)
    return error


def _runs(overrides: list[str]) -> bool:
    node = _try_compose(overrides)
    return node is not None and not run_config.check(_plain(node)[1])


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The arms of a multirun: the product of all values that were given with commas, in Hydra's grammar."""
    register_with_hydra()
    axes: list[list[str]] = []
    count = 1
    for text in map(_normal, overrides):
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:  # a bad override, in one of the ways that the parser has to say so
            parsed = None
        if parsed is None or not parsed.is_sweep_override():
            axes.append([text])
            continue
        prefix = "+" if parsed.is_add() else ""
        axes.append([f"{prefix}{parsed.key_or_group}={v}" for v in parsed.sweep_string_iterator()])
        count *= len(axes[-1])
        if count > MAX_ARMS:
            raise UserError(f"this sweep has more than {MAX_ARMS} runs; give fewer values")
    return [list(arm) for arm in itertools.product(*axes)]
