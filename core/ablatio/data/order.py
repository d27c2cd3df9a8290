"""Order of the training windows: a pure function of (seed, epoch), without state, so resume is exact at any step."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ablatio.errors import UserError

Positions = NDArray[np.int64]


class WindowOrder:
    """Order of windows over a token stream.

    Row g belongs to epoch e = g // n; it is window i = g % n and starts at token offset_e + length * permutation_e[i].
    n = windows per epoch, the same in all epochs. A window has length + 1 tokens and the stride is length, so each
    target occurs once per epoch, except at the edges that the offset (drawn per epoch from [0, length)) cuts off. The
    order does not depend on the model, the batch size, the workers or the number of ranks.
    """

    def __init__(self, n_tokens: int, length: int, seed: int) -> None:
        if length < 1 or seed < 0:
            raise UserError(f"order: length={length}, seed={seed}; expected length >= 1 and seed >= 0")
        if n_tokens < length + 1:
            raise UserError(
                f"the training split has {n_tokens} tokens, but one window needs {length} + 1. "
                f"Use more text, or a context of at most {max(n_tokens - 1, 1)} tokens."
            )
        self.n_tokens, self.length, self.seed = n_tokens, length, seed
        # One window less than would fit without an offset, so that every offset leaves the same number of windows.
        self.windows = max(1, (n_tokens - length) // length)
        self.offsets = min(length, n_tokens - self.windows * length)
        self._epochs: dict[int, tuple[int, Positions]] = {}

    def epoch(self, epoch: int) -> tuple[int, Positions]:
        """Return the offset and the permutation (n,) of one epoch."""
        if epoch not in self._epochs:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            offset = int(rng.integers(self.offsets))
            while len(self._epochs) > 1:  # keep two: a batch spans at most two epochs, unless it is longer than one
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = offset, rng.permutation(self.windows)
        return self._epochs[epoch]

    def rows(self, first: int, count: int, rank: int = 0, world: int = 1) -> Positions:
        """Return the rows g of `rank` out of `count` rows (of all ranks) from `first` on: (count // world,)."""
        if count % world:
            raise UserError(f"a batch of {count} rows cannot be split over {world} ranks; use a multiple of {world}")
        share = count // world
        return first + rank * share + np.arange(share, dtype=np.int64)

    def starts(self, rows: Positions) -> Positions:
        """Position in the stream of each row's first token: (B,) -> (B,)."""
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
    """Order of rows that each start at a document: every document once per epoch.

    A document longer than a row is cut off; a shorter one is followed by the next ones of the stream. Documents with
    fewer than length + 1 tokens between their start and the end of the stream are left out.
    """

    def __init__(self, documents: Positions, n_tokens: int, length: int, seed: int) -> None:
        """`documents`: start positions of the documents, ascending."""
        super().__init__(n_tokens, length, seed)
        self.documents = whole_rows(documents, n_tokens, length)
        self.windows, self.offsets = len(self.documents), 1

    def _first(self, offset: int, windows: Positions) -> Positions:
        return self.documents[windows]


def whole_rows(documents: Positions, n_tokens: int, length: int) -> Positions:
    """Return the document starts that are followed by at least `length` + 1 tokens. Raises UserError if none is."""
    found = documents[documents + length < n_tokens]
    if not len(found):
        raise UserError(
            f"no document has {length} + 1 tokens from its start to the end of the split, which has {n_tokens} tokens. "
            "Use more text or a shorter context, or choose data.rows=windows."
        )
    return found


class RowPlan:
    """Rows of each batch: `full` of them, or fewer during a batch-size ramp.

    ramp(seen, full) returns the rows per batch of a step, given the rows `seen` before it; a step has `accumulate`
    batches. A pure function of the batch number, so resume needs no other state.
    """

    def __init__(self, full: int, accumulate: int = 1, ramp: Callable[[int, int], int] | None = None) -> None:
        self.full, self.accumulate, self.ramp = full, accumulate, ramp
        self._steps: list[tuple[int, int]] = []  # per ramped step: rows before it, rows of each of its batches

    def step(self, index: int) -> tuple[int, int]:
        """Return the rows before this step and the rows of each of its batches."""
        if self.ramp is None:
            return index * self.accumulate * self.full, self.full
        while len(self._steps) <= index:
            before, count = self._steps[-1] if self._steps else (0, 0)
            seen = before + count * self.accumulate
            # The ramp is evaluated from the rows seen so far, so the steps are computed in order and kept.
            self._steps.append((seen, min(self.full, max(1, self.ramp(seen, self.full)))))
        return self._steps[index]

    def batch(self, number: int) -> tuple[int, int]:
        """Return the first row and the number of rows of a batch."""
        step, place = divmod(number, self.accumulate)
        before, count = self.step(step)
        return before + place * count, count
