"""The launcher that a command line chooses, checked before anything is planned."""

from collections.abc import Sequence

from ablatio.config.grammar import parse
from ablatio.config.schema import unknown, value_problems
from ablatio.errors import ConfigError, Problem
from ablatio.registry.kinds import launchers

SHORT = "launcher"  # launcher=ray means hydra/launcher=ray


def check(said: Sequence[str]) -> None:
    """ConfigError with all that is wrong with the launcher; one that Hydra alone knows is its own business."""
    pairs = [(key, text) for text in said if (key := text.lstrip("+").partition("=")[0]).startswith("hydra")]
    name = next((text.partition("=")[2] for key, text in pairs[::-1] if key == f"hydra/{SHORT}"), str(launchers.usual))
    if name not in launchers.names():
        return
    knobs = {knob.name: knob for knob in launchers[name].knobs}
    problems: list[Problem] = []
    for key, text in pairs:
        knob = key.removeprefix(f"hydra.{SHORT}.")
        if knob == key or "." in knob or (parsed := parse(text)) is None:
            continue
        where = f"{SHORT}.{knob}"
        if knob in knobs:
            problems += value_problems(where, knobs[knob], parsed.value())
        else:
            problems.append(unknown(where, knob, knobs, prefix=f"{SHORT}."))
    if problems:
        raise ConfigError(problems)


def refused(said: Sequence[str], error: Exception) -> Problem:
    """A launcher that nobody has is told from those that there are."""
    name = next((text.partition("=")[2] for text in said if text.startswith(f"hydra/{SHORT}=")), "")
    if name and name not in launchers.names() and "Could not find" in str(error):
        return unknown(SHORT, name, launchers.names(), prefix=f"{SHORT}=")
    words = "; ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
    return Problem(SHORT, words, f"{SHORT}={launchers.usual}")
