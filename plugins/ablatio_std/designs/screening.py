"""Few runs for many axes of two values: which ones matter at all (pyDOE3)."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from ablatio import Positive, Range, designs
from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Arm
from ablatio_std.designs._common import alias_table, arms_of, levels_of_two, tables

MOST = 1024  # rows of a table


@designs.register("plackett_burman", paper="doi:10.1093/biomet/33.4.305")
class PlackettBurman:
    """N arms for up to N - 1 axes of two values, N a multiple of 4: the columns are orthogonal, H^T H = N I.

    Each main effect is the mean of half of the arms less that of the others.  It is told apart from the other main
    effects, not from interactions, which are spread over all columns; `foldover` runs each arm with all values turned
    round as well, which frees main effects from two-way interactions.
    """

    screens = True

    def __init__(
        self, axes: Sequence[Any], *, runs: Annotated[int | None, Positive, "N"] = None, foldover: bool = False
    ):
        levels_of_two("plackett_burman", axes)
        least = 4 * (len(axes) // 4 + 1)
        self.axes, self.foldover, self.runs = axes, foldover, runs or least
        if self.runs % 4 or not least <= self.runs <= MOST:
            raise UserError(
                f"{self.runs} runs came; {len(axes)} axes take a multiple of 4 from {least} to {MOST}\n"
                f"    try: design.runs={least}"
            )

    def count(self) -> int:
        return self.runs * (1 + self.foldover)

    def signs(self) -> Any:
        table = tables().pbdesign(self.runs - 1)[:, : len(self.axes)]
        return tables().fold(table) if self.foldover else table

    def arms(self) -> Iterable[Arm]:
        return arms_of(self.signs(), self.axes)

    def aliases(self) -> list[str]:
        if self.foldover:
            return alias_table(self.signs(), self.axes)
        return ["each main effect = a part of every two-way interaction of the other axes", *self._equal()]

    def _equal(self) -> list[str]:
        return alias_table(self.signs(), self.axes)


@designs.register("fractional", paper="doi:10.1080/00401706.1961.10489951")
class Fractional:
    """2^(k-p) arms for k axes of two values: the columns of p axes are products of others' (x_d = x_a x_b x_c).

    resolution III: main effects are equal to two-way interactions (aliases); IV: to three-way ones, two-way
    interactions among one another; V: two-way interactions are free of one another.  `generators` says the products
    itself, a letter or product for each axis: "a b c abc".
    """

    screens = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        resolution: Annotated[int, Range(3, 9), "length of the shortest alias word"] = 4,
        generators: Annotated[str | None, "`a b c abc`: overrides the resolution"] = None,
    ) -> None:
        levels_of_two("fractional", axes)
        self.axes, self.resolution, self.generators = axes, resolution, generators
        self._signs = self._made()

    def _made(self) -> Any:
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
                f"there is no fraction of resolution {self.resolution} for {k} axes: {error}\n    try: "
                "design.resolution=3, or design=plackett_burman"
            ) from None

    def count(self) -> int:
        return len(self._signs)

    def arms(self) -> Iterable[Arm]:
        return arms_of(self._signs, self.axes)

    def aliases(self) -> list[str]:
        return alias_table(self._signs, self.axes)


@designs.register("orthogonal", paper="doi:10.1007/978-1-4612-1478-6")
class Orthogonal:
    """The smallest orthogonal array: each pair of values of two axes comes equally often, for axes of 2 to 6 values.

    Source: Hedayat, Sloane and Stufken, Orthogonal Arrays, 1999.
    """

    screens = True

    def __init__(self, axes: Sequence[Any]) -> None:
        self.axes = axes
        self.rows = self._fitting()

    def _fitting(self) -> list[list[int]]:
        doe = tables()
        arrays = sorted((doe.get_orthogonal_array(name) for name in doe.list_orthogonal_arrays()), key=len)
        for array in arrays:
            free = {i: len(set(column)) for i, column in enumerate(array.T)}
            taken: list[int] = []
            for axis in self.axes:
                i = next((i for i, n in free.items() if n == len(axis.values)), None)
                if i is None:
                    break
                taken.append(i)
                free.pop(i)
            else:
                if _is_orthogonal(array[:, taken]):
                    return [[int(x) for x in row] for row in array[:, taken]]
        sizes = " x ".join(str(len(axis.values)) for axis in self.axes)
        full = math.prod(len(axis.values) for axis in self.axes)
        raise UserError(f"no orthogonal array is known for {sizes} values\n    try: design=full ({full} arms)")

    def count(self) -> int:
        return len(self.rows)

    def arms(self) -> Iterable[Arm]:
        for row in self.rows:
            yield {axis.key: axis.values[x] for axis, x in zip(self.axes, row, strict=True)}


def _is_orthogonal(array: Any) -> bool:
    """Whether each pair of values of two columns comes equally often; not all tables of the library hold to that."""
    from collections import Counter
    from itertools import combinations

    for a, b in combinations(array.T, 2):
        pairs = Counter(zip(a.tolist(), b.tolist(), strict=True))
        if len(set(pairs.values())) > 1 or len(pairs) != len(set(a)) * len(set(b)):
            return False
    return True
