"""Tensor parallelism: every device has some of the heads and features of each layer, and all rows of a batch."""

import logging
import math
from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ablatio import Positive, strategies
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.divided_vocabulary import DividedVocabulary
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Pass
from ablatio.model.tensor_parallel import Devices, Divided, parts_of, refuse_what_does_not_divide
from ablatio_std.strategies._stand_ins import own_part
from ablatio_std.strategies._sums import exchange, summed
from ablatio_std.strategies.sharded import FullySharded

Degree = Annotated[int | None, Positive, "devices that divide each layer; null: all of the run"]


@strategies.register("tensor", paper="arXiv:1909.08053")
class TensorParallel(FullySharded):
    """y = sum over devices r of W_r f(V_r x): a device has 1 / n of the heads and of the features of each layer.

    Two sums of (rows, tokens, d_model) per layer in the forward pass, and as many in the backward pass.  Embeddings,
    head and norms are whole on every device; gradients of these are averaged, so that rounding cannot separate the
    devices.  The parts say by their facts column_parallel and row_parallel what is divided.

    degree=t: t devices divide each layer.  n / t such groups share the rows of a batch, and divide the rows of each
    weight once more, as fsdp does.
    vocabulary=true: the rows of embedding and head are divided as well.  A loss then sends three numbers for each
    token, and two sums of (rows, tokens, d_model); where logits are asked for, as in policies, all of them are sent.
    """

    splits, grouped_by = "heads", "degree"

    def __init__(
        self,
        ranks: Ranks,
        *,
        degree: Degree = None,
        vocabulary: Annotated[bool, "divide embedding and head by the rows of token ids"] = False,
    ) -> None:
        super().__init__(ranks)
        self.degree, self.vocabulary = degree or ranks.world, vocabulary
        self.whole: list[nn.Parameter] = []  # not divided by heads or features

    def place(self, step: Pass) -> None:
        parts = parts_of(step.model)
        refuse_what_does_not_divide(parts, self.degree)
        device = next(step.parameters()).device.type
        shape = (self.ranks.world // self.degree, self.degree)
        mesh = init_device_mesh(device, shape, mesh_dim_names=("rows", "heads"))
        self.heads = mesh["heads"]
        devices = Devices(self.degree, self.heads.get_local_rank(), self._total, self._own)
        for divided in [Divided(part, devices) for part in parts]:
            for module, name, axis in divided.layout.divided:
                self._divide(module, name, axis)
            divided.attach()
        if self.vocabulary:
            self._divide_vocabulary(step.model, devices)
        by_heads = {name for name, p in step.model.named_parameters() if isinstance(p, DTensor)}
        if self.degree < self.ranks.world:
            # Two sums make a tensor whole that is divided twice along one axis; torch logs that one would be faster.
            logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
            self.shard(step, mesh["rows"])
        else:
            self.hold(step)
        self.whole = [p for name, p in step.model.named_parameters() if name not in by_heads and p.dim() > 0]

    def _divide(self, module: nn.Module, name: str, axis: int) -> None:
        """Keep this device's part of a parameter."""
        if (whole := module._parameters.get(name)) is not None and not isinstance(whole, DTensor):
            own = distribute_tensor(whole.detach(), self.heads, [Shard(axis)], src_data_rank=None)
            module._parameters[name] = nn.Parameter(own, requires_grad=whole.requires_grad)

    def _divide_vocabulary(self, model: Any, devices: Devices) -> None:
        """Keep this device's rows of embedding and head, which stay one parameter if they are tied."""
        table, head = model.model.embed_tokens, model.lm_head
        model.divided = DividedVocabulary(table, head, devices)
        tied = head.weight is table.weight
        self._divide(table, "weight", 0)
        if tied:
            head._parameters["weight"] = table.weight
        else:
            self._divide(head, "weight", 0)
        model.divided.attach()

    def _total(self, x: Tensor) -> Tensor:
        """Sum of a tensor over the devices that divide layers."""
        return summed(x, self.heads.get_group())

    def _own(self, tensor: Tensor, axis: int) -> Tensor:
        """This rank's heads or features of a parameter, with its gradient, or of a buffer."""
        if isinstance(tensor, DTensor):
            return tensor.to_local()
        return tensor.chunk(self.degree, dim=axis)[self.heads.get_local_rank()]

    def backward(self, loss: Tensor, last: bool) -> None:
        super().backward(loss, last)
        if last:
            gradients = [own_part(p.grad) for p in self.whole if p.grad is not None]
            exchange(gradients, lambda own: self._total(own) / self.degree)

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """1 / n of the layers' weights, gradients and state; norms, and activations between parts, count as divided.

        All devices that share a row have what is outside of layers.  With groups of devices, a layer's part and what is
        outside are whole for a while, as with fsdp.  Owners of whole tensors have 1 / n of weights and gradients more.
        """
        world, groups = self.ranks.world, self.ranks.world // self.degree
        outside = 0 if self.vocabulary else one.outside  # it is embedding and head, and norms, which count as divided
        inside = (one.weights - outside) / max(one.weights, 1)
        share = inside / world + (1 - inside) / groups
        owned = 1 if groups > 1 else inside  # what is whole on all devices has no owner
        whole = piece != "entry"
        standing = 2 * math.ceil(one.gradients * owned / world) if whole else 0
        whole_rows = -(-one.outside // self.degree) if self.vocabulary else one.outside
        passing = 2 * (-(-one.layer // self.degree) + whole_rows) if groups > 1 else 0
        return replace(
            one,
            weights=math.ceil(one.weights * share),
            gradients=math.ceil(one.gradients * share),
            optimizer=math.ceil(one.optimizer * (owned / world + 1 - owned if whole else share)),
            activations=self.part(one.activations),
            buffers=standing + passing,
        )
