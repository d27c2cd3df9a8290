"""Habits from other Hydra programs: each of them works here, or is refused with the way that works.

`spelled` rewrites what has one meaning (`++seed=2`, `~peft`, `lr=log(1e-4,1e-2)`); `refused` explains the rest.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ablatio.config import schema as run_config
from ablatio.config import yaml_files
from ablatio.config.words import key_of, quoted, text_value, value_of
from ablatio.errors import Problem
from ablatio.registry.kinds import designs
from ablatio.registry.knobs import Knob
from ablatio.registry.registry import REGISTRIES

OWN = ("hydra/launcher", "hydra.launcher")  # a sweep's launcher, which has its own checks
DESIGN = "ablatio plans the arms of a sweep itself"
# Prefix of a setting of Hydra -> (why it is refused and what works instead, a setting that works).
OBJECTS = "would build objects from names in the config; parts are chosen by name from a registry.  "
HOOKS = (
    "A stabilizer acts in every step, a logger receives every metric: `ablatio list stabilizer`, `ablatio list logger`"
)
HANDLERS = "would build handlers from names in the config; a run writes its own log"
REFUSED: Mapping[str, tuple[str, str]] = {
    "hydra.callbacks": (f"hydra.callbacks {OBJECTS}{HOOKS}", ""),
    "hydra.job_logging": (f"hydra.job_logging {HANDLERS}", ""),
    "hydra.hydra_logging": (f"hydra.hydra_logging {HANDLERS}", ""),
    "hydra.run.dir": ("a run is written to OUT/NAME, by default to the time in `runs`", "out=runs"),
    "hydra.sweep.dir": ("a study is written to OUT/NAME", "out=runs"),
    "hydra.sweep.subdir": (
        "the folder of each run is named by the id of its job, by which a study is resumed; `ablatio report FOLDER` "
        "says which arm is in which folder",
        "",
    ),
    "hydra.verbose": (
        "there is no debug log: metrics.csv and summary.json record a run, log.txt what a run of a sweep prints",
        "",
    ),
    "hydra.searchpath": (
        "files of settings are found in conf/GROUP/ of the working directory, of --config-dir DIR and of plugins, or "
        "named by their path: experiment=./FILE.yaml",
        "",
    ),
    "hydra.job.chdir": ("a run never changes the working directory; its files go to OUT/NAME", ""),
    "hydra.output_subdir": ("the config of a run is config.json in its folder OUT/NAME", ""),
    "hydra.mode": ("-m runs a sweep: ablatio train -m norm=layernorm,rmsnorm", ""),
    "hydra.sweeper": (f"{DESIGN}: `ablatio list design` has the designs", f"design={designs.usual}"),
    "hydra/sweeper": (f"{DESIGN}: `ablatio list design` has the designs", f"design={designs.usual}"),
}
ELSE = "Hydra composes the config here and runs nothing, so its own settings have no effect"
# What conf/train.yaml and Hydra itself set; a file with another value is refused like the command line.
AS_COMPOSED: Mapping[str, Any] = {
    "run.dir": "${out}/${oc.select:name,unnamed}", "sweep.dir": "${out}", "sweep.subdir": "${hydra.job.num}",
    "verbose": False, "searchpath": [], "output_subdir": None, "job.chdir": False,
}  # fmt: skip
_NESTED = re.compile(r"\$\{[^{}]*\$\{")
_LOG = re.compile(r"(?:log|log_?uniform)\(([^()]*)\)", re.IGNORECASE)
_EVEN = re.compile(r"uniform\(([^()]*)\)", re.IGNORECASE)


def spelled(text: str) -> str:
    """One override in the spelling that is composed here; any other text is returned as it is.

    `+` and `++` are dropped where the key exists without them, `~peft` becomes `peft=null`, `~stabilizer`
    `stabilizer=[]`, `log(a,b)` and `loguniform(a,b)` become Hydra's `tag(log,interval(a,b))`, and an interpolation in
    another one is quoted, which Hydra's grammar asks for.
    """
    if text.startswith("~"):
        return _removed(text)
    bare = text.lstrip("+")
    key, equals, value = bare.partition("=")
    if equals:
        value = _interval(value)
        value = quoted(value) if _NESTED.search(value) and not value.startswith(("'", '"')) else value
    return f"{'' if text == bare or _is_settable(key) else '+'}{key}{equals}{value}"


def third_argument(value: str) -> str:
    """Return the form that replaces `log(a,b,n)`, which has the number of values as in numpy; "" for other values."""
    bare = value.strip("'\"").replace(" ", "")
    found = _LOG.fullmatch(bare) or _EVEN.fullmatch(bare)
    bounds = found[1].split(",") if found else []
    if len(bounds) != 3:
        return ""
    form = f"{bare.partition('(')[0]}({','.join(bounds[:2])})"
    return f"expected two bounds, got three values; {form} with design=random design.runs={bounds[2]} draws as many"


def _interval(value: str) -> str:
    bare = value.strip("'\"").replace(" ", "")
    if found := _LOG.fullmatch(bare):
        return f"tag(log,interval({found[1]}))"
    found = _EVEN.fullmatch(bare)
    return f"interval({found[1]})" if found else value


def _is_settable(key: str) -> bool:
    """True if a key can be set without `+`, if it exists at all."""
    first, *rest = key.split(".")
    if first in ("hydra", run_config.SWEEP) or "/" in key or any(part.startswith("_") for part in rest):
        return False
    return len(rest) <= 1 or (first in REGISTRIES and REGISTRIES[first].multiple)


def _removed(text: str) -> str:
    """`~key` as the value that means nothing; unchanged if the key has no such value."""
    key = key_of(text)
    if key in REGISTRIES:
        registry = REGISTRIES[key]
        if registry.multiple and "=" in text:
            return text  # one option of several: which others are chosen is not known here
        return f"{key}=[]" if registry.multiple else f"{key}=null" if registry.optional else text
    if key == yaml_files.PRESET:
        return f"{key}=null"
    knobs = [*knobs_of(key)]
    return f"{key}=null" if knobs and all(knob.optional for knob in knobs) else text


def knobs_of(key: str) -> Iterator[Knob]:
    """Knobs that a dotted key may name: one of a section, or that of each option of a kind that has it."""
    first, _, rest = key.partition(".")
    if first in run_config.SECTIONS:
        yield from (knob for knob in run_config.section_knobs(run_config.SECTIONS[first]) if knob.name == rest)
    elif first in REGISTRIES:
        yield from (
            knob
            for entry in REGISTRIES[first]
            for knob in entry.knobs
            if rest in (knob.name, f"{entry.name}.{knob.name}")
        )
    elif not rest:
        yield from (knob for knob in run_config.section_knobs(run_config.Run) if knob.name == first)


def refused(overrides: Iterable[str]) -> list[Problem]:
    """Problems of the settings of Hydra and of the removals on a command line, each with what works instead."""
    return [
        of_hydra(key_of(text)) if _is_hydras(key_of(text)) else _removal(text) for text in overrides if is_refused(text)
    ]


def is_refused(text: str) -> bool:
    """True for a setting of Hydra that has no effect, and for the removal of what every run needs."""
    return _is_hydras(key_of(text)) or (text.startswith("~") and spelled(text).startswith("~"))


def _is_hydras(key: str) -> bool:
    return key.startswith(("hydra.", "hydra/")) and not key.startswith(OWN)


def of_hydra(key: str) -> Problem:
    """The problem of a setting of Hydra that is not used here."""
    for prefix, (what, fix) in REFUSED.items():
        if key == prefix or key.startswith(f"{prefix}."):
            return Problem(key, what, fix)
    return Problem(key, ELSE)


def _removal(text: str) -> Problem:
    """The problem of `~key` for a key that every run needs."""
    key = key_of(text)
    if key in REGISTRIES and REGISTRIES[key].multiple:
        return Problem(key, f"name the options that remain, {key}=[...], or none, {key}=[]")
    if key in REGISTRIES:
        what = f"every run has one {key}, so it cannot be removed; `ablatio list {key}` has the others"
        return Problem(key, what, f"{key}={REGISTRIES[key].usual}")
    if key in run_config.SECTIONS:
        return Problem(key, "every run has this section; its settings can be set one by one")
    if key in ("experiment", run_config.SWEEP):
        return Problem(key, f"no file is chosen unless {key}=NAME does")
    if key == yaml_files.SIZE:
        return Problem(key, "every run has a size", f"{key}=small")
    if knobs := [*knobs_of(key)]:
        what = "`~` removes a key, and this one needs a value; without any setting it has its default"
        if all(knob.type == "float" and not knob.problem(0.0) for knob in knobs):
            what += f", and {key}=0 switches it off"
        return Problem(key, what)
    return Problem(key, "there is no such key to remove")


def of_files(hydra: Mapping[str, Any]) -> list[Problem]:
    """Problems of the composed settings of Hydra that some file changed; `hydra`: plain values, unresolved."""
    found = []
    for key, usual in AS_COMPOSED.items():
        node: Any = hydra
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node != usual and not (usual in (False, []) and not node):
            found.append(of_hydra(f"hydra.{key}"))
    return found


def with_places(overrides: Sequence[str], key: str) -> list[str]:
    """The overrides with Hydra's folder (`hydra.run.dir=runs/x`) as `out=runs name=x`, which means the same.

    key  the folder that applies: hydra.run.dir of a single run, hydra.sweep.dir of a sweep

    A folder that refers to other settings or to the time is left, and refused later.
    """
    found = []
    for text in overrides:
        path = PurePath(value_of(text).strip("'\""))
        if key_of(text) == key and path.name and "${" not in str(path):
            found += [f"out={text_value(str(path.parent))}", f"name={text_value(path.name)}"]
        else:
            found.append(text)
    return found
