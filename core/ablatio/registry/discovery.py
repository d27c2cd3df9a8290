"""Plugin discovery: find entry points, scan them, roll back failures, and register parts without importing them."""

import contextlib
import gc
import importlib
import json
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ablatio.registry import renamed, rules
from ablatio.registry.catalogue import LASTING, OURS, Catalogue, PluginSource, conf_files, plugin_sources, read
from ablatio.registry.part_spec import faulty_parts
from ablatio.registry.registry import (
    REGISTRIES,
    SESSION,
    ContractError,
    Distribution,
    PartSpec,
    Registry,
    others_unchanged,
    provided_by,
    transaction,
)
from ablatio.storage.collector import collect_seldom
from ablatio.storage.paths import shipped
from ablatio.storage.state_json import BUILDER_KEYS

MAX_NODES = 100_000
YAML = ", with the other YAML files,"  # end of `what` of a failure, if a plugin's options are left out


@dataclass(frozen=True, slots=True)
class Failure:
    """A part or file that is left out of a plugin, and the reason; an empty `what` means the whole plugin."""

    plugin: str
    distribution: Distribution
    reason: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.what or f'plugin {self.plugin}'} of {self.distribution} is left out: {self.reason}"


_failures: list[Failure] = []
_sources: list[PluginSource] = []
_loaded = False


def load() -> None:
    """Fill the registries from the catalogue, once.  A plugin is imported only when one of its parts is used."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    sources = plugin_sources()
    catalogue = read(sources)
    _fill(catalogue)
    _failures.extend(
        Failure(f["plugin"], Distribution(f["dist"], f["version"]), f["reason"], f["what"]) for f in catalogue.failures
    )
    left_out = {(f.plugin, f.distribution) for f in _failures if not f.what}
    without_yaml = {(f.plugin, f.distribution) for f in _failures if f.what.endswith(YAML)}
    for source in sources:
        key = (source.name, source.distribution)
        if key not in left_out:
            _sources.append(replace(source, has_conf=key not in without_yaml))


def _fill(catalogue: Catalogue) -> None:
    """Register the kinds, parts and rules of a catalogue without importing them."""
    for kind in catalogue.kinds:
        if kind["kind"] not in REGISTRIES:
            Registry.from_json(kind)
    for data in catalogue.entries:
        entry = PartSpec.from_json(data)
        known = REGISTRIES[entry.kind].entries
        # If the user imported a plugin before this, its parts were registered as parts of the session.
        if (old := known.get(entry.name)) is None or (old.distribution == SESSION and _same_source(old, entry)):
            known[entry.name] = entry
    for r in catalogue.rules:
        rules.rule(**r)


def _same_source(first: PartSpec, second: PartSpec) -> bool:
    return (first.module, first.qualname) == (second.module, second.qualname)


def failures() -> list[Failure]:
    """Plugins, modules, parts and YAML files that are left out."""
    load()
    return list(_failures)


def sources() -> list[PluginSource]:
    """Plugins that were loaded."""
    load()
    return list(_sources)


def scan_in_this_process() -> None:
    """Scan plugins in a child process.

    A JSON request on stdin names the plugins and the file that gets their catalogue.
    """
    collect_seldom()
    request = json.load(sys.stdin)
    with contextlib.suppress(ImportError):  # so that its two seconds do not count against the first plugin
        importlib.import_module("torch")
    ours = Catalogue(**request["ours"]) if request["ours"] else None
    found = [s for s in plugin_sources() if s.key in request["plugins"]]
    catalogue = scan(found, request["leave_out"], Path(request["progress"]), ours)
    Path(request["result"]).write_text(json.dumps(catalogue.to_json()))
    gc.freeze()  # the process ends here, and need not look for garbage among all that it imported


def scan(
    found: list[PluginSource],
    leave_out: Mapping[str, str],
    progress: Path | None = None,
    ours: Catalogue | None = None,
) -> Catalogue:
    """Import each plugin and record what it registers; one that fails is rolled back and reported.

    ours  the catalogue of our own parts, if it is known: they are registered from it, and not imported
    """
    global _loaded
    _loaded = True  # a lookup while the registries are being filled must not start a second scan
    catalogue = Catalogue()
    conf_names: dict[str, Distribution] = {}
    if ours is not None:
        _fill(ours)
    for source in found:
        if ours is not None and source.distribution.name == OURS:
            _check_conf(source, conf_names)  # whose faults are known; the names of its options are taken
            continue
        if progress:
            with progress.open("a") as file:
                file.write(f"\n{source.key}")
        reason = leave_out.get(source.key, "")
        told = [("", reason, False)] if reason else _import(source, conf_names)
        distribution = source.distribution
        for what, reason, lasts in told:
            failure = {
                "plugin": source.name,
                "dist": distribution.name,
                "version": distribution.version,
                "reason": reason,
                "what": what,
            } | ({LASTING: "yes"} if lasts else {})
            catalogue.failures.append(failure)
    for registry in REGISTRIES.values():
        catalogue.entries += [e.to_json() for e in registry.entries.values()]
        catalogue.kinds.append(registry.to_json())
    catalogue.rules += [r.to_json() for r in rules.RULES]
    return catalogue


Fault = tuple[str, str, bool]  # (what is left out, "" for the whole plugin; the reason; does it last?)


def _import(source: PluginSource, conf_names: dict[str, Distribution]) -> list[Fault]:
    """Import all modules of a plugin and check its YAML; returns all that is left out, with reasons.

    A faulty part is left out alone, a module that cannot be imported with its parts, and YAML files together.  The
    whole plugin is left out if its package cannot be imported, takes too long or replaces parts of others.

    A reason lasts if only a change of files can remove it.  Any other may be gone at the next command.
    """
    before, found = list(rules.RULES), list[Fault]()
    try:
        with (
            transaction(),
            others_unchanged(source.distribution),
            provided_by(source.distribution),
            _time_limit(source.seconds),
            faulty_parts() as parts,
        ):
            importlib.import_module(source.module)
            for module in _modules(source.module):
                found += _import_module(module, source)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, including SystemExit
        rules.RULES[:] = before
        return [("", _reason(error, source), _lasts(error))]
    found = [(f"{p.kind}={p.name}", f"{p.place}: {p.reason}", True) for p in dict.fromkeys(parts)] + found
    return found + _check_conf(source, conf_names)


def _import_module(module: str, source: PluginSource) -> list[Fault]:
    """Import one module of a plugin; if it fails, what it registered is taken back."""
    before, known = list(rules.RULES), set(sys.modules)
    try:
        with transaction():
            importlib.import_module(module)
    # The time limit is that of the whole plugin, which is then left out.
    except (KeyboardInterrupt, TimeoutError):
        raise
    except BaseException as error:
        rules.RULES[:] = before
        # Modules that it imported first have lost their parts with it: they are imported anew on their own.
        for name in [n for n in sys.modules if n not in known and n.startswith(f"{source.module}.")]:
            del sys.modules[name]
        return [(f"the module {module}", _reason(error, source), _lasts(error))]
    return []


def _lasts(error: BaseException) -> bool:
    # An installed library changes site-packages, and with it the key of the catalogue; a timeout changes nothing.
    return isinstance(error, ContractError | SyntaxError | ModuleNotFoundError)


def _modules(package: str) -> Iterator[str]:
    """Names of all modules in a package: a new part is just a new file.

    Contract suites are skipped, because they import pytest, which a run does not require.
    """
    for info in pkgutil.iter_modules(getattr(sys.modules.get(package), "__path__", []), f"{package}."):
        if not {"conf", "suites", "__main__"} & set(info.name.split(".")):
            yield info.name
            yield from _modules(info.name)


def _reason(error: BaseException, source: PluginSource) -> str:
    if isinstance(error, ContractError | TimeoutError):
        return str(error)
    folder = str(source.folder or source.module)
    # The last line of the plugin itself: deeper ones lie in a library that its author cannot change.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if folder in f.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{renamed.import_hint(error)}{where}"


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Context manager: TimeoutError after `seconds` (main thread only, because it uses SIGALRM)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"did not finish loading within {seconds:g} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _check_conf(source: PluginSource, taken: dict[str, Distribution]) -> list[Fault]:
    """Faults of a plugin's YAML, which adds options to groups, builds no objects and changes no setting of Hydra."""
    found, names = list[Fault](), dict(taken)
    for path in conf_files(source.conf) if source.conf is not None else ():
        try:
            _check_yaml(path, source, names)
        except ContractError as error:
            option = f"{path.parent.name}={path.stem}"
            found.append((f"{option}{YAML}", str(error), True))
    if not found:
        taken.update(names)
    return found


def _check_yaml(path: Path, source: PluginSource, taken: dict[str, Distribution]) -> None:
    import yaml

    name = path.relative_to(source.conf or path).with_suffix("").as_posix()
    if "/" not in name or name.startswith("hydra"):
        raise ContractError(f"{path} is not an option of a group; a plugin's conf folder holds GROUP/OPTION.yaml")
    if (owner := taken.setdefault(name, source.distribution)) != source.distribution:
        raise ContractError(f"the option {name} already exists, provided by {owner}; rename {path}")
    if (shipped("conf") / f"{name}.yaml").exists():
        raise ContractError(f"the option {name} already exists, provided by ablatio; rename {path}")
    # A file that cannot be read costs its own option alone; `ablatio doctor` names it.
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
        refuse_objects(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def refuse_objects(data: Any, where: str) -> None:
    """Raise ContractError if nested data has a key that would build an object, or more than MAX_NODES values."""
    # Not by recursion: YAML anchors can nest without end, and make a few lines a billion values.
    stack, nodes = [(data, "")], 0
    while stack:
        node, path = stack.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise ContractError(f"{where}: more than {MAX_NODES} values, or a cycle; expected a config")
        if isinstance(node, Mapping):
            for key, value in node.items():
                full = f"{path}.{key}" if path else str(key)
                if str(key) in BUILDER_KEYS:
                    raise ContractError(
                        f"{where}: `{full}` would build an object from its name; parts are chosen by name"
                    )
                if not path and str(key).split(".")[0] == "hydra":
                    raise ContractError(f"{where}: `{full}` changes a setting of Hydra; only the command line may")
                if not path and str(key).split(".")[0] == "parts":
                    raise ContractError(f"{where}: `{full}` would name a file of code; only you may, by parts=FILE")
                stack.append((value, full))
        elif isinstance(node, list | tuple):
            stack.extend((v, f"{path}.{i}") for i, v in enumerate(node))
