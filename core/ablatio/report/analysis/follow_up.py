"""The command that adds arms to a screening study, so that aliased effects can be told apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from ablatio.config.words import key_of, quoted, value_of
from ablatio.errors import AblatioError
from ablatio.registry import parts_file
from ablatio.report import rerun_command
from ablatio.report.read.table import Table
from ablatio.report.rerun_command import SEED
from ablatio.sweep.study import STUDY

DEFAULT_OUT = "runs"


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A command that extends a study.

    command  `ablatio train -m ...`, quoted for a shell
    runs     number of runs that it adds
    """

    command: str
    runs: int


def follow_up(table: Table) -> FollowUp | None:
    """Return the command with which a study's own design extends it; None if there is none, or it would not compose.

    Its arms are planned with the first seed as `ablatio train -m` would plan them: each is composed and checked, and
    the runs of the study with that seed must be among them.
    """
    study = table.study
    if len(table.folders) != 1 or not (table.folders[0] / STUDY).exists() or not study.seeds:
        return None
    known = {seed: frozenset(r.id for r in table.runs if r.seed == seed) for seed in study.seeds}
    overrides = tuple(text for text in study.overrides if text != "-m")
    folder = table.folders[0].resolve()
    command = _checked(folder, overrides, study.seeds[0], known[study.seeds[0]])
    if command is None:
        return None
    arms, words = command
    return FollowUp(words, arms * len(study.seeds) - sum(map(len, known.values())))


@functools.lru_cache(maxsize=16)
def _checked(folder: Path, overrides: tuple[str, ...], seed: int, known: frozenset[str]) -> tuple[int, str] | None:
    """(number of arms after the extension, the command); None unless it keeps the known runs of the seed."""
    from ablatio.sweep.plan import plan_sweep  # loads torch, which a report without a follow-up does not need

    try:
        words = _extended(folder, overrides)
        if not words:
            return None
        plan = plan_sweep([*(text for text in words if key_of(text) != SEED), f"{SEED}={seed}"])
    except (AblatioError, OSError, ValueError):
        return None  # a study of other parts, or of an older version: no command can be promised
    planned = {job.id for job in plan.jobs}
    place = Path(plan.config["out"]).expanduser() / str(plan.config["name"])
    # A command that would run finished arms anew, or add none, is no continuation of this study.
    if plan.adaptive or not known or not known < planned or place.resolve() != folder:
        return None
    return len(planned), rerun_command.line([*words, *parts_file.words()], many=True)


def _extended(folder: Path, overrides: tuple[str, ...]) -> list[str]:
    """Overrides of the study with the settings of its design that add arms; empty if the design has none."""
    from ablatio.sweep.plan import design_of
    from ablatio.sweep.request import read

    if not overrides:
        return []
    design = design_of(read(overrides))
    more = design.follow_up() if hasattr(design, "follow_up") else {}
    if not more:
        return []
    replaced = {*more, "name", "retry", "join"}
    kept = [text for text in overrides if key_of(text) not in replaced]
    out = next((value_of(text) for text in kept if key_of(text) == "out"), DEFAULT_OUT)
    if Path(out).expanduser().resolve() != folder.parent:
        kept = [*(text for text in kept if key_of(text) != "out"), f"out={_word(str(folder.parent))}"]
    return [*kept, *(f"{key}={value}" for key, value in more.items()), f"name={_word(folder.name)}"]


def _word(text: str) -> str:
    """A text in Hydra's grammar."""
    return text if all(c.isalnum() or c in "_./+-" for c in text) else quoted(text)
