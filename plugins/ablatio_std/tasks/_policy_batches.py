"""Batches of a policy task, whose data are in the rollout, and the rows of a rollout that a rank computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.ranks import Ranks, ranks


@dataclass(frozen=True, slots=True)
class BatchNumber:
    """A batch of a policy task, given by its number alone: its data are in the rollout."""

    number: int

    def to(self, device: torch.device | str) -> "BatchNumber":
        """Itself: the rollout is already on the device."""
        return self

    def rows(self, own: Ranks) -> "BatchNumber":
        """Itself: every rank knows the whole rollout, and `loss` takes the rows of its own."""
        return self


class BatchNumbers:
    """Batches by number that hold their number alone: the answers are sampled when they are needed."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"number": torch.tensor(number)}


def of_all(rollout: Rollout, compute: Callable[[Rollout], Tensor]) -> Tensor:
    """Compute a tensor with a row for each answer; each rank those of its rows: (N, ...)."""
    return ranks().gather_rows(compute(rollout[ranks().rows(len(rollout))]))
