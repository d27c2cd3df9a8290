"""Parsing of a sweep's command line: settings of the sweep, axes, seeds, and overrides that all runs share."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablatio.config import hydra_habits, local_files, yaml_files
from ablatio.config import schema as run_config
from ablatio.config.extend import extended
from ablatio.config.grammar import axis, parse, text_of
from ablatio.config.hydra_habits import knobs_of
from ablatio.config.hydra_sources import groups, register_with_hydra
from ablatio.config.overrides import NOT_BY_CONFIG, no_option, normal
from ablatio.config.problems import value_problems
from ablatio.config.words import key_of, value_of
from ablatio.errors import ConfigError, Problem, UserError, did_you_mean
from ablatio.registry.kinds.search_space import Axis
from ablatio.registry.parts_file import KEY as PARTS_FILE
from ablatio.registry.registry import REGISTRIES
from ablatio.sweep import replicates, settings
from ablatio.sweep.recipes.plan import merge_overrides
from ablatio.sweep.recipes.schema import RECIPE
from ablatio.sweep.registration import AMOUNTS
from ablatio.sweep.settings import Settings
from ablatio.sweep.study_file import study_section

SEED = "seed"
MOST_SEEDS = 100  # of a sequential study that a budget limits
FEWEST = 3  # seeds at the first look of a sequential study, unless set
LAUNCHER = ("hydra/launcher", "hydra.launcher")
AS_WRITTEN = ("baseline", "seeds", "budget")  # `=`, `3..20` and `2h` are no values of Hydra's grammar
EXECUTION = ("workers", "timeout", "hang", "retry", "join", "table")


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A parsed command line of a sweep.

    fixed     overrides that all arms share
    axes      what varies; the seed is none of them
    seeds     the blocks: each arm runs with each of them; with until=, those of the first look
    launcher  overrides of Hydra's launcher, for the engine
    study     the words of the study's file: question, expected ...
    blocks    settings of each block, by its number, if single random streams vary (`replicates`)
    """

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    settings: Settings
    launcher: tuple[str, ...]
    name: str
    study: Mapping[str, Any]
    overrides: tuple[str, ...]
    blocks: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def of_recipes(self) -> bool:
        """True if each arm is a recipe, a sequence of runs."""
        return RECIPE in {*map(key_of, self.fixed), *(axis.key for axis in self.axes)}

    @property
    def baseline(self) -> dict[str, str] | None:
        """The arm named by `baseline=`; an axis that it leaves out has its first value."""
        text = self.settings["baseline"]
        return None if text is None else _baseline(text, self.axes)

    @property
    def first(self) -> dict[str, str]:
        """The baseline, or else the first value of each axis."""
        return self.baseline or {axis.key: axis.at(0.0) for axis in self.axes}


def read(overrides: Sequence[str]) -> SweepRequest:
    """Sort a command line; ConfigError with everything that is wrong with it."""
    register_with_hydra()
    if extended(overrides):
        raise UserError("extend= continues one run, so it has no arms\n    try: ablatio train extend=..., without -m")
    yaml_files.take_in(overrides)
    study_name, study = _study(overrides)
    given: dict[str, Any] = {k: _plain(k, v) for k, v in study.items() if k not in settings.WORDS}
    file_axes = {str(key): [text_of(v) for v in values] for key, values in (study.get("axes") or {}).items()}
    fixed, axes, launcher, problems = list[str](), dict[str, Axis](), list[str](), hydra_habits.refused(overrides)
    overrides = [text for text in overrides if not hydra_habits.is_refused(text)]
    for text in [*_of_recipe(study, overrides), *overrides]:
        key = key_of(text)
        if key.startswith(LAUNCHER):
            launcher.append(text)
        elif key == yaml_files.SWEEP and RECIPE in study:
            continue  # it holds nothing that a stage could be composed of
        elif settings.is_setting(key) and not (key == "match" and "," in text):
            given[key] = _setting_value(key, text)
            if key == "match" and given[key] == "none":  # a run can hold to that by itself
                fixed.append(text)
        elif (parsed := parse(text)) is None:
            usual = f"{text!r} is no setting; write key=value, and quote special characters"
            problems.append(Problem(text, hydra_habits.third_argument(text.partition("=")[2]) or usual))
        elif parsed.is_sweep_override():
            problems += [Problem(key, "came twice; give all its values at once")] if key in axes else []
            axes[key] = _typed(axis(parsed))
        else:
            fixed.append(normal(text))
    said = {key_of(text) for text in overrides}
    for key, values in file_axes.items():
        if key not in said:
            axes |= {key: Axis(key, tuple(values))}
    fixed_keys = {key_of(text) for text in fixed}
    problems += [Problem(key, f"came with one value and with several; drop {key}=") for key in fixed_keys & axes.keys()]
    seeds, fixed, more = _seeds(axes.pop(SEED, None), fixed)
    streams = [axes.pop(key) for key in replicates.STREAMS if key in axes]
    more += [*replicates.problems(streams)]
    blocks = {} if more else replicates.blocks(seeds or (1,), streams)
    seeds = tuple(blocks) or seeds
    theirs = given.get("baseline") if "baseline" not in said else None
    if isinstance(theirs, str) and file_axes.keys() & said and not _is_arm(theirs, [*axes.values()]):
        del given["baseline"]  # the study's, of an axis that has other values now
    checked, wrong = settings.check(given)
    problems += [*more, *wrong, *_axis_problems(axes.values())]
    if PARTS_FILE in (*fixed_keys, *axes):
        problems.append(Problem(PARTS_FILE, NOT_BY_CONFIG))
    if problems or checked is None:
        raise ConfigError(problems)
    if streams and (problem := _refuse_streams(streams[0].key, checked, RECIPE in {*map(key_of, fixed), *axes})):
        raise ConfigError([problem])
    if checked["until"]:
        seeds = _growing(seeds, checked)
    parts = (
        tuple(fixed),
        tuple(axes.values()),
        seeds,
        checked,
        tuple(launcher),
        study_name,
        study,
        tuple(overrides),
        blocks,
    )
    return SweepRequest(*parts)


def notes(axes: Iterable[Axis], overrides: Sequence[str]) -> Iterator[str]:
    """Explain replicates and intervals that are easily misunderstood; `uniform(low,high)` is not."""
    yield from replicates.note(overrides)
    evenly = {key_of(text) for text in overrides if value_of(text).lower().startswith("uniform(")}
    for one in axes:
        if one.key not in evenly and one.interval and one.interval.spans_decades:
            low, high = one.interval.low, one.interval.high
            yield (
                f"{one.key}: interval() is even, so 9 of 10 values are above {low + (high - low) / 10:.2g}; "
                f"'{one.key}=log({low:g},{high:g})' is even in the logarithm, '{one.key}=uniform({low:g},{high:g})' "
                "is this one without the remark"
            )


def lasting(overrides: Sequence[str]) -> list[str]:
    """Return the sorted overrides that define the jobs of a study, without those of their execution."""
    return sorted(text for text in overrides if key_of(text) not in EXECUTION and not key_of(text).startswith(LAUNCHER))


def lasting_but_seeds(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of `lasting` that set no seed."""
    return [text for text in lasting(overrides) if key_of(text) not in (SEED, *replicates.STREAMS)]


def _study(overrides: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the study that `+sweep=NAME` chooses, and the content of its `sweep:` section."""
    name = _study_option(overrides)
    if name is None:
        return "sweep", {}
    files = yaml_files.options_of(yaml_files.SWEEP)
    if name not in files:
        why = yaml_files.why_left_out(yaml_files.SWEEP, name) or did_you_mean(name, files)
        path = local_files.beside(name)
        hint = f"try: +{yaml_files.SWEEP}={path}" if path else "try: ablatio list sweep"
        there = "" if path else f"\n    there are {', '.join(files) or 'none'}"
        raise UserError(f"there is no sweep {name}{why}{there}\n    {hint}")
    return files[name].name, study_section(files[name])


def _study_option(overrides: Sequence[str]) -> str | None:
    """The option that `+sweep=NAME` chooses: a name, or the path of a file."""
    return next((o.split("=", 1)[1] for o in overrides if o.lstrip("+").startswith("sweep=")), None)


def _of_recipe(study: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides in the file of a study on a recipe, without those that the command line replaces."""
    if RECIPE not in study:
        return ()
    own = [f"{RECIPE}={study[RECIPE]}", *study.get("overrides", ())]
    name = str(_study_option(overrides))
    if beside := [key for key in yaml_files.options_of(yaml_files.SWEEP)[name].read() if key != yaml_files.SWEEP]:
        raise UserError(
            f"the study {name} is on recipe={study[RECIPE]}, and `{beside[0]}:` stands beside `sweep:`: stages have "
            f"their settings from the recipe\n    try: sweep: {{overrides: [{beside[0]}...=...]}} in its file"
        )
    return merge_overrides(own, overrides)[: -len(overrides)]


def _plain(key: str, value: Any) -> Any:
    """A setting of a study's file, as the command line would have it."""
    if key == "baseline" and isinstance(value, Mapping):
        return ",".join(f"{k}={text_of(v)}" for k, v in value.items())
    if key in AMOUNTS and value is not None:
        return text_of(value)
    if key in AS_WRITTEN and isinstance(value, int | float):
        return str(value)
    return value


def _setting_value(key: str, text: str) -> Any:
    if key in AS_WRITTEN:
        return None if (said := text.split("=", 1)[1]) in ("", "null") else said
    if key in AMOUNTS:  # `3.28` and `3.28nats` alike
        return None if (said := text.split("=", 1)[1].strip("'\"")) in ("", "null") else said
    parsed = parse(text)
    return text.split("=", 1)[-1] if parsed is None or parsed.is_sweep_override() else parsed.value()


def _seeds(given: Axis | None, fixed: list[str]) -> tuple[tuple[int, ...], list[str], list[Problem]]:
    """(the seeds, the other overrides, what is wrong with the seeds)."""
    texts = given.values if given else tuple(value_of(t) for t in fixed if key_of(t) == SEED)[-1:] or ("1",)
    rest = [t for t in fixed if key_of(t) != SEED]
    knob = next(k for k in run_config.section_knobs(run_config.Run) if k.name == SEED)
    values = [int(t) if t.lstrip("-").isdigit() else t for t in texts]
    problems = [p for v in values for p in value_problems(SEED, knob, v)]
    return tuple(v for v in values if isinstance(v, int)), rest, problems


def _refuse_streams(key: str, checked: Settings, of_recipe: bool) -> Problem | None:
    """Problem of replicates that vary single random streams, where seeds are counted or shared in another way."""
    if checked["until"]:
        return Problem(key, "until=resolved adds values of seed=, in which all random streams vary", "until=null")
    return Problem(key, "an arm of this sweep is a recipe, whose stages take seed=") if of_recipe else None


def _growing(seeds: Sequence[int], checked: Settings) -> tuple[int, ...]:
    """Seeds of the first look of a sequential study."""
    limits = settings.seed_limits(checked["seeds"] or "")
    first = limits[0] if limits else max(FEWEST, len(seeds))
    return first_seeds(seeds, max(first, len(seeds)))


def first_seeds(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """Return `count` seeds: the given ones, and then the numbers after the largest of them."""
    given = tuple(dict.fromkeys(seeds))
    return (*given, *range(max(given) + 1, max(given) + 1 + count - len(given)))[:count]


def _typed(one: Axis) -> Axis:
    """The axis; an interval of a setting that takes whole numbers holds whole numbers."""
    interval = one.interval
    if interval is None or interval.whole or not _is_whole(one.key):
        return one
    inner = f"int(interval({interval.low:g},{interval.high:g}))"
    return Axis(one.key, (f"tag(log,{inner})" if interval.log else inner,))


def _is_whole(key: str) -> bool:
    found = [*knobs_of(key)]
    return bool(found) and all(knob.type == "int" and knob.length is None for knob in found)


def _axis_problems(axes: Iterable[Axis]) -> Iterator[Problem]:
    options = groups()
    for one in axes:
        if one.interval and one.interval.problem:
            yield Problem(one.key, one.interval.problem)
        if not one.values:
            yield Problem(one.key, "no value is left")
        if one.key in REGISTRIES and REGISTRIES[one.key].multiple and REGISTRIES[one.key].volatile:
            together = f"{one.key}=[{','.join(v.strip('[]') for v in one.values)}]"
            yield Problem(
                one.key, "does not change what a run computes, so it is no axis; one run takes several", together
            )
        if one.key in options:
            for name in one.values:
                for single in name.strip("[]").split(",") if name != "null" else ():
                    if single and single.strip() not in options[one.key]:
                        yield no_option(one.key, single.strip(), options[one.key])


def _baseline(text: str, axes: Sequence[Axis]) -> dict[str, str]:
    """`gelu`, or `activation=gelu,norm=rmsnorm`: one value for each axis; a list and a schedule keep their commas."""
    found = {a.key: a.at(0.0) for a in axes}
    for piece in re.split(r"[,\s]+(?![^\[]*\]|[^(]*\))", text.strip()):
        key, equals, value = piece.rpartition("=")
        having = [a.key for a in axes if (a.key == key or not equals) and value in a.values]
        if len(having) != 1:
            known = [f"{a.key}={v}" for a in axes for v in a.values]
            why = (
                f"is a value of {' and of '.join(having)}"
                if having
                else f"is no value of this sweep{_near(piece, known)}"
            )
            raise ConfigError([Problem("baseline", f"`{piece}` {why}", f"baseline={known[0]}" if known else "")])
        found[having[0]] = value
    return found


def _is_arm(text: str, axes: Sequence[Axis]) -> bool:
    try:
        return bool(_baseline(text, axes))
    except ConfigError:
        return False


def _near(piece: str, known: Sequence[str]) -> str:
    return did_you_mean(piece, [*known, *(k.partition("=")[2] for k in known)])
