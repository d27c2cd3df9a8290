"""Hydra's override grammar: one override, and the values of a sweep axis."""

import functools
from itertools import islice
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep, Transformer
from hydra.errors import HydraException

from ablatio.config.hydra_sources import groups
from ablatio.config.overrides import normal
from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Axis
from ablatio.registry.value_schedules import is_value_schedule

MAX_JOBS = 10_000


@functools.cache
def parse(text: str) -> Override | None:
    """Parse one override in Hydra's grammar; None if it is not valid."""
    try:
        return OverridesParser.create().parse_override(normal(text))
    except HydraException:  # the base class: the parser raises several types for a malformed override
        return None


def axis(parsed: Override) -> Axis:
    """Axis of a sweep override in Hydra's grammar: a,b  choice(a,b)  range(1,4)  glob(*)  interval(0,1)."""
    key, value = parsed.key_or_group, parsed.value()
    if isinstance(value, RangeSweep) and abs(((value.stop or 0) - (value.start or 0)) / (value.step or 1)) > MAX_JOBS:
        raise too_many(key)
    if isinstance(value, IntervalSweep):
        return Axis(key, ((parsed.input_line or "").split("=", 1)[1],))
    if isinstance(value, Glob):
        return Axis(key, tuple(value.filter(groups().get(key, []))))
    found = islice(parsed.sweep_iterator(Transformer.identity), MAX_JOBS + 1)
    values = tuple(dict.fromkeys(_as_written(v) for v in found))
    if len(values) > MAX_JOBS:
        raise too_many(key)
    return Axis(key, values)


def _as_written(value: Any) -> str:
    """A value of an axis as on the command line: a schedule, which `normal` quotes, without its quotes."""
    if isinstance(value, QuotedString) and is_value_schedule(value.text):
        return value.text
    return text_of(value) if isinstance(value, bool | None) else str(Transformer.encode(value))


def too_many(what: str, count: int | None = None) -> UserError:
    """UserError for a study with more than MAX_JOBS runs; `what` names the axis or study."""
    requested = f"{count:,}" if count else f"more than {MAX_JOBS:,}"
    return UserError(
        f"{what}: {requested} runs requested, at most {MAX_JOBS:,} can be planned\n"
        "    try: fewer values, or design=random design.runs=100, which runs a random sample of them"
    )


def text_of(value: Any) -> str:
    """A YAML value as written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return str(value)
