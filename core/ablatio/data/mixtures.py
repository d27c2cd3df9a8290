"""Rows drawn from several token streams: which source each row comes from, as a function of (seed, step) alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ablatio.data.batches import Batch, TrainBatches, ValidationBatches, batch_of
from ablatio.data.order import EasiestFirst, RowPlan, uniforms
from ablatio.errors import UserError

_BLOCK = 256  # steps whose draws are made at a time
SUM = 1e-6  # tolerance of the sum of the shares
Shares = NDArray[np.float64]  # (S,) of the sources, with the sum 1


@dataclass(frozen=True)
class Pool:
    """A source of a mixture, as a mixture sees it.

    tokens    number of its training tokens
    texts     its training texts, which can be read again
    held_out  its held-out texts
    """

    name: str
    tokens: int
    texts: Iterable[str]
    held_out: Iterable[str]


def checked_shares(shares: Mapping[str, float], names: Sequence[str], where: str) -> Shares:
    """Return the shares in the order of `names`; UserError if they name no source or do not sum to 1.

    where  the setting that they come from, for the message
    """
    told = ", ".join(names)
    if unknown := [name for name in shares if name not in names]:
        raise UserError(f"{where}: there is no source {unknown[0]!r}; the sources are {told}\n    try: source.of=[...]")
    found = np.asarray([shares.get(name, 0.0) for name in names], dtype=np.float64)
    total = float(found.sum())
    if not np.isfinite(found).all() or (found < 0).any() or total <= 0:
        raise UserError(f"{where}: got {_listed(found)}; expected shares of {told}, 0 or more and not all 0\n"
                        f"    try: {where}={_listed(np.full(len(names), 1 / len(names)))}")  # fmt: skip
    if abs(total - 1) > SUM:
        raise UserError(f"{where}: the shares {_listed(found)} of {told} sum to {total:g}, expected 1\n"
                        f"    try: {where}={_listed(found / total)}")  # fmt: skip
    # Within the tolerance, but the cumulated shares must end at 1.
    return found / total


def shares_of(values: Sequence[float], names: Sequence[str], where: str) -> dict[str, float]:
    """Name shares that are listed in the order of the sources; UserError if they are not one each with the sum 1."""
    if len(values) != len(names):
        raise UserError(
            f"{where}: got {len(values)} shares, and there are {len(names)} sources: {', '.join(names)}\n"
            f"    try: {where}={_listed(np.full(len(names), 1 / len(names)))}"
        )
    given = dict(zip(names, map(float, values), strict=True))
    return dict(zip(names, checked_shares(given, names, where).tolist(), strict=True))


def _listed(values: NDArray[np.float64]) -> str:
    return f"[{','.join(f'{value:.6g}' for value in values)}]"


class Draws:
    """The source of each row: row g, in step k, comes from source i with the probability shares(k)[i].

    The draw is u(seed, g) against the cumulated shares, so it does not depend on the batches, the workers or what was
    drawn before.  The position in a source follows from the number of tokens that were drawn from it.

    shares  (S,) of a step
    count   S, number of sources
    length  tokens per row where the plan gives no other
    """

    def __init__(self, shares: Callable[[int], Shares], count: int, seed: int, plan: RowPlan, length: int) -> None:
        self.shares, self.count, self.seed, self.plan, self.length = shares, count, seed, plan, length
        self._tokens = [np.zeros(count, dtype=np.int64)]  # drawn before each block
        self._blocks: dict[int, tuple[NDArray[np.int64], list[NDArray[np.int64]]]] = {}

    def tokens(self, step: int) -> NDArray[np.int64]:
        """Tokens in the rows drawn from each source before step number `step`: (S,)."""
        before: NDArray[np.int64] = self._block(step // _BLOCK)[0][step % _BLOCK]
        return before

    def sources(self, step: int) -> NDArray[np.int64]:
        """Source of each row of a step, of all its batches: (rows,)."""
        return self._block(step // _BLOCK)[1][step % _BLOCK]

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the rows of a batch, their sources, and their places in them: (B,) each.

        The places are counted in rows of this step's length, as if all rows before had it.
        """
        step, place = divmod(number, self.plan.accumulate)
        first, count = self.plan.step(step)
        length = self.plan.row_length(step, self.length)
        sources = self.sources(step)
        places = np.empty(len(sources), dtype=np.int64)
        for i, tokens in enumerate(self.tokens(step)):
            here = sources == i
            # Rounded up: if the length has changed, a part of a row is skipped rather than trained on twice.
            places[here] = -(-tokens // length) + np.arange(here.sum())
        mine = slice(place * count, (place + 1) * count)
        return first + np.arange(len(sources), dtype=np.int64)[mine], sources[mine], places[mine]

    def _block(self, number: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """(tokens before each step of the block, sources of the rows of each step)."""
        if number in self._blocks:
            return self._blocks[number]
        # A run that resumes at step k draws the blocks before it again: no state has to be saved for the counts.
        for earlier in range(len(self._tokens) - 1, number):
            self._draw(earlier)
        return self._draw(number)

    def _draw(self, number: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        steps = range(number * _BLOCK, (number + 1) * _BLOCK)
        plans = [self.plan.step(step) for step in steps]
        rows = np.asarray([count * self.plan.accumulate for _, count in plans])
        lengths = np.asarray([self.plan.row_length(step, self.length) for step in steps])
        of_step = np.repeat(np.arange(_BLOCK), rows)  # (R,): the step of each row
        bounds = np.cumsum([self.shares(step) for step in steps], axis=1)[of_step]  # (R, S)
        drawn = uniforms(self.seed, plans[0][0] + np.arange(len(of_step), dtype=np.int64))
        # The last bound may be below 1 by rounding.
        sources = np.minimum((drawn[:, None] >= bounds).sum(1), self.count - 1)
        counts = np.zeros((_BLOCK, self.count), dtype=np.int64)
        np.add.at(counts, (of_step, sources), 1)
        counts *= lengths[:, None]
        before = self._tokens[number] + np.cumsum(counts, axis=0) - counts
        if len(self._tokens) == number + 1:
            self._tokens.append(before[-1] + counts[-1])
        # Two blocks: data workers ask ahead of the step that is trained, across the end of a block.
        while len(self._blocks) > 1:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[number] = before, np.split(sources, np.cumsum(rows)[:-1])
        return self._blocks[number]


class MixedBatches(Dataset[Batch]):
    """Training batches of rows from several streams, by number: as TrainBatches, and "sources" (B,) of the rows.

    streams   {source: its TrainBatches}, all with one plan
    draws     the source of each row
    easiest   {source: its rows by difficulty}; empty: the usual order
    share     share of the rows, the easiest ones, that a step draws from
    """

    def __init__(
        self,
        streams: Mapping[str, TrainBatches],
        draws: Draws,
        *,
        easiest: Mapping[str, EasiestFirst] | None = None,
        share: Callable[[int], float] = lambda step: 1.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.streams, self.draws, self.rank, self.world = [*streams.values()], draws, rank, world
        self.easiest, self.share = [*(easiest or {}).values()], share

    @property
    def epoch_rows(self) -> int:
        """Rows of one pass over all sources."""
        return sum(stream.epoch_rows for stream in self.streams)

    def __getitem__(self, number: int) -> Batch:
        plan, first = self.draws.plan, self.streams[0]
        step = number // plan.accumulate
        length, share = plan.row_length(step, self.draws.length), self.share(step)
        rows, sources, places = self.draws.batch(number)
        # All ranks draw the whole batch and keep their part, so that the rows do not depend on the number of ranks.
        mine = first.order.rows(0, len(rows), self.rank, self.world)
        rows, sources, places = rows[mine], sources[mine], places[mine]
        tokens = torch.empty(len(rows), length + 1, dtype=torch.int64)
        for i in np.unique(sources):
            here, stream = sources == i, self.streams[i]
            if self.easiest and share < 1:
                found = stream.windows(length)(self.easiest[i].starts(rows[here], length, share))
            else:
                found = stream.gather(places[here], length)
            tokens[torch.from_numpy(here)] = found
        made = batch_of(tokens, first.eos, first.document_mask)
        return made | {"number": torch.tensor(number), "sources": torch.from_numpy(sources)}


class MixedValidation:
    """Fixed held-out batches of several sources, one source after the other."""

    def __init__(self, parts: Mapping[str, ValidationBatches]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def overlapping(self, stride: int) -> "MixedValidation":
        """The same texts in rows that each begin `stride` tokens after the one before."""
        return MixedValidation({name: part.overlapping(stride) for name, part in self.parts.items()})

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts.values():
            yield from (part[i] for i in range(len(part)))

    def __getitem__(self, index: int) -> Batch:
        for part in self.parts.values():
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
