"""A model divided over two threads of this process, as strategies divide the heads and features of layers."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ablatio.model.tensor_parallel import Devices, Divided, Layout, parts_of

COUNT = 2


class Threads:
    """Sums over two threads that compute in step."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(COUNT, timeout=60), [torch.empty(0)] * COUNT

    def devices(self, index: int) -> Devices:
        """What thread `index` is told of the others; it has a whole copy of each tensor and uses its own part."""
        return Devices(COUNT, index, lambda x: self.total(index, x), lambda t, axis: t.chunk(COUNT, dim=axis)[index])

    def total(self, index: int, x: Tensor) -> Tensor:
        """The sum of the tensors of both threads."""
        self.given[index] = x.detach()
        self.barrier.wait()
        summed = self.given[0] + self.given[1]
        self.barrier.wait()  # both have read it
        return summed


def gradients(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[dict[str, Tensor]]:
    """The loss, as "loss", and the gradients by name, which each of two threads computes with its part of the model.

    The gradients of a tensor of which a thread has a part are zero elsewhere.
    """
    threads, copies = Threads(), [copy.deepcopy(net) for _ in range(COUNT)]

    def compute(index: int) -> dict[str, Tensor]:
        own = copies[index]
        try:
            for part in parts_of(own):
                Divided(part, threads.devices(index)).attach()
            value = loss(own)
            value.backward()  # type: ignore[no-untyped-call]
        except BaseException:
            threads.barrier.abort()
            raise
        found = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
        return {"loss": value.detach(), **found}

    with ThreadPoolExecutor(COUNT) as pool:
        futures = [pool.submit(compute, index) for index in range(COUNT)]
        errors = [e for future in futures if (e := future.exception()) is not None]
        if errors:  # the other thread's error is that the barrier is broken
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return [future.result() for future in futures]


def divided_axes(net: nn.Module) -> dict[str, int]:
    """Axis along which each divided parameter is cut, by name."""
    axes = {(id(module), name): axis for part in parts_of(net) for module, name, axis in Layout.of(part).divided}
    return {
        f"{path}.{name}".lstrip("."): axes[id(module), name]
        for path, module in net.named_modules()
        for name in module._parameters
        if (id(module), name) in axes
    }
