"""Shared code of the designs: two-level tables, aliases of effects, and the library pyDOE3."""

import itertools
from collections.abc import Sequence
from typing import Any

from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Arm


def tables() -> Any:
    """Import pyDOE3, an optional dependency; raise UserError, with the command to install it, if it is missing."""
    try:
        import pyDOE3
    except ImportError:
        raise UserError("this design needs the package pyDOE3\n    try: pip install 'ablatio[design]'") from None
    return pyDOE3


def check_two_levels(design: str, axes: Sequence[Any]) -> None:
    """Raise UserError unless each axis has two values."""
    for axis in axes:
        if len(axis.values) != 2:
            raise UserError(
                f"design={design} compares two values of each axis, and {axis.key} has {len(axis.values)}: "
                f"{', '.join(axis.values)}\n    try: {axis.key}={','.join((axis.values * 2)[:2])}, or design=orthogonal"
            )


def arms_of(signs: Any, axes: Sequence[Any]) -> list[Arm]:
    """Convert rows of -1 and 1 to arms; -1 stands for the first value of an axis."""
    return [{axis.key: axis.values[int(x > 0)] for axis, x in zip(axes, row, strict=True)} for row in signs]


def alias_table(signs: Any, axes: Sequence[Any]) -> list[str]:
    """List the main effects and two-way interactions whose columns are equal up to the sign, as `a = b x c`."""
    import numpy as np

    keys = [axis.key for axis in axes]
    columns = {key: signs[:, i] for i, key in enumerate(keys)}
    effects = columns | {f"{a} x {b}": columns[a] * columns[b] for a, b in itertools.combinations(keys, 2)}
    groups: list[tuple[Any, list[str]]] = []
    for name, column in effects.items():
        for first, names in groups:
            product = float(first @ column) / len(column)
            if abs(abs(product) - 1) < 1e-9:
                names.append(name if product > 0 else f"-{name}")
                break
        else:
            groups.append((np.array(column), [name]))
    return [" = ".join(names) for _, names in groups if len(names) > 1]
