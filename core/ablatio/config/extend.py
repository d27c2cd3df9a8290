"""`extend=RUN train.steps=4800`: settings of a new run that continues a finished one with a longer budget.

All settings that affect numbers come from RUN.  The budget and the schedule may change, as the schedule is computed
anew for the longer run; so may what is logged and where it runs.  Settings that change during training keep the course
that they had: their places are taken as steps of RUN, and after its end the last value holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio.config.budget import BUDGETS
from ablatio.config.kind_lists import volatile
from ablatio.config.words import key_of, override_text, value_of
from ablatio.errors import UserError
from ablatio.registry import renamed
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.value_schedules import in_steps
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word

EXTEND = "extend"
INTERVALS = tuple(f"train.{name}" for name in ("log_every", "val_every", "checkpoint_every", "keep"))


def extended(overrides: Sequence[str]) -> str:
    """Folder of the run that the overrides extend; empty if they extend none."""
    found = [value_of(text).strip("'\"") for text in overrides if key_of(text) == EXTEND]
    return found[-1] if found and found[-1] != "null" else ""


def settings_of(path: str, overrides: Sequence[str]) -> list[str]:
    """The settings of the run in the folder `path`, as overrides to precede those of the command line.

    Raises UserError if the folder holds no run, if a setting came that cannot change, or if no budget came.
    """
    if foreign := [text for text in overrides if not may_change(key_of(text))]:
        raise UserError(
            f"{foreign[0]} came with extend=: the run continues as it is, with a longer budget and a new schedule\n"
            f"    try: ablatio train model=run model.path={shell_word(path)} {foreign[0]}, a new run with its weights"
        )
    file = Path(path).expanduser() / "config.json"
    try:
        config = renamed.current_config(read_object(file, {"model": dict, "train": dict}))[0]
    except FileNotFoundError:
        raise UserError(f"extend: {path} is no run folder: it has no config.json\n    try: extend=runs/NAME") from None
    if not any(key_of(text) in BUDGETS for text in overrides):
        steps = int(config["train"]["steps"])
        raise UserError(
            f"extend={path} came without a budget, and the run has its {steps} steps\n"
            f"    try: ablatio train extend={shell_word(path)} train.steps={2 * steps}"
        )
    return [*_overrides(config, {key_of(text) for text in overrides})]


def may_change(key: str) -> bool:
    """True if a setting of an extended run may differ from that of the run it continues."""
    sections = ("schedule", *volatile())
    return key in (EXTEND, *BUDGETS, *INTERVALS) or key.split(".")[0] in sections


def _overrides(config: Mapping[str, Any], given: set[str]) -> Iterator[str]:
    steps = int(config["train"]["steps"])
    for key, value in in_steps(config, steps).items():
        if key in (EXTEND, *volatile()) or key in given:
            continue
        if not isinstance(value, Mapping):
            yield f"{key}={override_text(value)}"
        elif key in REGISTRIES and REGISTRIES[key].multiple:
            yield f"{key}=[{','.join(value)}]"
            yield from _knobs({f"{key}.{name}": knobs or {} for name, knobs in value.items()}, given)
        else:
            yield from [f"{key}={value['name']}"] if "name" in value else []
            yield from _knobs({key: value}, given)


def _knobs(nodes: Mapping[str, Mapping[str, Any]], given: set[str]) -> Iterator[str]:
    for where, knobs in nodes.items():
        for knob, value in knobs.items():
            if knob != "name" and f"{where}.{knob}" not in given:
                yield f"{where}.{knob}={override_text(value)}"
