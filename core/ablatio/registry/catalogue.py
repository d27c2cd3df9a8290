"""Catalogue of all parts offered by plugins, read from their signatures once and cached as JSON.

Importing the plugins means importing torch (2 s).  A child process does this once and writes the catalogue; after that
listing, completing, composing and checking only read the file.  The child also isolates the caller from plugins that
hang or end the process: such a plugin is reported and left out, and the others work.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatio.errors import EnvironmentFault
from ablatio.registry.part_spec import Distribution, PartSpec
from ablatio.storage.atomic_write import make_folder, write_text
from ablatio.storage.json_files import damaged, read_object
from ablatio.storage.paths import HERE, cache_root

GROUP = "ablatio.plugins"
OURS = "ablatio"
LOAD_SECONDS = float(os.environ.get("ABLATIO_PLUGIN_SECONDS", "30"))  # time limit for all modules of one plugin
OUR_SECONDS = 10 * LOAD_SECONDS  # for the parts of this distribution: a busy machine is no reason to run without them
RETRY_SECONDS = 3600.0  # age of a failure after which the plugin is tried again
FORMAT = 4
FOLDER = "catalogue"  # in the cache
LASTING = "lasting"  # key of a failure that only a change of files can mend; no other is remembered
KILLED = "was killed by"


@dataclass(frozen=True, slots=True)
class PluginSource:
    """One entry point: a package or module of a distribution."""

    name: str
    module: str
    distribution: Distribution
    has_conf: bool = True  # False: its YAML options are left out

    @property
    def key(self) -> str:
        """Unique name of this plugin; entry points of two distributions may have the same name."""
        return f"{self.distribution.name}:{self.name}"

    @property
    def seconds(self) -> float:
        """Time limit for loading all of its modules."""
        return OUR_SECONDS if self.distribution.name == OURS else LOAD_SECONDS

    @property
    def files(self) -> list[Path]:
        """Python and YAML files of the package, found without importing it."""
        root = self.folder
        if root is None:
            spec = _find_spec(self.module)
            return [Path(spec.origin)] if spec and spec.origin else []
        return sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml", ".yml"))

    @property
    def folder(self) -> Path | None:
        """Folder of the package, found without importing it; None for a single module."""
        spec = _find_spec(self.module)
        places = list(spec.submodule_search_locations or []) if spec else []
        return Path(places[0]) if places else None

    @property
    def conf(self) -> Path | None:
        """Folder with the plugin's YAML options, if it has one."""
        folder = self.folder if self.has_conf else None
        return folder / "conf" if folder is not None and (folder / "conf").is_dir() else None


def suites_of(sources: Iterable[PluginSource]) -> list[str]:
    """Packages of contract suites that plugins add for their own kinds: `<package>.suites`."""
    return [f"{s.module}.suites" for s in sources if s.folder is not None and (s.folder / "suites").is_dir()]


def _find_spec(module: str) -> Any:
    # find_spec("a.b") imports the package a, so only the top package is looked up with it.
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for name in rest:
        places = list(spec.submodule_search_locations or []) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(name, places)
    return spec


def plugin_sources() -> list[PluginSource]:
    """All entry points: ablatio's first, so that no plugin can take one of its names, then sorted by distribution."""
    found = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        dist = point.dist
        distribution = Distribution(dist.name, dist.version) if dist else Distribution("unknown", "")
        found[distribution.name, point.value] = PluginSource(point.name, point.value.split(":")[0], distribution)
    return sorted(found.values(), key=lambda s: (s.distribution.name != OURS, s.distribution.name.lower(), s.name))


@dataclass(slots=True)
class Catalogue:
    """Result of a scan, as plain data."""

    kinds: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    rules: list[dict[str, str]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the cache."""
        return {f: getattr(self, f) for f in Catalogue.__slots__}


def read(sources: list[PluginSource]) -> Catalogue:
    """Catalogue of these plugins: from the cache if none of their files has changed, otherwise from a new scan.

    Our own parts have a catalogue of their own, to which a scan adds those of the other distributions: whoever writes
    a plugin waits for the import of the plugin alone.
    """
    key = _fingerprint(sources)
    # One file per key: two environments or versions beside each other do not overwrite one another's.
    path = cache_root() / FOLDER / f"{key}.json"
    with contextlib.suppress(OSError, EnvironmentFault):
        stored = read_object(path, {"digest": str, "catalogue": dict})
        with damaged(str(path), "a catalogue"):
            data = stored["catalogue"]
            if stored["digest"] == _digest(data) and not _to_be_retried(path, data) and _is_of(data, sources):
                return Catalogue(**data)
    ours = [s for s in sources if s.distribution.name == OURS]
    found = _scan(sources, read(ours) if 0 < len(ours) < len(sources) else None)
    _refuse_without_ours(found)
    data = found.to_json()
    if all(failure.get(LASTING) for failure in found.failures):
        # Without a cache the next command scans again, which only costs time.
        with contextlib.suppress(OSError, EnvironmentFault):
            make_folder(path.parent)
            write_text(path, json.dumps({"digest": _digest(data), "catalogue": data}))
    return found


def _is_of(data: Mapping[str, Any], sources: Iterable[PluginSource]) -> bool:
    """True if each part is in a package of the distribution that is said to provide it.

    A part's module is imported when the part is used, so it is not taken from a file that others may write.  What the
    file says of the part is compared with its source then (`Registry.register`).
    """
    known = {(s.distribution.name, s.distribution.version, s.module.split(".")[0]) for s in sources}
    known |= {(name, version, HERE.name) for name, version, _ in known if name == OURS}
    entries = [PartSpec.from_json(entry) for entry in data["entries"]]  # raises for other shapes
    return all((e.distribution.name, e.distribution.version, e.module.split(".")[0]) in known for e in entries)


def _refuse_without_ours(found: Catalogue) -> None:
    """Raise EnvironmentFault if our own parts could not be read: without them no command works."""
    for failure in found.failures:
        if failure["dist"] == OURS:
            raise EnvironmentFault(
                f"the parts of {OURS} cannot be read: {failure.get('what') or 'plugin ' + failure['plugin']} "
                f"{failure['reason']}\n"
                "    try: the same command again, or ablatio doctor"
            )


def _to_be_retried(path: Path, catalogue: Mapping[str, Any]) -> bool:
    """True if a plugin failed a while ago: it may have been slow, or a missing library may be installed by now."""
    return bool(catalogue.get("failures")) and time.time() - path.stat().st_mtime > RETRY_SECONDS


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _fingerprint(sources: list[PluginSource]) -> str:
    """Cache key: changes with every Python or YAML file of a plugin or of the core, and with the installed packages.

    All packages of the core count, because the type of a knob may be defined in any of them.  Installing a library
    changes site-packages, so a plugin that failed for lack of it is scanned again.
    """
    lines = [f"{FORMAT} {sys.version} {sys.prefix}"]
    for source in sources:
        lines.append(f"{source.distribution} {source.name} {source.module}")
        # Time and size, not content: every command computes this key before it does anything else.
        lines += [_stamp(p) for p in source.files]
    lines += [_stamp(p) for p in sorted(HERE.rglob("*.py"))]
    lines += [_stamp(Path(p)) for p in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _stamp(path: Path) -> str:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return f"{path} {stat.st_mtime_ns} {stat.st_size}"
    return f"{path} gone"


def _scan(sources: list[PluginSource], ours: Catalogue | None) -> Catalogue:
    """Import the plugins in a child process; a plugin that ends or hangs the child is left out of the next try.

    ours  our own parts, if they are known: they are then not imported
    """
    lost, killed = dict[str, str](), set[str]()
    while True:
        found, culprit, ending = _scan_in_child(sources, lost, ours)
        if found is not None:
            return found
        if culprit and KILLED in ending and culprit not in killed:  # perhaps for lack of memory at that moment
            killed.add(culprit)
            continue
        # It failed although that plugin was left out: the fault is not in the plugins.
        if not culprit or culprit in lost:
            raise EnvironmentFault(
                f"the plugins cannot be read: the process that imports them {ending}\n"
                f"    try: {sys.executable} -X faulthandler -c 'import torch'"
            )
        lost[culprit] = ending


def _scan_in_child(
    sources: list[PluginSource], lost: dict[str, str], ours: Catalogue | None
) -> tuple[Catalogue | None, str, str]:
    """(the catalogue, or None; the plugin at which the child ended; how it ended)."""
    with tempfile.TemporaryDirectory() as folder:
        result, progress = Path(folder) / "result.json", Path(folder) / "progress"
        request = json.dumps(
            {
                "plugins": [s.key for s in sources],
                "leave_out": lost,
                "result": str(result),
                "progress": str(progress),
                "ours": ours.to_json() if ours else None,
            }
        )
        # The child must find what this process finds, as after a change of sys.path in a notebook.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            run = subprocess.run(
                [sys.executable, "-c", "from ablatio.registry.discovery import scan_in_this_process as scan; scan()"],
                input=request,
                env=environment,
                capture_output=True,
                text=True,
                # The child limits each plugin by a signal; this is for a library that lets no signal through.
                timeout=30 + OUR_SECONDS + LOAD_SECONDS * len(sources),
                check=False,
            )
            how = f"ended the process with code {run.returncode}"
            if run.returncode < 0:
                how = f"{KILLED} {signal.Signals(-run.returncode).name} while it was imported"
            ending = f"{how} {run.stderr.strip()[-300:]}".strip()
        except subprocess.TimeoutExpired:
            ending = "did not finish loading in time"
        if result.exists():
            return Catalogue(**json.loads(result.read_text())), "", ending
        # Each plugin is written down before it is imported: the last one is that at which the child ended.
        return None, progress.read_text().split("\n")[-1] if progress.exists() else "", ending


def conf_files(folder: Path) -> Iterator[Path]:
    """YAML files of a plugin's conf folder."""
    yield from sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml"))
