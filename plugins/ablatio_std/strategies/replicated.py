"""Data parallelism: every device holds the whole model and has a share of the rows."""

import inspect
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ablatio import Positive, rule, strategies
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.example import Loss
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Pass, Strategy

# Buffers are equal on all ranks; torch 2.13 renamed the argument that keeps DDP from sending them in each pass.
_NAME = "forward_sync_buffers"
_UNSYNCED_BUFFERS: dict[str, Any] = {
    _NAME if _NAME in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


@strategies.register("ddp", paper="arXiv:2006.15704")
class DataParallel(Strategy):
    """g = sum over ranks of the gradients of their rows, by torch's DistributedDataParallel.

    Buckets of gradients are reduced while the backward pass computes the next ones.  Memory per device: that of one
    device for its rows, and one more copy of the gradients.
    """

    def __init__(self, ranks: Ranks, *, bucket_mb: Annotated[float, Positive, "MB that are reduced at once"] = 25.0):
        super().__init__(ranks)
        self.bucket_mb = bucket_mb

    def place(self, step: Pass) -> None:
        # A part may leave parameters without a gradient, and which ones may change with the step.
        self.step_module = self.replicas = DistributedDataParallel(
            step, bucket_cap_mb=self.bucket_mb, find_unused_parameters=True, **_UNSYNCED_BUFFERS
        )

    def loss(self, example: Any, last: bool) -> Loss:
        with nullcontext() if last else self.replicas.no_sync():
            total, weight, measures = self.replicas(example)
        return Loss(total, weight, measures)

    def backward(self, loss: Tensor, last: bool) -> None:
        (loss * self.ranks.world).backward()  # type: ignore[no-untyped-call]  # torch takes the mean over the ranks

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """Of one device for its rows; the buckets are one more copy of the gradients."""
        return replace(super().memory(one, piece), buffers=one.gradients)


rule(
    when="not facts.strategy.several and trainer.devices * trainer.nodes > 1",
    why="strategy={strategy.name} trains on one device, and trainer.devices * trainer.nodes = "
    "{trainer.devices * trainer.nodes}",
    fix="strategy=ddp",
    where="strategy",
)
