"""Map-style datasets of batches: batch k depends on k alone, so workers, resume and access order cannot change it.

Use with `DataLoader(dataset, batch_size=None, sampler=range(start, total), num_workers=...)`.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import Dataset

from ablatio.data.order import Positions, RowPlan, WindowOrder, whole_rows
from ablatio.data.types import Ids
from ablatio.errors import UserError

Batch = dict[str, Tensor]


class Windows:
    """Gather rows of `length` + 1 tokens by their start positions.

    A memory-mapped stream is pickled as its path, so a DataLoader worker maps the file instead of copying it.
    """

    def __init__(self, tokens: Ids, length: int) -> None:
        self.tokens, self.length = tokens, length
        self._view = sliding_window_view(tokens, length + 1)  # (N - T, T + 1), no copy

    def __call__(self, starts: Positions) -> Tensor:
        """Rows at these start positions: (B,) -> (B, T + 1) int64."""
        return torch.from_numpy(self._view[starts].astype(np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        tokens = self.tokens
        # A slice of a map keeps the file's name; only one that covers the whole file may be opened again by it.
        if isinstance(tokens, np.memmap) and tokens.filename and Path(tokens.filename).stat().st_size == tokens.nbytes:
            return _reopen, (str(tokens.filename), tokens.dtype.str, self.length)
        return Windows, (np.asarray(tokens), self.length)


def _reopen(path: str, dtype: str, length: int) -> Windows:
    return Windows(np.memmap(path, dtype=dtype, mode="r"), length)


def segments(tokens: Tensor, eos: int) -> Tensor | None:
    """Number each row's documents from 0: (B, T + 1) int32; None if every row holds a single document.

    A document starts at its `eos`; one at the start of a row opens document 0.
    """
    opens = tokens == eos
    # Otherwise rows that start with a document and rows that do not would number their first document differently.
    opens[:, 0] = False
    return opens.cumsum(1, dtype=torch.int32) if bool(opens.any()) else None


def batch_of(tokens: Tensor, eos: int, document_mask: bool) -> Batch:
    """The batch of these rows: their tokens and, with `document_mask`, the number of the document of each token."""
    numbers = segments(tokens, eos) if document_mask else None
    return {"tokens": tokens} if numbers is None else {"tokens": tokens, "segments": numbers}


class TrainBatches(Dataset[Batch]):
    """Training batches by number: {"tokens": (B, T + 1) int64, "segments": (B, T + 1) int32, "number": ()}.

    "segments" is present only if some row holds several documents and `document_mask` is set. `plan` gives the rows of
    a batch over all ranks and their length; it is endless: one epoch continues into the next. While the length stays
    the same, a token is a target once per epoch; rows of another length have an order of their own, which is entered
    after as many tokens as were trained on.
    """

    def __init__(
        self,
        tokens: Ids,
        order: WindowOrder,
        plan: RowPlan,
        *,
        eos: int,
        document_mask: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if order.n_tokens != len(tokens):
            raise ValueError(f"the order was made for {order.n_tokens} tokens, but the stream has {len(tokens)}")
        self.plan, self.order = plan, order
        self._windows = {order.length: (Windows(tokens, order.length), order)}  # by length of the rows
        self.eos, self.document_mask, self.rank, self.world = eos, document_mask, rank, world

    @property
    def epoch_rows(self) -> int:
        """Rows of one epoch."""
        return self.order.windows

    def __getitem__(self, step: int) -> Batch:
        first, count = self.plan.batch(step)
        length = self.plan.row_length(step // self.plan.accumulate, self.order.length)
        rows = self.order.rows(first, count, self.rank, self.world)
        return batch_of(self.gather(rows, length), self.eos, self.document_mask) | {"number": torch.tensor(step)}

    def gather(self, rows: Positions, length: int) -> Tensor:
        """Tokens of the rows with these numbers, counted over all epochs: (B,) -> (B, length + 1) int64."""
        windows, order = self._of_length(length)
        return windows(order.starts(rows))

    def windows(self, length: int) -> Windows:
        """Rows of this many tokens by their start positions."""
        return self._of_length(length)[0]

    def _of_length(self, length: int) -> tuple[Windows, WindowOrder]:
        if length not in self._windows:
            self._windows[length] = (
                Windows(self._windows[self.order.length][0].tokens, length),
                self.order.of_length(length),
            )
        return self._windows[length]


class ValidationBatches(Dataset[Batch]):
    """Fixed windows over the validation stream, with stride T, so that each target is scored in one window only.

    `val_tokens` > 0 caps the number of targets: windows are then taken at even distances over the whole stream. The
    last batch may have fewer windows; every window has full length. With `documents` (start positions), each window
    starts at a document.
    """

    def __init__(
        self,
        tokens: Ids,
        length: int,
        batch: int,
        *,
        eos: int,
        document_mask: bool = True,
        val_tokens: int = 0,
        documents: Positions | None = None,
    ) -> None:
        if len(tokens) < length + 1:
            raise UserError(
                f"the validation split has {len(tokens)} tokens, but one window needs {length} + 1\n"
                f"    try: data.length={max(len(tokens) - 1, 1)}, a larger data.val_fraction, or more text"
            )
        if documents is None:
            starts = np.arange((len(tokens) - 1) // length, dtype=np.int64) * length
        else:
            starts = whole_rows(documents, len(tokens), length)
        every = len(starts)
        taken = min(every, max(1, val_tokens // length)) if val_tokens > 0 else every
        # The products stay whole numbers, so that the same windows are taken on every machine.
        self.starts: Positions = starts[np.arange(taken, dtype=np.int64) * every // taken]
        self.windows, self.batch = Windows(tokens, length), batch
        self.eos, self.document_mask = eos, document_mask

        self.stride: int | None = None

    def overlapping(self, stride: int) -> "ValidationBatches":
        """Return batches over the same targets whose windows begin `stride` tokens after one another.

        Of each window the last `stride` targets are scored, so that all but those of the first window have at least
        length - stride tokens before them: batches have "scored" (B, T), True for these.

        Raises UserError if the windows do not follow one another, or for a stride that leaves targets out.
        """
        length = self.windows.length
        if not 1 <= stride <= length:
            raise UserError(
                f"a stride of {stride} came; expected 1 to {length}\n    try: a stride of {length // 2 or 1}"
            )
        last = int(self.starts[-1])
        if not np.array_equal(self.starts, np.arange(len(self.starts)) * length):
            raise UserError(
                "rows can overlap if they follow one another; these are spread over the text, or begin with documents\n"
                "    try: a stride without a number of tokens, and data.rows=windows"
            )
        made = copy.copy(self)
        made.stride, starts = stride, np.arange(0, last + 1, stride, dtype=np.int64)
        # The last window keeps its place, or the targets at the end would differ from those without overlap.
        made.starts = starts if starts[-1] == last else np.append(starts, last)
        return made

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batch)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)  # a plain `for batch in batches` loop ends at this error
        rows = self.starts[index * self.batch : (index + 1) * self.batch]
        made = batch_of(self.windows(rows), self.eos, self.document_mask)
        if self.stride is None:
            return made
        # The first window has none before it: all of its targets are new.
        before = np.concatenate([[-self.windows.length], self.starts])[index * self.batch :][: len(rows)]
        new = torch.from_numpy(rows - before)[:, None]  # targets that the window before did not have
        return made | {"scored": torch.arange(self.windows.length) >= self.windows.length - new}
