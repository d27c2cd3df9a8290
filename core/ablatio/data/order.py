"""The order of training windows, a pure function of (seed, epoch): no state to save, so resume is exact everywhere."""

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
        self._epochs: dict[int, tuple[int, Positions]] = {}

    def epoch(self, epoch: int) -> tuple[int, Positions]:
        """(offset, permutation (n,)) of one epoch."""
        if epoch not in self._epochs:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            offset = int(rng.integers(min(self.length, self.n_tokens - self.windows * self.length)))
            while len(self._epochs) > 1:  # a batch straddles two epochs at most, unless it is longer than one
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = offset, rng.permutation(self.windows)
        return self._epochs[epoch]

    def rows(self, step: int, batch: int, rank: int = 0, world: int = 1) -> Positions:
        """The flat rows g that `rank` takes of step's `batch` rows (all ranks together): (batch // world,)."""
        if batch % world:
            raise UserError(f"a batch of {batch} rows cannot be shared by {world} ranks; make it a multiple of {world}")
        share = batch // world
        return step * batch + rank * share + np.arange(share, dtype=np.int64)

    def starts(self, rows: Positions) -> Positions:
        """The first token of each row: (B,) -> (B,)."""
        epochs, places = np.divmod(rows, self.windows)
        starts = np.empty_like(rows)
        for epoch in np.unique(epochs):
            offset, permutation = self.epoch(int(epoch))
            here = epochs == epoch
            starts[here] = offset + self.length * permutation[places[here]]
        return starts
