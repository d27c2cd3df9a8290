"""Communication between the processes (ranks) that train one run; with one device every method returns its input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class Ranks:
    """The ranks of a run, one process and one device each; this class is a run on one device, where nothing crosses.

    world  number of ranks
    rank   number of this one, from 0; rank 0 alone writes files
    local  its number on its machine, which is the number of its GPU
    replicas  number of groups of ranks that share the rows of a batch; the ranks of a group have the same rows
    replica   number of this rank's group
    by_row    False if every group has all rows, and a part of their tokens

    Every method except `rows` is collective: all ranks call it, in the same order.  Sums, means and gathered rows are
    those of all rows, each counted once.
    """

    world, rank, local = 1, 0, 0
    replicas, by_row = 1, True

    @property
    def replica(self) -> int:
        """Number of the group of this rank, which has its own rows."""
        return self.rank * self.replicas // self.world

    @property
    def stream(self) -> int:
        """Number of the stream from which the forward pass draws: ranks that compute the same draw the same."""
        return self.replica

    @property
    def first(self) -> bool:
        """True on the rank that writes files and reports."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this rank's share of `count` rows; the shares of groups are disjoint, and in their order."""
        if not self.by_row:
            return slice(0, count)
        return slice(count * self.replica // self.replicas, count * (self.replica + 1) // self.replicas)

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor of one shape over the groups, without a gradient; the same on all ranks."""
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the groups, without a gradient."""
        return value if self.world == 1 else self.total(value) / self.replicas

    def gather_rows(self, rows: Tensor, fill: float = 0) -> Tensor:
        """Concatenate the rows of all groups, in their order: (b, ...) -> (B, ...).

        Ranks may have different numbers of rows; where their further axes differ in length, `fill` pads them.  The
        gradient that flows back to this rank's rows is that of the sum over ranks, so every rank must compute the same
        function of the result, and divide it by `replicas` if the ranks' losses are added.
        """
        return rows

    def agree(self, flag: bool) -> bool:
        """True if the flag is True on any rank."""
        return flag

    def told(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes, on all ranks: plain data (JSON).  An error of `make` is raised on rank 0 alone."""
        return make()

    def collected(self, state: Any) -> list[Any]:
        """Return the states of all ranks (nested plain data with tensors) on rank 0; the others get []."""
        return [state]

    def wait(self) -> None:
        """Return when all ranks have come here."""


_current: list[Ranks] = [Ranks()]


def ranks() -> Ranks:
    """The ranks of the run that this process trains."""
    return _current[-1]


@contextmanager
def using(own: Ranks) -> Iterator[Ranks]:
    """Context in which `ranks()` returns these."""
    _current.append(own)
    try:
        yield own
    finally:
        _current.pop()
