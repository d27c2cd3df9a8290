"""Order of the training windows: a pure function of (seed, epoch), without state, so resume is exact at any step."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ablatio.errors import UserError

Positions = NDArray[np.int64]
Order = Literal["shuffled", "coprime"]


class WindowOrder:
    """Order of windows over a token stream.

    Row g belongs to epoch e = g // n; it is window i = g % n and starts at token offset_e + length * permutation_e[i].
    n = windows per epoch, the same in all epochs. A window has length + 1 tokens and the stride is length, so each
    target occurs once per epoch, except at the edges that the offset (drawn per epoch from [0, length)) cuts off. The
    order does not depend on the model, the batch size, the workers or the number of ranks.

    by="coprime": permutation_e[i] = (first + stride * i) mod n, first and stride drawn per epoch, stride without a
    common divisor with n: neighboring rows of a batch are far apart in the text, evenly.
    """

    def __init__(self, n_tokens: int, length: int, seed: int, by: Order = "shuffled") -> None:
        if length < 1 or seed < 0:
            raise UserError(f"order: length={length}, seed={seed}; expected length >= 1 and seed >= 0\n"
                            "    try: length=128, seed=0")  # fmt: skip
        if n_tokens < length + 1:
            raise UserError(
                f"the training split has {n_tokens} tokens, but one window needs {length} + 1\n"
                f"    try: data.length={max(n_tokens - 1, 1)}, or more text"
            )
        self.n_tokens, self.length, self.seed, self.by = n_tokens, length, seed, by
        # One window less than would fit without an offset, so that every offset leaves the same number of windows.
        self.windows = max(1, (n_tokens - length) // length)
        self.offsets = min(length, n_tokens - self.windows * length)
        self._epochs: dict[int, tuple[int, Positions]] = {}

    def epoch(self, epoch: int) -> tuple[int, Positions]:
        """Return the offset and the permutation (n,) of one epoch."""
        if epoch not in self._epochs:
            # PCG64 by name: the default generator of numpy may change, and with it the order of every run.
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            offset = int(rng.integers(self.offsets))
            while len(self._epochs) > 1:  # keep two: a batch spans at most two epochs, unless it is longer than one
                del self._epochs[next(iter(self._epochs))]
            permutation = rng.permutation(self.windows) if self.by == "shuffled" else _strided(self.windows, rng)
            self._epochs[epoch] = offset, permutation
        return self._epochs[epoch]

    def rows(self, first: int, count: int, rank: int = 0, world: int = 1) -> Positions:
        """Return the rows g of `rank` out of `count` rows (of all ranks) from `first` on: (count // world,)."""
        if count % world:
            raise UserError(f"a batch of {count} rows cannot be split over {world} ranks\n"
                            f"    try: train.batch_size={(count // world + 1) * world}")  # fmt: skip
        share = count // world
        # Neighboring rows for one rank: all ranks together have the same rows as one device with the whole batch.
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

    def of_length(self, length: int) -> "WindowOrder":
        """The same order for rows of another length."""
        return self if length == self.length else WindowOrder(self.n_tokens, length, self.seed, self.by)

    def _first(self, offset: int, windows: Positions) -> Positions:
        return offset + self.length * windows


def _strided(count: int, rng: np.random.Generator) -> Positions:
    """All of 0 ... count - 1 in steps of a random stride that has no common divisor with `count`."""
    first, stride = int(rng.integers(count)), int(rng.integers(1, count + 1))
    while math.gcd(stride, count) > 1:
        stride = int(rng.integers(1, count + 1))
    return (first + stride * np.arange(count, dtype=np.int64)) % count


class DocumentOrder(WindowOrder):
    """Order of rows that each start at a document: every document once per epoch.

    A document longer than a row is cut off; a shorter one is followed by the next ones of the stream. Documents with
    fewer than length + 1 tokens between their start and the end of the stream are left out.
    """

    def __init__(self, documents: Positions, n_tokens: int, length: int, seed: int, by: Order = "shuffled") -> None:
        """`documents`: start positions of the documents, ascending."""
        super().__init__(n_tokens, length, seed, by)
        self.all_documents, self.documents = documents, whole_rows(documents, n_tokens, length)
        # A document starts where it starts, so that there is no offset to draw.
        self.windows, self.offsets = len(self.documents), 1

    def of_length(self, length: int) -> "DocumentOrder":
        """The same order for rows of another length."""
        if length == self.length:
            return self
        return DocumentOrder(self.all_documents, self.n_tokens, length, self.seed, self.by)

    def _first(self, offset: int, windows: Positions) -> Positions:
        return self.documents[windows]


def whole_rows(documents: Positions, n_tokens: int, length: int) -> Positions:
    """Return the document starts that are followed by at least `length` + 1 tokens. Raises UserError if none is."""
    found = documents[documents + length < n_tokens]
    if not len(found):
        raise UserError(
            f"no document has {length} + 1 tokens from its start to the end of the split, which has {n_tokens} tokens\n"
            "    try: data.rows=windows, a smaller data.length, or more text"
        )
    return found


class RowPlan:
    """Rows of each batch, and tokens of each row where they change: a function of the step.

    full        rows per batch
    accumulate  batches per step
    shape       shape(step, tokens before it) returns (rows per batch, tokens per row) of a step; None: `full` rows of
                one length

    A pure function of the batch number, so resume needs no other state.
    """

    def __init__(
        self, full: int, accumulate: int = 1, shape: Callable[[int, int], tuple[int, int]] | None = None
    ) -> None:
        self.full, self.accumulate, self.shape = full, accumulate, shape
        # Per step: rows before it, rows of each of its batches, tokens before it, tokens per row.
        self._steps: list[tuple[int, int, int, int]] = []

    def reshape(self, shape: Callable[[int, int], tuple[int, int]] | None) -> None:
        """Replace `shape`; whoever holds the plan sees the new rows."""
        self.shape, self._steps = shape, []

    def step(self, index: int) -> tuple[int, int]:
        """Return the rows before this step and the rows of each of its batches."""
        return (index * self.accumulate * self.full, self.full) if self.shape is None else self._step(index)[:2]

    def tokens(self, steps: int, length: int) -> int:
        """Number of tokens in the rows of the first `steps` steps; length: tokens per row if no shape is given."""
        return self.step(steps)[0] * length if self.shape is None else self._step(steps)[2]

    def row_length(self, step: int, length: int) -> int:
        """Tokens per row in a step; length: if no shape is given."""
        return length if self.shape is None else self._step(step)[3]

    def _step(self, index: int) -> tuple[int, int, int, int]:
        assert self.shape is not None
        # A shape may depend on the tokens so far, so that steps are computed in order, and kept.
        while len(self._steps) <= index:
            before, count, tokens, length = self._steps[-1] if self._steps else (0, 0, 0, 0)
            rows = count * self.accumulate
            shape = self.shape(len(self._steps), tokens + rows * length)
            self._steps.append((before + rows, shape[0], tokens + rows * length, shape[1]))
        return self._steps[index]

    def batch(self, number: int) -> tuple[int, int]:
        """Return the first row and the number of rows of a batch.

        Rows are numbered as if all of them had this batch's length: the tokens before the step, in rows.
        """
        step, place = divmod(number, self.accumulate)
        if self.shape is None:
            return number * self.full, self.full
        _, count, tokens, length = self._step(step)
        # Rounded up: if the length has changed, a part of a row is skipped rather than trained on twice.
        return -(-tokens // length) + place * count, count


class EasiestFirst:
    """Another order of rows of a stream: drawn from those whose documents are the easiest.

    The rows without an offset, at 0, T, 2 T ..., are sorted by the difficulty of the document in which they begin.  Row
    g is then a uniform draw, by (seed, g), from the first `share` of them: a function of g and the share alone.

    documents   start positions of the documents, ascending
    difficulty  (n,) of each document
    """

    def __init__(self, documents: Positions, difficulty: NDArray[np.float64], n_tokens: int, seed: int) -> None:
        self.documents, self.difficulty, self.n_tokens, self.seed = documents, difficulty, n_tokens, seed
        self._sorted: dict[int, Positions] = {}  # start positions by length of the rows

    def starts(self, rows: Positions, length: int, share: float) -> Positions:
        """Position in the stream of each row's first token: (B,) -> (B,)."""
        if length not in self._sorted:
            starts = np.arange(max(1, (self.n_tokens - 1) // length), dtype=np.int64) * length
            of_document = np.searchsorted(self.documents, starts, side="right") - 1
            # Stable: rows of one document, and ties between documents, keep the order of the stream on every machine.
            self._sorted[length] = starts[np.argsort(self.difficulty[of_document], kind="stable")]
        pool = self._sorted[length]
        count = max(1, int(np.ceil(share * len(pool))))
        return pool[(uniforms(self.seed, rows, stream=1) * count).astype(np.int64)]


def uniforms(seed: int, rows: Positions, stream: int = 0) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) that depend on (seed, stream, row) alone, for ascending rows: (B,) -> (B,)."""
    if not len(rows):
        return np.zeros(0)
    first = int(rows[0])
    # `advance` jumps to row g without drawing those before it. The number is "mix" in ASCII: it keeps this stream of
    # draws apart from that of the order, [seed, epoch].
    generator = np.random.PCG64(np.random.SeedSequence([seed, 0x6D6978, stream])).advance(first)
    return np.random.Generator(generator).random(int(rows[-1]) - first + 1)[rows - first]
