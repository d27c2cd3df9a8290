"""Values that came from the environment: whatever is written shows the expression that they came from instead.

`${oc.env:TOKEN}` in a config is resolved for the run and stays as it is in files.  Such a value can still get into a
text, most of all as the missing path of an error message.  Every writer of texts passes them through `redact`.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHORTEST = 4  # characters; a shorter value stands in too many words to be replaced
CUT = 8  # characters of a value, followed by ..., that are recognized as its beginning
_hidden: dict[str, str] = {}  # text -> what is written instead


def hide(value: str, expression: str) -> None:
    """Replace `value`, and the forms that paths and quoting give it, by `expression` in all texts written from now."""
    plain = value.strip()
    # Numbers stand everywhere: hiding `8` or `0.1` would spoil each table.
    if len(plain) < SHORTEST or plain.replace(".", "").isdigit():
        return
    # As JSON, repr and the shell write it; each text may quote a value in its own way.
    forms = [value, plain, plain.rstrip("/"), json.dumps(plain)[1:-1], repr(plain)[1:-1], shlex.quote(plain)[1:-1]]
    forms.append(plain.replace("'", "\\'"))
    if "/" in plain or plain.startswith(("~", ".")):
        path, at_home = Path(plain), Path(os.path.expanduser(plain))  # noqa: PTH111  (`~x` stays if there is no user x)
        forms += [str(path), str(at_home), str(at_home.absolute())]
    _hidden.update(dict.fromkeys((form for form in forms if len(form) >= SHORTEST), expression))


def redact(text: str) -> str:
    """The text with the expression in place of each hidden value."""
    # The longest first: a value that contains another would otherwise leave its rest behind.
    for value in sorted(_hidden, key=len, reverse=True) if _hidden else ():
        if value in text:
            text = text.replace(value, _hidden[value])
        text = _without_beginning(text, value, _hidden[value])
    return text


def _without_beginning(text: str, value: str, expression: str) -> str:
    """Replace the beginning of a value that a message has cut: `hunter2hunt...`."""
    parts = text.split("...")
    for number, part in enumerate(parts[:-1]):
        length = next((n for n in range(min(len(value) - 1, len(part)), CUT - 1, -1) if part.endswith(value[:n])), 0)
        if length:
            parts[number] = part[:-length] + expression
    return "...".join(parts)


def redact_tree(node: Any) -> Any:
    """Nested data with `redact` applied to its texts; keys stay."""
    if not _hidden:
        return node
    if isinstance(node, str):
        return redact(node)
    if isinstance(node, Mapping):
        return {key: redact_tree(value) for key, value in node.items()}
    return [redact_tree(value) for value in node] if isinstance(node, list | tuple) else node
