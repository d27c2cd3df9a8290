"""The order of training windows, a pure function of (seed, epoch): no state to save, so resume is exact everywhere."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ablatio.errors import UserError

Positions = NDArray[np.int64]


class WindowOrder:
    """Row g -> epoch g // n, window i = g % n; it starts at token offset_e + length * permutation_e[i].

    A window has length + 1 tokens and the stride is length, so each target is met once per epoch, up to the edge that
    the offset (new in each epoch, in [0, length)) cuts off. n = windows per epoch, the same in all epochs. The order
    does not depend on the model, the batch size, the workers or the number of ranks.
    """

    def __init__(self, n_tokens: int, length: int, seed: int) -> None:
        if length < 1 or seed < 0:
            raise UserError(f"order: length must be at least 1 and seed at least 0; came length={length}, seed={seed}")
        if n_tokens < length + 1:
            raise UserError(
                f"the training split has {n_tokens} tokens, and one window takes {length} + 1. "
                f"Give more text, or a context of at most {max(n_tokens - 1, 1)} tokens."
            )
        self.n_tokens, self.length, self.seed = n_tokens, length, seed
        self.windows = max(1, (n_tokens - length) // length)
        self.offsets = min(length, n_tokens - self.windows * length)
        self._epochs: dict[int, tuple[int, Positions]] = {}

    def epoch(self, epoch: int) -> tuple[int, Positions]:
        """(offset, permutation (n,)) of one epoch."""
        if epoch not in self._epochs:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            offset = int(rng.integers(self.offsets))
            while len(self._epochs) > 1:  # a batch straddles two epochs at most, unless it is longer than one
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = offset, rng.permutation(self.windows)
        return self._epochs[epoch]

    def rows(self, first: int, count: int, rank: int = 0, world: int = 1) -> Positions:
        """The flat rows g that `rank` takes of `count` rows from `first` on (all ranks together): (count // world,)."""
        if count % world:
            raise UserError(f"a batch of {count} rows cannot be shared by {world} ranks; make it a multiple of {world}")
        share = count // world
        return first + rank * share + np.arange(share, dtype=np.int64)

    def starts(self, rows: Positions) -> Positions:
        """The first token of each row: (B,) -> (B,)."""
        epochs, places = np.divmod(rows, self.windows)
        starts = np.empty_like(rows)
        for epoch in np.unique(epochs):
            offset, permutation = self.epoch(int(epoch))
            here = epochs == epoch
            starts[here] = self._first(offset, permutation[places[here]])
        return starts

    def _first(self, offset: int, windows: Positions) -> Positions:
        return offset + self.length * windows


class DocumentOrder(WindowOrder):
    """Rows that start where a document does, each document once per epoch; what is longer than a row is cut off.

    Behind a document that is shorter the next ones follow.  Documents too near to the stream's end are left out.
    """

    def __init__(self, documents: Positions, n_tokens: int, length: int, seed: int) -> None:
        """documents: where each one starts, in order."""
        super().__init__(n_tokens, length, seed)
        self.documents = whole_rows(documents, n_tokens, length)
        self.windows, self.offsets = len(self.documents), 1

    def _first(self, offset: int, windows: Positions) -> Positions:
        return self.documents[windows]


def whole_rows(documents: Positions, n_tokens: int, length: int) -> Positions:
    """The documents from whose start on the stream has `length` + 1 tokens."""
    found = documents[documents + length < n_tokens]
    if not len(found):
        raise UserError(
            f"no document has {length} + 1 tokens from its start to the end of the split, which has {n_tokens}. "
            "Give more text or a shorter context, or choose data.rows=windows."
        )
    return found


class RowPlan:
    """Which rows each batch has: `full` of them, or as many as `ramp` says.

    ramp(seen, full) gives the rows of the batches of a step before which `seen` rows were taken; a step has
    `accumulate` batches.  A pure function of the numbers, so resume finds its place by the number of the batch alone.
    """

    def __init__(self, full: int, accumulate: int = 1, ramp: Callable[[int, int], int] | None = None) -> None:
        self.full, self.accumulate, self.ramp = full, accumulate, ramp
        self._steps: list[tuple[int, int]] = []  # of each ramped step: rows before it, rows of one of its batches

    def step(self, index: int) -> tuple[int, int]:
        """(rows before this step, rows of each of its batches)."""
        if self.ramp is None:
            return index * self.accumulate * self.full, self.full
        while len(self._steps) <= index:
            before, count = self._steps[-1] if self._steps else (0, 0)
            seen = before + count * self.accumulate
            self._steps.append((seen, min(self.full, max(1, self.ramp(seen, self.full)))))
        return self._steps[index]

    def batch(self, number: int) -> tuple[int, int]:
        """(first row, rows) of a batch."""
        step, place = divmod(number, self.accumulate)
        before, count = self.step(step)
        return before + place * count, count
