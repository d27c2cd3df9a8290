"""Problems of single values: a wrong type or range, a name that does not exist, a setting that cannot be scheduled."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ablatio.config import local_files
from ablatio.config.sections import OWN_SETTINGS
from ablatio.config.synonyms import VALUES
from ablatio.config.typos import nearest
from ablatio.errors import Problem
from ablatio.registry import renamed
from ablatio.registry.knobs import CONSTANT, Knob
from ablatio.registry.registry import REGISTRIES, Registry
from ablatio.registry.value_schedules import ValueSchedule, is_value_schedule


def value_problems(where: str, knob: Knob, value: Any) -> Iterator[Problem]:
    """Problems of one value; the fix is the knob's default."""
    if knob.option_of in REGISTRIES and isinstance(value, str):
        options = knob.named(REGISTRIES[knob.option_of].entries)
        if value not in options:
            yield unknown(where, value, options, prefix=f"{where}=")
            return
    if problem := knob.problem(value):
        if meant := VALUES.get(where, {}).get(str(value), ""):
            problem = f"{problem.partition('; did you mean')[0]}; {meant} means the same"
        meant = meant or next(iter(nearest(str(value), map(str, knob.choices))), "")
        if knob.length == -1 and not isinstance(value, list | tuple) and not knob.problem([value]):
            meant = f"[{value}]"
        yield Problem(where, problem, f"{where}={meant or knob.default_text}")


def unknown(where: str, word: str, known: Iterable[str], prefix: str = "") -> Problem:
    """Problem of a name that does not exist; the fix is the closest one that does."""
    known = sorted(set(known))
    if near := nearest(word, known)[:3]:
        return Problem(where, f"there is no `{word}`; did you mean {' or '.join(near)}?", f"{prefix}{near[0]}")
    return Problem(where, f"there is no `{word}`; there are {', '.join(known) or 'none'}")


def no_option(kind: str, name: str, options: Any) -> Problem:
    """Problem of an option that does not exist in its group."""
    if not name:
        return Problem(kind, f"no name is given; there are {', '.join(options)}")
    if path := local_files.beside(name):
        return Problem(kind, f"there is no `{name}`; a file is named by its path: {kind}={path}")
    problem = unknown(kind, name, list(options), prefix=f"{kind}=")
    others = [other for other, registry in REGISTRIES.items() if registry.in_run and name in registry.entries]
    if problem.fix or not others:
        return problem
    return replace(problem, what=problem.what.replace(";", f", which is an option of {' and of '.join(others)};", 1))


def knob_problems(where: str, node: Mapping[str, Any], knobs: tuple[Knob, ...]) -> Iterator[Problem]:
    """Problems of the settings in a section or of a part."""
    by_name = {k.name: k for k in knobs}
    for key, value in node.items():
        if key in by_name:
            yield from value_problems(f"{where}.{key}", by_name[key], value)
        elif (now := renamed.key(f"{where}.{key}")) != f"{where}.{key}":
            yield Problem(f"{where}.{key}", f"is now called {now}", f"{now}={value}")
        elif key != "name":
            yield unknown(f"{where}.{key}", key, by_name, prefix=f"{where}.")


def missing_kinds(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of optional kinds that are not chosen although the task needs them."""
    node = config.get("task")
    name = node.get("name") if isinstance(node, Mapping) else None
    entry = REGISTRIES["task"].entries.get(str(name))
    for usual in entry.facts["needs"] if entry else ():
        kind = usual.partition("=")[0]
        if config.get(kind) is None:
            yield Problem(kind, f"is not set, and task={name} needs it", usual)


def several_problems(kind: str, registry: Registry[Any], node: Any) -> Iterator[Problem]:
    """Problems of a kind of which several options may be chosen."""
    if not isinstance(node, Mapping | None):
        yield Problem(kind, f"expected a list of options, got {str(node)[:60]}", f"{kind}=[]")
        return
    for name, knobs in (node or {}).items():
        if name not in registry.entries:
            yield no_option(kind, name, registry.entries)
        elif not isinstance(knobs, Mapping | None):
            what = f"expected the knobs of {kind}={name}, got {str(knobs)[:60]}"
            yield Problem(f"{kind}.{name}", what, f"{kind}=[{name}]")
        else:
            yield from knob_problems(f"{kind}.{name}", knobs or {}, registry.entries[name].knobs)


def with_schedulable(problem: Problem, settings: Mapping[str, Knob]) -> Problem:
    """The problem, with the settings that may be scheduled if it is about one that may not."""
    if not problem.what.endswith(CONSTANT):
        return problem
    known = sorted(path for path, knob in settings.items() if knob.schedulable)
    return replace(problem, what=f"{problem.what}; those that can: {', '.join(known)}")


def held_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of `roles.frozen`, which names roles and layers, and of a schedule of `model.tied`, which unties."""
    model, roles = config.get("model"), config.get("roles")
    if not isinstance(model, Mapping) or not isinstance(roles, Mapping):
        return
    if is_value_schedule(model.get("tied")) and _values(model["tied"]) not in ((), (True, False)):
        what = f"got {model['tied']}, and a head can only be untied, once"
        yield Problem("model.tied", what, "model.tied=stages(true@0,false@0.66)")
    elif is_value_schedule(model.get("tied")) and (named := [p for p in config.get("freeze") or () if _is_head(p)]):
        what = f"{named[0]} is the embedding until model.tied={model['tied']} unties it, and cannot be frozen by itself"
        yield Problem("freeze", what, "model.tied=false")
    yield from _role_problems(roles, config.get("optimizer"))
    sizes = {"": model.get("n_layers"), "encoder.": model.get("encoder_layers") or model.get("n_layers")}
    known = [key.removesuffix("_rate") for key in roles if key.endswith("_rate")]
    known += [f"{side}layers.{i}" for side, n in sizes.items() if isinstance(n, int) for i in range(min(n, 10_000))]
    frozen = roles.get("frozen") or ()
    lists = _values(str(frozen)) if is_value_schedule(frozen) else (frozen,)
    names = dict.fromkeys(name for one in lists if isinstance(one, list | tuple) for name in one)
    for name in names:
        if name not in known:
            problem = unknown("roles.frozen", str(name), known)
            yield replace(problem, fix=f"roles.frozen=[{problem.fix}]" if problem.fix else "")


def _role_problems(roles: Mapping[str, Any], optimizer: Any) -> Iterator[Problem]:
    """Settings of a role that the optimizer does not have."""
    known = REGISTRIES["optimizer"].entries.get(str(optimizer.get("name"))) if isinstance(optimizer, Mapping) else None
    if known is None:
        return
    for key, value in roles.items():
        name = next((n for n in OWN_SETTINGS if key.endswith(f"_{n}")), "")
        if name and value is not None and known.knob(name) is None:
            yield Problem(f"roles.{key}", f"optimizer={known.name} has no {name}", f"roles.{key}=null")


def _is_head(pattern: Any) -> bool:
    """True if a pattern of `freeze` names the head."""
    return pattern == "head" or fnmatchcase("lm_head", str(pattern).split(".")[0])


def _values(schedule: str) -> tuple[Any, ...]:
    """Values of a schedule; empty if it is not valid, which is reported elsewhere."""
    try:
        return ValueSchedule(schedule).values
    except ValueError:
        return ()
