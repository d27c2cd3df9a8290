"""Fully sharded data parallelism: every device holds a part of each weight, gradient and optimizer state."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ablatio import Positive, rule, strategies
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.example import Loss
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Build, Pass, Strategy, keep_rows_whole, layers_of

from ._offload import Offload
from ._refusals import DEVICES, refuse_uneven
from ._stand_ins import StandIns, own_part
from ._sums import exchange, summed

OPTIMIZER = "optimizer_states"  # Lightning's key of a checkpoint


@strategies.register("fsdp", paper="arXiv:2304.11277")
class FullySharded(Strategy):
    """Each device holds 1 / n of the rows of each weight, by torch's fully_shard; a layer is whole while it computes.

    Optimizers that update single weights work on these rows.  For the others (muon, shampoo, ...) every tensor has an
    owner, which gets weight and gradient whole; the result is that of one device.  offload=cpu: the optimizer's state
    lies in the memory of the host, which updates copies of the weights (ZeRO-Offload, arXiv:2101.06840).
    copies=c: c groups of n / c devices, each with all weights between its members: gradients are summed over the groups
    too, and layers are made whole within a group only, such as the devices of one machine (HSDP).
    gathered=bf16: layers get their weights in bfloat16, and the residual stream has it, too.  Gathers send half, and no
    weight is converted where it is used, nor once more by recomputation; weights, sums of gradients and state of the
    optimizer stay in float32.  Only gains and biases, which autocast leaves in float32, are rounded besides.
    """

    shards, updates = True, "tensor"

    def __init__(
        self,
        ranks: Ranks,
        *,
        reshard: bool = True,
        offload: Offload = "none",
        copies: Annotated[int, Positive, "groups of devices, each of which holds all weights"] = 1,
        gathered: Annotated[Literal["32", "bf16"], "bits of the weights that layers get; bf16: bfloat16"] = "32",
    ) -> None:
        """`reshard`: drop a layer's weights after its forward pass; False keeps them for the backward pass."""
        super().__init__(ranks)
        self.reshard, self.offload, self.copies, self.gathered = reshard, offload, copies, gathered
        self.loose: list[nn.Parameter] = []  # scalars, which every rank holds
        self.stand_ins: StandIns | None = None

    def place(self, step: Pass) -> None:
        device = next(step.parameters()).device.type
        shape = (self.copies, self.ranks.world // self.copies)
        mesh = init_device_mesh(device, shape, mesh_dim_names=("copies", "parts"))
        self.shard(step, mesh if self.copies > 1 else mesh["parts"])

    def shard(self, step: Pass, mesh: DeviceMesh) -> None:
        """Let each rank hold its rows of all weights, over a mesh of (ranks,) or (copies, ranks)."""
        keep_rows_whole(step.model)
        self.loose = [p for p in step.parameters() if p.dim() == 0]
        options: dict[str, Any] = {"mesh": mesh, "ignored_params": {*self.loose}}
        if self.gathered == "bf16":  # inputs stay as they are: biases of positions need float32
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for layer in layers_of(step.model):
            fully_shard(layer, reshard_after_forward=self.reshard, **options)
        fully_shard(step, reshard_after_forward=False, **options)
        register_fsdp_forward_method(step, "touch")
        step.touch()  # makes `step` the root, also if the model is called without it at first
        step.reshard()  # type: ignore[operator]
        self.hold(step)

    def hold(self, step: Pass) -> None:
        """Compute with a module whose parameters are divided now."""
        named = step.model.named_parameters(remove_duplicate=False)
        self.sharded = {name: p for name, p in named if isinstance(p, DTensor)}
        self.step_module = step

    def loss(self, example: Any, last: bool) -> Loss:
        if isinstance(self.step_module, FSDPModule):
            self.step_module.set_is_last_backward(last)
        return super().loss(example, last)

    def backward(self, loss: Tensor, last: bool) -> None:
        # torch takes the mean over the ranks that have rows of their own
        (loss * self.ranks.replicas).backward()  # type: ignore[no-untyped-call]
        if last:
            exchange([p.grad for p in self.loose], self.ranks.mean)

    def optimizer(self, build: Build, groups: list[ParameterGroup], piece: str) -> torch.optim.Optimizer:
        parameters = [p for group in groups for p in group["params"]]
        self.stand_ins = StandIns(
            [p for p in parameters if isinstance(p, DTensor)],
            self.ranks,
            whole=piece != "entry",
            host=self.offload == "cpu",
        )
        of = {id(p): tensor for p, tensor in zip(self.stand_ins.parameters, self.stand_ins.tensors, strict=True)}
        self.stand_ins.take_weights()
        made = build([{**group, "params": [of.get(id(p), p) for p in group["params"]]} for group in groups])
        # Some optimizers (adagrad) make the state of all tensors at once; that of other ranks' tensors has no numbers.
        for tensor in [tensor for tensor in made.state if tensor.is_meta]:
            del made.state[tensor]
        made.register_load_state_dict_pre_hook(self._own_state)
        self.built = made
        return made

    def scale_gradients(self, parameters: Any, factor: Tensor) -> None:
        torch._foreach_mul_([own_part(p.grad) for p in parameters if p.grad is not None], factor)

    def gradient_norm(self, parameters: Any) -> Tensor:
        squares = torch.zeros((), device=next(self._root.parameters()).device)
        for gradient in [p.grad for p in parameters if p.grad is not None]:
            squares = squares + own_part(gradient).square().sum() * (parts_of(gradient) / self.ranks.world)
        return summed(squares).sqrt()

    def before_update(self) -> None:
        assert self.stand_ins is not None
        self.stand_ins.take_weights()
        self.stand_ins.take_gradients()

    @torch.no_grad()
    def after_update(self) -> None:
        assert self.stand_ins is not None
        self.stand_ins.give_weights()

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        for p in self.stand_ins.parameters if self.stand_ins else ():  # not those of the model, whole after a pass
            p.grad = None

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        sharded = [m for m in self._root.modules() if isinstance(m, FSDPModule)]
        for module in sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in sharded:
                module.reshard()
                module.set_reshard_after_forward(self.reshard and module is not self._root, recurse=False)

    @property
    def _root(self) -> nn.Module:
        assert self.step_module is not None
        return self.step_module

    def gather(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        states = checkpoint.pop(OPTIMIZER, None)
        gathered: dict[str, Any] = _mapped(checkpoint, self._whole)
        if states is not None:
            gathered[OPTIMIZER] = [self._whole_state(state) for state in states]
        return gathered

    def _whole(self, tensor: Tensor) -> Tensor:
        """A sharded tensor whole, on rank 0; the other ranks take part and keep nothing."""
        if not isinstance(tensor, DTensor):
            return tensor
        whole = tensor.detach().full_tensor()
        return whole.cpu() if self.ranks.first else whole.new_empty(0)

    def scatter(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        parameters = self.sharded | {f"model.{name}": p for name, p in self.sharded.items()}  # as Lightning names them
        # A task's models are whole on each rank; the optimizer's state is cut when the optimizer reads it.
        return {key: v if key in ("task", OPTIMIZER) else _by_name(v, parameters) for key, v in checkpoint.items()}

    def _in_order(self) -> list[Tensor]:
        """The optimizer's tensors, by their numbers in its state_dict."""
        return [tensor for group in self.built.param_groups for tensor in group["params"]]

    def _whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state as one device has it; complete on rank 0."""
        assert self.stand_ins is not None
        if self.stand_ins.whole:
            merged: dict[Any, Any] = {}
            for part in self.ranks.collected({int(k): v for k, v in state["state"].items()}):
                merged |= {key: value for key, value in part.items() if key not in merged}
            return {**state, "state": dict(sorted(merged.items()))}
        # Rank 0 holds a part of each parameter, so it knows what there is: tensors of its shape, or values.
        divided = {
            i: [name for name, v in held.items() if isinstance(v, Tensor) and v.dim()]
            for i, held in state["state"].items()
        }
        whole = {key: dict(held) for key, held in state["state"].items()}
        tensors = self._in_order()
        for i, names in self.ranks.told(lambda: [*divided.items()]):
            parameter = getattr(tensors[i], "stands_for", None)
            for name in names if parameter is not None else ():
                own = state["state"].get(i, {}).get(name)
                own = own_part(parameter).to(self.stand_ins.device_of(own_part(parameter))) if own is None else own
                whole.setdefault(i, {})[name] = _whole_like(parameter, own.detach()).cpu()
        return {**state, "state": whole}

    def _own_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of an optimizer's state that one device would load."""
        assert self.stand_ins is not None
        own = {}
        for i, tensor in enumerate(self._in_order()):
            found, parameter = state["state"].get(i), getattr(tensor, "stands_for", None)
            if found is None or tensor.device.type == "meta":
                continue
            if parameter is None or self.stand_ins.whole:
                own[i] = found
            else:
                cut = _like(parameter)
                same = {k: isinstance(v, Tensor) and v.shape == parameter.shape for k, v in found.items()}
                own[i] = {k: own_part(cut(v)).clone() if same[k] else v for k, v in found.items()}
        return {**state, "state": own}

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """1 / n of weights, gradients and state; whole weights and gradients of one layer and of what is in no layer.

        Owners of whole tensors, and the host, have 1 / n of weights and gradients once more.  n: devices of a group; a
        tensor has one owner of all devices.
        """
        n, host = self.ranks.world // self.copies, self.offload == "cpu"
        weights, gradients = -(-one.weights // n), -(-one.gradients // n)
        owners = self.ranks.world if piece != "entry" else n
        standing = 2 * -(-one.gradients // owners) if piece != "entry" or host else 0
        passing = 2 * (one.layer + one.outside) if self.reshard else one.weights + one.layer + one.outside
        passing //= 2 if self.gathered == "bf16" else 1
        state = -(-one.optimizer // owners)
        return replace(
            super().memory(one, piece),
            weights=weights,
            gradients=gradients,
            optimizer=0 if host else state,
            buffers=passing + (0 if host else standing),
            host=standing + state if host else 0,
        )


def parts_of(tensor: Tensor) -> int:
    """Into how many parts a tensor is divided; equally many ranks hold each of them."""
    if not isinstance(tensor, DTensor):
        return 1
    sizes = tensor.device_mesh.shape
    return math.prod(n for n, placed in zip(sizes, tensor.placements, strict=True) if not placed.is_replicate())


def _like(parameter: DTensor) -> Callable[[Tensor], Tensor]:
    """Function that distributes a tensor, which all ranks hold, as a parameter is."""
    mesh, placed = parameter.device_mesh, parameter.placements
    return lambda t: distribute_tensor(t.to(parameter.device), mesh, placed, src_data_rank=None)


def _whole_like(parameter: DTensor, own: Tensor) -> Tensor:
    """The whole of a tensor that is distributed as a parameter is, on all ranks."""
    shape, stride = parameter.shape, parameter.stride()
    parts = DTensor.from_local(own, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)
    return parts.full_tensor()


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to all tensors of nested data, in order."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return type(tree)(_mapped(value, change) for value in tree) if type(tree) in (list, tuple) else tree


def _by_name(tree: Any, parameters: Mapping[str, DTensor]) -> Any:
    """Distribute the tensors that stand under the name of a parameter and have its shape."""
    if not isinstance(tree, Mapping):
        return [_by_name(value, parameters) for value in tree] if isinstance(tree, list) else tree
    own = {}
    for key, value in tree.items():
        parameter = parameters.get(key)
        fits = parameter is not None and isinstance(value, Tensor) and value.shape == parameter.shape
        own[key] = _like(parameter)(value) if fits and parameter is not None else _by_name(value, parameters)
    return own


rule(
    when="strategy.name == 'fsdp' and strategy.offload == 'cpu' and optimizer.name == 'schedule_free' "
    "and trainer.devices * trainer.nodes > 1",
    why="optimizer=schedule_free exchanges the weights that are scored, and with strategy.offload=cpu it has copies",
    fix="strategy.offload=none",
    where="strategy.offload",
)
rule(
    when="strategy.name == 'fsdp' and strategy.gathered == 'bf16' and trainer.precision != 'bf16' "
    "and trainer.devices * trainer.nodes > 1",
    why="strategy.gathered=bf16 gives layers weights of 16 bits, and with trainer.precision={trainer.precision} they "
    "may compute in 32",
    fix="trainer.precision=bf16",
    where="trainer.precision",
)
refuse_uneven("fsdp", "copies", DEVICES)
