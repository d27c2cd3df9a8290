"""Shared code of the designs: two-level tables, aliases of effects, and the library pyDOE3."""

import itertools
import math
import random
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
            # Columns of -1 and 1 are equal up to the sign if their mean product is 1 or -1.
            product = float(first @ column) / len(column)
            if abs(abs(product) - 1) < 1e-9:
                names.append(name if product > 0 else f"-{name}")
                break
        else:
            groups.append((np.array(column), [name]))
    return [" = ".join(names) for _, names in groups if len(names) > 1]


CANDIDATES = 4096  # combinations among which `augmented` chooses; of more it draws that many


def augmented(rows: Sequence[Sequence[int]], levels: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` further rows of level numbers that separate main effects from two-way interactions.

    Bayesian D-optimality (DuMouchel and Jones 1994): each row maximizes x'(X'X + K)^-1 x; K has 1 for interactions.

    rows    (arms, axes) level numbers that the design already has
    levels  number of levels of each axis
    """
    import numpy as np

    taken = {tuple(row) for row in rows}
    total = math.prod(levels)
    # A fixed seed: a resumed sweep must find the same arms.
    numbers = range(total) if total <= CANDIDATES else random.Random(0).sample(range(total), CANDIDATES)
    pool = [row for row in (tuple(map(int, np.unravel_index(n, tuple(levels)))) for n in numbers) if row not in taken]
    if not count or not pool:
        return []
    known, prior = _columns(np.array(rows), levels)
    candidates, _ = _columns(np.array(pool), levels)
    # 1e-6 makes the matrix regular where the design cannot tell two main effects apart.
    inverse = np.linalg.inv(known.T @ known + np.diag(prior) + 1e-6 * np.eye(len(prior)))
    found: list[list[int]] = []
    for _ in range(min(count, len(pool))):
        # Rounded, so that ties are decided by the order of the pool and not by the last bits of a platform's algebra.
        gains = np.einsum("ij,jk,ik->i", candidates, inverse, candidates).round(9)
        gains[[pool.index(tuple(row)) for row in found]] = -1.0
        x = candidates[best := int(gains.argmax())]
        # Sherman-Morrison: one more row is a rank-one change of X'X.
        inverse = inverse - np.outer(inverse @ x, x @ inverse) / (1 + x @ inverse @ x)
        found.append(list(pool[best]))
    return found


def _columns(rows: Any, levels: Sequence[int]) -> tuple[Any, Any]:
    """(columns of mean, main effects and two-way interactions; prior precision of each column)."""
    import numpy as np

    # Sum-to-zero coding: effects are differences from the mean of all levels, and the columns of an axis are symmetric.
    main = [np.vstack([np.eye(n - 1), -np.ones((1, n - 1))])[rows[:, i]] for i, n in enumerate(levels)]
    pairs = [
        (a[:, :, None] * b[:, None, :]).reshape(len(rows), -1) for a, b in itertools.combinations(main, 2)
    ]  # fmt: skip
    count = 1 + sum(m.shape[1] for m in main)
    columns = np.hstack([np.ones((len(rows), 1)), *main, *pairs])
    return columns, np.array([0.0] * count + [1.0] * (columns.shape[1] - count))
