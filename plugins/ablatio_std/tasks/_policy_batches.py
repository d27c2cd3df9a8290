"""Batches of a policy task, whose data are in the rollout, and the rows of a rollout that a rank computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.ranks import Ranks, ranks
from ablatio.model.rl.answer_plan import AnswerPlan
from ablatio.model.transfer import to_device


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


@dataclass(frozen=True, slots=True)
class HeldRollout:
    """Rows of a rollout on the model's device, and on the CPU, which says how they are read without a wait."""

    rollout: Rollout
    host: Rollout

    @classmethod
    def of(cls, rollout: Rollout) -> "HeldRollout":
        """The whole rollout."""
        return cls(rollout, rollout if rollout.mask.is_cpu else rollout.cpu())

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, rows: Tensor | slice) -> "HeldRollout":
        """The rows with these numbers, which are on the CPU."""
        if self.host is self.rollout:
            return HeldRollout.of(self.rollout[rows])
        there = rows if isinstance(rows, slice) else to_device(rows, self.rollout.mask.device)
        return HeldRollout(self.rollout[there], self.host[rows])

    @property
    def own(self) -> "HeldRollout":
        """The rows of this rank."""
        return self if ranks().world == 1 else self[ranks().rows(len(self))]

    @property
    def plan(self) -> AnswerPlan:
        """How the rows are read."""
        return AnswerPlan.of(self.host).to(self.rollout.mask.device)

    @property
    def answer_tokens(self) -> float:
        """Tokens of all answers."""
        return float(self.host.mask.sum())

    def of_all(self, compute: Callable[[Rollout, AnswerPlan], Tensor]) -> Tensor:
        """Compute a tensor with a row for each answer; each rank those of its rows: (N, ...)."""
        own = self.own
        return ranks().gather_rows(compute(own.rollout, own.plan))
