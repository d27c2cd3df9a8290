"""Read JSON files that others may have changed; errors say what was expected, and where.

Whatever a file holds, reading it gives the expected value or a DamagedFile with one sentence; a missing file is a
FileNotFoundError, which callers handle.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablatio.errors import DamagedFile
from ablatio.storage.atomic_write import explained

NUMBER = (int, float)
NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
SHOWN = 60  # characters of a wrong value that a message repeats
DEEPEST = 100  # levels of nesting
Types = type | tuple[type, ...]


def read_object(path: Path, expected: Mapping[str, Types] | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    expected  type of the value under each of these keys; keys that are missing are not checked

    Raises FileNotFoundError, and DamagedFile for everything else that cannot be used.
    """
    data = parse_object(read_text(path), str(path))
    check_types(data, expected or {}, str(path))
    return data


def read_object_if_any(path: Path) -> dict[str, Any]:
    """Like `read_object`; empty if there is no file."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; raises FileNotFoundError, DamagedFile, or EnvironmentFault if not permitted."""
    with damaged(str(path), "UTF-8 text"):
        try:
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(str(path)) from None
        except IsADirectoryError:
            raise DamagedFile(f"{path} is a folder; a file was expected") from None
        except OSError as error:
            with explained("read", path):
                raise error
    # Never reached, for the type checker: `explained` and `damaged` raise for what they catch.
    raise AssertionError


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object; raises DamagedFile, also for NaN and infinities, which JSON does not have."""
    data = parse_json(text, where)
    if not isinstance(data, dict):
        raise DamagedFile(f"{where} holds {_kind(data)}; an object was expected")
    return data


def parse_json(text: str, where: str) -> Any:
    """Parse JSON of any shape; raises DamagedFile."""
    with damaged(where, "JSON"):
        # Python's parser takes NaN and Infinity, which no other reader of these files would.
        data = json.loads(text, parse_constant=_refuse_constant)
        _refuse_depth(data, where)
        return data


@contextmanager
def damaged(where: str, expected: str) -> Iterator[None]:
    """Report an unexpected value in the block as DamagedFile: `where` cannot be read, what was expected."""
    try:
        yield
    # A missing file is no damage: many files are optional, and callers decide.
    except FileNotFoundError:
        raise
    except RecursionError:
        raise DamagedFile(f"{where} cannot be read: it is nested too deeply; expected {expected}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise DamagedFile(f"{where} cannot be read: {short_error(error)}; expected {expected}") from None


def check_types(data: Mapping[str, Any], expected: Mapping[str, Types], where: str) -> None:
    """Raise DamagedFile, with the key, unless the values under these keys have the expected types."""
    for key, types in expected.items():
        allowed = types if isinstance(types, tuple) else (types,)
        if key not in data or fits(data[key], allowed):
            continue
        # "a number" says it all: (int, float) would be "a whole number or a number".
        names = " or ".join(NAMES.get(kind, "null") for kind in allowed if (kind, allowed) != (int, NUMBER))
        raise DamagedFile(f"{where}: `{key}` is {_kind(data[key])}; expected {names}")


def fits(value: Any, allowed: Sequence[type]) -> bool:
    """True if the value has one of the types; true and false are no numbers."""
    # In Python True is an int.
    return isinstance(value, tuple(allowed)) and not (isinstance(value, bool) and bool not in allowed)


def short_error(error: BaseException) -> str:
    """First line of an error with its type, at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return NAMES[type(value)]
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _refuse_depth(data: Any, where: str) -> None:
    # Level by level and not by recursion, which a deep file could itself exhaust.
    level, depth = [data], 0
    while level:
        if depth > DEEPEST:
            raise DamagedFile(f"{where} is nested deeper than {DEEPEST} levels")
        inner = (v for v in level if isinstance(v, dict | list))
        level, depth = [v for node in inner for v in (node.values() if isinstance(node, dict) else node)], depth + 1
