"""Key and value of a setting on the command line: `key=value`, `+key=value`, `~key`, `group@package=option`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ablatio.registry.value_schedules import CALL

_PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*", re.ASCII)
_OTHER = re.compile(r"null|true|false|nan|inf|[.\d][\d._]*(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def key_of(text: str) -> str:
    """The key of a setting: `+sweep=glu_variants` gives `sweep`."""
    return text.lstrip("+~").partition("=")[0].partition("@")[0]


def value_of(text: str) -> str:
    """The value of a setting: `seed=1,2` gives `1,2`; empty if it has none."""
    return text.partition("=")[2]


def quoted(text: str) -> str:
    """A string as a quoted value in Hydra's grammar, where a backslash is literal unless a quote follows it."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


def text_value(text: str) -> str:
    """A string as a value in Hydra's grammar: quoted unless it is read as that string without quotes."""
    return text if _PLAIN.fullmatch(text) and not _OTHER.fullmatch(text) else quoted(text)


def override_text(value: Any) -> str:
    """A value of a config in Hydra's grammar; keys of a dict are written plainly, as the grammar has no quoted ones."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_text(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(override_text, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def with_quoted_schedules(override: str) -> str:
    """The override with quotes around schedules, whose commas are not those of a sweep: `lr=linear(0,1),0.5`."""
    key, equals, value = override.partition("=")
    if "(" not in value or "'" in value or '"' in value:
        return override
    return key + equals + CALL.sub(lambda found: f"'{found[0]}'", value)
