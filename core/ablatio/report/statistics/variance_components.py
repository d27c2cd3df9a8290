"""Variance between runs of one config, split into initial weights and order of the data.

y_ij = m + a_i + b_j + e_ij, for init i (of I) and order j (of J), each once.  The mean squares of the two-way layout
have the expectations J var(a) + var(e), I var(b) + var(e) and var(e), which gives the estimates; one below 0 counts as
0.  Several arms are pooled by adding sums of squares and degrees of freedom.

Source: Searle, Casella & McCulloch 1992, Variance Components, chapter 4; as asked of language models by Dodge et al.
2020 (arXiv:2002.06305).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Cells = Mapping[tuple[int, int], float]  # (init, order) -> score


@dataclass(frozen=True, slots=True)
class VarianceSplit:
    """Variances of the score due to init, order, and what is left (their interaction, dropout, hardware).

    inits, orders  numbers of levels that are crossed; arms: number of arms pooled
    """

    init: float
    order: float
    rest: float
    inits: int
    orders: int
    arms: int


def split(arms: Sequence[Cells]) -> VarianceSplit | None:
    """Estimate the components from the arms that are complete; None if no arm crosses two inits with two orders."""
    grids = [grid for cells in arms if (grid := _complete(cells)) is not None]
    if not grids:
        return None
    # Sums of squares add up only over layouts with the same I and J, in which they have the same expectations.
    shape = max((grid.shape for grid in grids), key=lambda s: s[0] * s[1])
    grids = [grid for grid in grids if grid.shape == shape]
    inits, orders = shape
    squares = np.zeros(3)
    for grid in grids:
        middle, of_init, of_order = grid.mean(), grid.mean(axis=1), grid.mean(axis=0)
        rest = grid - of_init[:, None] - of_order[None, :] + middle
        squares += [
            orders * ((of_init - middle) ** 2).sum(),
            inits * ((of_order - middle) ** 2).sum(),
            (rest**2).sum(),
        ]
    of_init, of_order, error = squares / (len(grids) * np.array([inits - 1, orders - 1, (inits - 1) * (orders - 1)]))
    init, order = max(0.0, (of_init - error) / orders), max(0.0, (of_order - error) / inits)
    return VarianceSplit(float(init), float(order), float(error), inits, orders, len(grids))


def _complete(cells: Cells) -> NDArray[np.float64] | None:
    """Scores as (I, J); None unless every init was run with every order, and all scores are finite."""
    inits, orders = sorted({i for i, _ in cells}), sorted({j for _, j in cells})
    if len(inits) < 2 or len(orders) < 2 or len(cells) != len(inits) * len(orders):
        return None
    grid = np.array([[cells[i, j] for j in orders] for i in inits], dtype=np.float64)
    return grid if np.isfinite(grid).all() else None
