"""Screening designs: few runs for many axes, to find those that matter (tables from pyDOE3)."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from ablatio import NonNegative, Positive, Range, designs
from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Arm
from ablatio_std.designs._common import alias_table, arms_of, augmented, check_two_levels, tables

MAX_ROWS = 1024  # of a table


@designs.register("plackett_burman", paper="doi:10.1093/biomet/33.4.305")
class PlackettBurman:
    """N arms for up to N - 1 axes with two values, N a multiple of 4: the columns are orthogonal, H^T H = N I.

    A main effect is the mean of the half of the arms with one value minus the mean of the other half.  It is not
    aliased with other main effects, but partially with all two-way interactions.  `foldover` adds each arm with all
    values switched, which removes the aliasing of main effects with two-way interactions.
    """

    screens = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        runs: Annotated[int | None, Positive, "number N of arms before folding over; null: the smallest"] = None,
        foldover: Annotated[bool, "add each arm with all values switched"] = False,
    ):
        check_two_levels("plackett_burman", axes)
        # N - 1 columns: N must be larger than the number of axes, and a multiple of 4.
        smallest = 4 * (len(axes) // 4 + 1)
        self.axes, self.foldover, self.runs = axes, foldover, runs or smallest
        if self.runs % 4 or not smallest <= self.runs <= MAX_ROWS:
            raise UserError(
                f"design.runs={self.runs} came; design=plackett_burman with {len(axes)} axes needs a multiple of 4 "
                f"from {smallest} to {MAX_ROWS}\n    try: design.runs={smallest}"
            )

    def count(self) -> int:
        return self.runs * (1 + self.foldover)

    def signs(self) -> Any:
        """The table of -1 and 1: (arms, axes)."""
        table = tables().pbdesign(self.runs - 1)[:, : len(self.axes)]
        return tables().fold(table) if self.foldover else table

    def arms(self) -> Iterable[Arm]:
        return arms_of(self.signs(), self.axes)

    def aliases(self) -> list[str]:
        if self.foldover:
            return alias_table(self.signs(), self.axes)
        return [
            "each main effect = a part of every two-way interaction of the other axes",
            *self._full_aliases(),
        ]

    def follow_up(self) -> dict[str, str]:
        return {} if self.foldover else {"design.foldover": "true"}

    def _full_aliases(self) -> list[str]:
        return alias_table(self.signs(), self.axes)


@designs.register("fractional", paper="doi:10.1080/00401706.1961.10489951")
class Fractional:
    """2^(k-p) arms for k axes with two values: the columns of p axes are products of others (x_d = x_a x_b x_c).

    Resolution III: main effects are aliased with two-way interactions.  IV: main effects are aliased with three-way
    interactions, and two-way interactions with each other.  V: two-way interactions are not aliased with each other.
    `generators` gives the products directly, a letter or product for each axis: "a b c abc".  `foldover` adds each arm
    with the values of all axes switched, which frees main effects of two-way interactions, or with those of one axis,
    which frees that axis and its interactions (Montgomery, Design and Analysis of Experiments, 2017, section 8.6).
    """

    screens = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        resolution: Annotated[int, Range(3, 9), "length of the shortest word in the defining relation"] = 4,
        generators: Annotated[str | None, "columns, such as `a b c abc`; override the resolution"] = None,
        foldover: Annotated[str | None, "add each arm with the values of `all` axes switched, or of one axis"] = None,
    ) -> None:
        check_two_levels("fractional", axes)
        self.axes, self.resolution, self.generators, self.foldover = axes, resolution, generators, foldover
        self._signs = self._folded(self._table())

    def _table(self) -> Any:
        """The table of -1 and 1: (arms, axes)."""
        doe, k = tables(), len(self.axes)
        words = None if self.generators is None else self.generators.split()
        if words is not None and (len(words) != k or not all(w.lstrip("+-").isalpha() for w in words)):
            raise UserError(
                f"design.generators={self.generators!r} came; {k} letters or products were expected, one for each axis"
                f"\n    try: design.generators='{' '.join('abcdefghijklmnopqrstuvwxyz'[:k])}'"
            )
        try:
            if words is not None:
                return doe.fracfact(" ".join(words))
            return doe.fracfact_by_res(k, self.resolution) if k > self.resolution else doe.ff2n(k)
        except ValueError as error:
            raise UserError(
                f"there is no fractional design of resolution {self.resolution} for {k} axes: {error}\n    try: "
                "design.resolution=3, or design=plackett_burman"
            ) from None

    def _folded(self, table: Any) -> Any:
        import numpy as np

        keys = [axis.key for axis in self.axes]
        if self.foldover is None:
            return table
        if self.foldover not in ("all", *keys):
            raise UserError(
                f"design.foldover={self.foldover} came; expected `all`, or one of the axes: {', '.join(keys)}\n"
                "    try: design.foldover=all"
            )
        switched = [key if self.foldover == "all" else self.foldover for key in keys]
        return np.vstack([table, np.where(np.array(switched) == np.array(keys), -table, table)])

    def count(self) -> int:
        return len(self._signs)

    def arms(self) -> Iterable[Arm]:
        return arms_of(self._signs, self.axes)

    def aliases(self) -> list[str]:
        return alias_table(self._signs, self.axes)

    def follow_up(self) -> dict[str, str]:
        named = [name.lstrip("-").split(" x ") for line in self.aliases() for name in line.split(" = ")]
        if self.foldover is not None or not named:
            return {}
        # An aliased main effect is the worse case, and folding over all axes frees all of them.
        if any(len(keys) == 1 for keys in named):
            return {"design.foldover": "all"}
        # Folding over one axis frees it and its interactions: the axis in most aliases frees most.
        often = Counter(key for keys in named for key in keys)
        return {"design.foldover": max(often, key=lambda key: often[key])}


@designs.register("orthogonal", paper="doi:10.1007/978-1-4612-1478-6")
class Orthogonal:
    """The smallest orthogonal array: each pair of values of two axes occurs equally often; axes with 2 to 6 values.

    `augment` adds arms that separate main effects from two-way interactions: one at a time the combination x with the
    largest x'(X'X + K)^-1 x, with a prior that interactions are small (K = 1 for them, 0 for main effects).

    Sources: Hedayat, Sloane and Stufken, Orthogonal Arrays, 1999; for `augment` DuMouchel and Jones, A Simple Bayesian
    Modification of D-Optimal Designs, 1994, doi:10.1080/00401706.1994.10485399.
    """

    screens = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        augment: Annotated[int, NonNegative, "arms added to separate effects that the array aliases"] = 0,
    ) -> None:
        self.axes, self.augment = axes, augment
        self.array = self._smallest_array()
        self.rows = [*self.array, *augmented(self.array, [len(axis.values) for axis in axes], augment)]

    def _smallest_array(self) -> list[list[int]]:
        """Indices of values, for each arm and axis, from the smallest array of pyDOE3 with fitting columns."""
        doe = tables()
        # The first array that fits is then the smallest.
        arrays = sorted((doe.get_orthogonal_array(name) for name in doe.list_orthogonal_arrays()), key=len)
        for array in arrays:
            unused = {i: len(set(column)) for i, column in enumerate(array.T)}  # column -> number of its levels
            columns: list[int] = []
            for axis in self.axes:
                i = next((i for i, n in unused.items() if n == len(axis.values)), None)
                if i is None:
                    break
                columns.append(i)
                unused.pop(i)
            else:
                if _is_orthogonal(array[:, columns]):
                    return [[int(x) for x in row] for row in array[:, columns]]
        sizes = " x ".join(str(len(axis.values)) for axis in self.axes)
        full = math.prod(len(axis.values) for axis in self.axes)
        raise UserError(
            f"design=orthogonal: pyDOE3 has no orthogonal array for axes with {sizes} values\n"
            f"    try: design=full ({full} arms)"
        )

    def count(self) -> int:
        return len(self.rows)

    def arms(self) -> Iterable[Arm]:
        for row in self.rows:
            yield {axis.key: axis.values[x] for axis, x in zip(self.axes, row, strict=True)}

    def follow_up(self) -> dict[str, str]:
        left = math.prod(len(axis.values) for axis in self.axes) - len(self.array)
        return {} if self.augment or not left else {"design.augment": str(min(len(self.array), left))}


def _is_orthogonal(array: Any) -> bool:
    """True if each pair of values of two columns occurs equally often, which not all of pyDOE3's tables satisfy."""
    from collections import Counter
    from itertools import combinations

    for a, b in combinations(array.T, 2):
        pairs = Counter(zip(a.tolist(), b.tolist(), strict=True))
        if len(set(pairs.values())) > 1 or len(pairs) != len(set(a)) * len(set(b)):
            return False
    return True
