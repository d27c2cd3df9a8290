"""Tensor parallelism: every device has some of the heads and features of each layer, and all rows of a batch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ablatio import strategies
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.example import Loss
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Pass, Strategy
from ablatio.model.tensor_parallel import Devices, Divided, parts_of, refuse_what_does_not_divide
from ablatio_std.strategies._sums import exchange, summed
from ablatio_std.strategies.sharded import FullySharded


@strategies.register("tensor", paper="arXiv:1909.08053")
class TensorParallel(FullySharded):
    """y = sum over devices r of W_r f(V_r x): a device has 1 / n of the heads and of the features of each layer.

    Two sums of (rows, tokens, d_model) per layer in the forward pass, and as many in the backward pass.  Embeddings,
    head and norms are whole on every device; gradients of these are averaged, so that rounding cannot separate the
    devices.  The parts say by their facts column_parallel and row_parallel what is divided.
    """

    splits, updates = "heads", "entry"

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks)

    def place(self, step: Pass) -> None:
        parts, world = parts_of(step.model), self.ranks.world
        refuse_what_does_not_divide(parts, world)
        device = next(step.parameters()).device.type
        self.mesh = init_device_mesh(device, (world,))
        devices = Devices(world, self.ranks.rank, summed, self._own)
        for divided in [Divided(part, devices) for part in parts]:
            for module, name, axis in divided.layout.divided:
                if (whole := module._parameters.get(name)) is not None and not isinstance(whole, DTensor):
                    own = distribute_tensor(whole.detach(), self.mesh, [Shard(axis)], src_data_rank=None)
                    module._parameters[name] = nn.Parameter(own, requires_grad=whole.requires_grad)
            divided.attach()
        named = step.model.named_parameters(remove_duplicate=False)
        self.sharded = {name: p for name, p in named if isinstance(p, DTensor)}
        self.loose = [p for p in step.model.parameters() if not isinstance(p, DTensor)]
        self.step_module = step

    def _own(self, tensor: Tensor, axis: int) -> Tensor:
        """This rank's part of a parameter, with its gradient, or of a buffer."""
        if isinstance(tensor, DTensor):
            return tensor.to_local()
        return tensor.chunk(self.ranks.world, dim=axis)[self.ranks.rank]

    def loss(self, example: Any, last: bool) -> Loss:
        return Strategy.loss(self, example, last)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if last:
            exchange([p.grad for p in self.loose], self.ranks.total)

    def gradient_norm(self, parameters: Any) -> Tensor:
        found = [p.grad for p in parameters if p.grad is not None]
        squares = torch.zeros((), device=self.mesh.device_type)
        for gradient in found:  # of a divided tensor each rank has a part, all others count once
            own = gradient.to_local().square().sum() * self.ranks.world if isinstance(gradient, DTensor) else None
            squares = squares + (gradient.square().sum() if own is None else own)
        return self.ranks.total(squares).sqrt()

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """1 / n of the layers' weights, gradients and state; norms, and activations between parts, count as divided."""
        inside = (one.weights - one.outside) / max(one.weights, 1)
        share = 1 - inside + inside / self.ranks.world
        return replace(
            one,
            weights=math.ceil(one.weights * share),
            gradients=math.ceil(one.gradients * share),
            optimizer=math.ceil(one.optimizer * share),
            activations=self.part(one.activations),
        )

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        yield  # all ranks call the model with the same inputs, each with its heads
