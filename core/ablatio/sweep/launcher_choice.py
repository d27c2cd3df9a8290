"""Read the launcher of a sweep and its knobs from the overrides, and refuse invalid ones before planning."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ablatio.config.grammar import parse
from ablatio.config.overrides import as_text
from ablatio.config.problems import unknown, value_problems
from ablatio.config.words import key_of, value_of
from ablatio.errors import ConfigError, Problem, UserError
from ablatio.registry.kinds import launchers
from ablatio.registry.knobs import Knob
from ablatio.storage.paths import shell_word

SHORT = "launcher"  # launcher=ray means hydra/launcher=ray
GROUP, KNOBS = f"hydra/{SHORT}", f"hydra.{SHORT}."
HYDRA_ONLY = ("rq",)  # launchers of Hydra and its plugins whose work none of ours does


def usual() -> str:
    """Name of the default launcher."""
    return str(launchers.usual)


class LauncherChoice(NamedTuple):
    """Name of a launcher and the values of all its knobs."""

    name: str
    knobs: Mapping[str, Any]


def chosen_launcher(overrides: Sequence[str]) -> LauncherChoice:
    """Return the launcher that the overrides choose: `launcher=ray launcher.num_cpus=2`, or with `hydra/` and `hydra.`.

    Raises ConfigError with all problems at once, UserError for a launcher that only Hydra has.
    """
    chosen = [text for text in map(long_form, overrides) if key_of(text).startswith("hydra") and SHORT in key_of(text)]
    name, problems = _name(chosen)
    knobs, values = {knob.name: knob for knob in launchers[name].knobs}, dict(launchers[name].defaults)
    for text in chosen:
        key = key_of(text)
        knob = key.removeprefix(KNOBS)
        where, parsed = f"{SHORT}.{knob}", parse(text)
        if key == GROUP and not text.startswith("~") and "@" not in text:
            continue
        if knob == key:
            problems.append(Problem(SHORT, f"{text} came; one launcher and its knobs were expected", _fix(name)))
        elif knob not in knobs:
            problems.append(unknown(where, knob, knobs, prefix=f"{SHORT}."))
        elif parsed is None or parsed.is_sweep_override():
            problems.append(Problem(where, f"got {value_of(text)}, expected one value", _in_quotes(text, knobs[knob])))
        elif found := list(value_problems(where, knobs[knob], parsed.value())):
            problems += found
        else:
            values[knob] = knobs[knob].cast(parsed.value())
    if problems:
        raise ConfigError(problems)
    return LauncherChoice(name, values)


def long_form(text: str) -> str:
    """Add Hydra's prefix: launcher=ray -> hydra/launcher=ray, launcher.num_cpus=2 -> hydra.launcher.num_cpus=2."""
    if text.startswith(f"{SHORT}="):
        return f"hydra/{text}"
    return f"hydra.{text}" if text.startswith(f"{SHORT}.") else text


def _name(chosen: Sequence[str]) -> tuple[str, list[Problem]]:
    """Return the name chosen last and the problems with it; the default launcher in place of an invalid name."""
    names = launchers.names()
    name = next((value_of(text) for text in reversed(chosen) if key_of(text) == GROUP), usual())
    if name in names:
        return name, []
    replaced = [(ours, *theirs.partition(" ")) for ours in names for theirs in launchers[ours].facts["replaces"]]
    instead = {theirs: f"{_fix(ours)} {setting}" for ours, theirs, _, setting in replaced}
    if name in (*HYDRA_ONLY, *instead):
        raise UserError(
            f"{GROUP}={name} runs jobs without a ledger, so a study could not be resumed; expected one of "
            f"{', '.join(names)}\n    try: {instead.get(name, _fix(usual())).strip()}"
        )
    if "," in name or not name:
        what = f"{SHORT}={name} came; one of {', '.join(names)} was expected"
        return usual(), [Problem(SHORT, what, _fix(usual()))]
    return usual(), [unknown(SHORT, name, names, prefix=f"{SHORT}=")]


def _in_quotes(text: str, knob: Knob) -> str:
    """The setting with its value as one text, as a word of a shell command; empty if the knob takes no such value."""
    fixed = as_text(text.removeprefix("hydra."))
    parsed = parse(fixed)
    if not fixed or parsed is None or any(value_problems("", knob, parsed.value())):
        return ""
    return shell_word(fixed) if set('"$`\\!') & set(fixed) else f'"{fixed}"'


def _fix(name: str) -> str:
    return f"{SHORT}={name}"
