"""Packing of examples of unequal length into rows: order by (seed, epoch), caps per group, first-fit packing.

Row g of a run depends on g and the seed alone, as with windows of text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


class ExampleOrder:
    """The examples of each epoch and their order: all examples, but at most `cap` per group.

    A group of n examples contributes min(n, cap) per epoch (examples-proportional mixing with a limit,
    arXiv:1910.10683, section 3.5.2). The next epoch continues in the group where this one stopped, so that every
    example is used eventually.
    """

    def __init__(self, groups: Sequence[str], seed: int, cap: int | None = None) -> None:
        self.seed, self.cap = seed, cap
        # Sorted: the place of a group seeds its permutations, and must not depend on which example comes first.
        names = sorted(set(groups))
        place = np.array([names.index(g) for g in groups], dtype=np.int64)
        self.groups = [np.flatnonzero(place == i) for i in range(len(names))]
        self.size = sum(min(len(g), cap or len(g)) for g in self.groups)  # examples per epoch

    def epoch(self, epoch: int) -> Positions:
        """Return the indices of the examples of one epoch, in order: (n,)."""
        taken = [self._share(number, members, epoch) for number, members in enumerate(self.groups)]
        everything = np.concatenate(taken)
        order: Positions = everything[self._generator(epoch).permutation(len(everything))]
        return order

    def _share(self, number: int, members: Positions, epoch: int) -> Positions:
        """The members of group `number` that one epoch uses."""
        n = len(members)
        count = min(n, self.cap or n)
        if count == n:
            return members
        first = epoch * count
        # Epochs walk through an endless series of permutations of the group, `count` members at a time.
        passes = range(first // n, (first + count - 1) // n + 1)
        # `number + 1`, because SeedSequence takes [a, b] and [a, b, 0] for the same, and [seed, epoch] is the order's.
        orders = np.concatenate([self._generator(p, number + 1).permutation(n) for p in passes])
        share: Positions = members[orders[first - passes.start * n :][:count]]
        return share

    def _generator(self, *numbers: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *numbers])))


class PackedRows:
    """Assignment of examples to rows of `length` tokens; `length` None: each example has its own row."""

    def __init__(self, sizes: Sequence[int], order: ExampleOrder, length: int | None) -> None:
        self.sizes, self.order, self.length = np.asarray(sizes, dtype=np.int64), order, length
        self._first = [0]  # number of the first row of each epoch, as far as computed
        self._held: dict[int, list[list[int]]] = {}

    def row(self, number: int) -> list[int]:
        """Return the indices of the examples in row `number`, counted over all epochs."""
        while self._first[-1] <= number:
            self._first.append(self._first[-1] + len(self._epoch(len(self._first) - 1)))
        epoch = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._epoch(epoch)[number - self._first[epoch]]

    @property
    def epoch_rows(self) -> int:
        """Rows of the first epoch; packed, another order may need some rows more or less."""
        return len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._held:
            while len(self._held) > 1:  # keep two epochs: a batch may span both
                del self._held[next(iter(self._held))]
            order = self.order.epoch(epoch)
            self._held[epoch] = [[int(i)] for i in order] if self.length is None else self._pack(order)
        return self._held[epoch]

    def _pack(self, order: Positions) -> list[list[int]]:
        assert self.length is not None
        return first_fit(self.sizes, order, self.length)


def first_fit(sizes: Positions, order: Positions, length: int) -> list[list[int]]:
    """Pack examples, in `order`, into the first row with room for each; return rows ordered by their first example."""
    rows: list[list[int]] = []
    room = np.zeros(len(order), dtype=np.int64)
    for i in order.tolist():
        size = int(sizes[i])
        at = int(np.argmax(room[: len(rows)] >= size)) if rows else 0  # the first True, or 0 if there is none
        if at == len(rows) or room[at] < size:
            at = len(rows)
            rows.append([])
            room[at] = length
        rows[at].append(i)
        room[at] -= size
    return rows
