"""Problems of single values: a wrong type or range, a name that does not exist, a setting that cannot be scheduled."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ablatio.errors import Problem, did_you_mean
from ablatio.registry.knobs import CONSTANT, Knob
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.value_schedules import ValueSchedule, is_value_schedule


def value_problems(where: str, knob: Knob, value: Any) -> Iterator[Problem]:
    """Problems of one value; the fix is the knob's default."""
    if knob.option_of in REGISTRIES and isinstance(value, str):
        options = knob.named(REGISTRIES[knob.option_of].entries)
        if value not in options:
            yield unknown(where, value, options, prefix=f"{where}=")
            return
    if problem := knob.problem(value):
        yield Problem(where, problem, f"{where}={knob.default_text}")


def unknown(where: str, word: str, known: Iterable[str], prefix: str = "") -> Problem:
    """Problem of a name that does not exist; the fix is the closest one that does."""
    known = sorted(set(known))
    near = did_you_mean(word, known)
    fix = f"{prefix}{near.split('did you mean ')[1].split(' or ')[0].rstrip('?')}" if near else ""
    what = f"there is no `{word}`{near}" if near else f"there is no `{word}`; there are {', '.join(known) or 'none'}"
    return Problem(where, what, fix)


def no_option(kind: str, name: str, options: Any) -> Problem:
    """Problem of an option that does not exist in its group."""
    return unknown(kind, name, list(options), prefix=f"{kind}=")


def with_schedulable(problem: Problem, settings: Mapping[str, Knob]) -> Problem:
    """The problem, with the settings that may be scheduled if it is about one that may not."""
    if not problem.what.endswith(CONSTANT):
        return problem
    known = sorted(path for path, knob in settings.items() if knob.schedulable)
    return replace(problem, what=f"{problem.what}; those that can: {', '.join(known)}")


def held_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of `roles.frozen`, which names roles and layers, and of a schedule of `model.tied`, which only unties."""
    model, roles = config.get("model"), config.get("roles")
    if not isinstance(model, Mapping) or not isinstance(roles, Mapping):
        return
    if is_value_schedule(model.get("tied")) and _values(model["tied"]) not in ((), (True, False)):
        what = f"got {model['tied']}, and a head can only be untied, once"
        yield Problem("model.tied", what, "model.tied=stages(true@0,false@0.66)")
    sizes = {"": model.get("n_layers"), "encoder.": model.get("encoder_layers") or model.get("n_layers")}
    known = [key.removesuffix("_rate") for key in roles if key.endswith("_rate")]
    known += [f"{side}layers.{i}" for side, n in sizes.items() if isinstance(n, int) for i in range(min(n, 10_000))]
    frozen = roles.get("frozen") or ()
    lists = _values(frozen) if is_value_schedule(frozen) else (frozen,)
    names = dict.fromkeys(name for one in lists if isinstance(one, list | tuple) for name in one)
    for name in names:
        if name not in known:
            problem = unknown("roles.frozen", str(name), known)
            yield replace(problem, fix=f"roles.frozen=[{problem.fix}]" if problem.fix else "")


def _values(schedule: str) -> tuple[Any, ...]:
    """Values of a schedule; empty if it is not valid, which is reported elsewhere."""
    try:
        return ValueSchedule(schedule).values
    except ValueError:
        return ()
