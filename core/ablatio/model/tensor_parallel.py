"""Tensor parallelism: the heads of attentions and the features of feed-forward parts, divided over devices.

A device has the rows of the first linear maps of a part that make its heads or features, and the columns of the last
map that read them (Shoeybi et al. 2019, arXiv:1909.08053):

    y = sum over devices r of W_r f(V_r x),  V_r the rows of V, W_r the columns of W that belong to device r

So x enters the divided maps whole (its gradient is summed over the devices) and the sum leaves the last one.  What is
divided is said by facts of the parts: column_parallel, row_parallel, replicated, enters (ablatio.registry.kinds).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.peft.adapters import ADAPTER
from ablatio.model.stack import Stack

POSITION_METHODS = ("prepare", "rotate", "bias", "score")  # those whose results only divided heads see


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that divide each layer.

    count, index  number of devices, and which of them this one is
    total         sum of a tensor over the devices, without a gradient
    own           this device's part of a parameter or buffer: (tensor, axis along which it is divided) -> tensor
    """

    count: int
    index: int
    total: Callable[[Tensor], Tensor]
    own: Callable[[Tensor, int], Tensor]

    def enter(self, x: Tensor) -> Tensor:
        """Return x, whose gradient becomes the sum of those of the devices."""
        found: Tensor = _Enter.apply(x, self) if x.requires_grad else x  # type: ignore[no-untyped-call]
        return found

    def leave(self, x: Tensor) -> Tensor:
        """Return the sum of x over the devices; the gradient of each is that of the sum."""
        found: Tensor = _Leave.apply(x, self)  # type: ignore[no-untyped-call]
        return found


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, devices: Devices) -> Tensor:
        ctx.devices = devices
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.devices.total(gradients[0]), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, devices: Devices) -> Tensor:
        return devices.total(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@dataclass(slots=True)
class Layout:
    """How the tensors of one part are divided over devices; a tensor is named by (module, name).

    divided   and the axis along which it has a part of the tensor
    copied    whole, used on this device's heads or features only: gradients are summed over the devices
    once      whole and added to a sum over devices, so that one device alone may add it
    """

    divided: list[tuple[nn.Module, str, int]] = field(default_factory=list)
    copied: list[tuple[nn.Module, str]] = field(default_factory=list)
    once: list[tuple[nn.Module, str]] = field(default_factory=list)

    @classmethod
    def of(cls, part: Any) -> "Layout":
        """The layout that the facts of a part (attention, mlp, position) and of its activation declare."""
        made = cls()
        if not isinstance(part, nn.Module):  # a position without tensors
            return made
        for found in _named(part, "column_parallel"):
            made._columns(*found)
        for _, name, module in _named(part, "row_parallel"):
            assert module is not None, f"`row_parallel` of {type(part).__name__} names {name}, which is no linear map"
            made._rows(module)
        for owner, name, module in _named(part, "replicated"):
            made.copied += [(owner, name)] if module is None else _tensors(module)
        if _is_position(part):
            made._copy_all(part)
        elif isinstance(activation := getattr(part, "activation", None), nn.Module):
            for found in _named(activation, "column_parallel"):
                made._columns(*found)
            made._copy_all(activation)
        return made

    def _copy_all(self, part: nn.Module) -> None:
        """All tensors of a part that is used on heads or features alone, but the divided ones."""
        divided = {(id(module), name) for module, name, _ in self.divided}
        self.copied += [t for t in _tensors(part) if (id(t[0]), t[1]) not in divided]

    def _columns(self, owner: nn.Module, name: str, module: nn.Module | None) -> None:
        """A linear map, of which a device has rows, or a tensor with an entry for each head or feature."""
        if module is None:
            self.divided.append((owner, name, 0))
            return
        self.divided += [(module, tensor, 0) for tensor in ("weight", "bias") if _has(module, tensor)]
        if (adapter := module._modules.get(ADAPTER)) is not None:
            self._adapter(adapter, "column_parallel", 0)

    def _rows(self, module: nn.Module) -> None:
        """A linear map, of which a device has columns."""
        self.divided.append((module, "weight", 1))
        if _has(module, "bias"):
            self.once.append((module, "bias"))
        if (adapter := module._modules.get(ADAPTER)) is not None:
            self._adapter(adapter, "row_parallel", 1)

    def _adapter(self, adapter: nn.Module, fact: str, axis: int) -> None:
        names = getattr(type(adapter), fact, ())
        self.divided += [(adapter, name, axis) for name in names]
        self.copied += [t for t in _tensors(adapter) if t[1] not in names]


def _named(part: nn.Module, fact: str) -> Iterator[tuple[nn.Module, str, nn.Module | None]]:
    """(part, name, submodule or None) of the names in a fact that this instance has."""
    for name in getattr(type(part), fact, ()):
        if part._modules.get(name) is not None:
            yield part, name, part._modules[name]
        elif _has(part, name):
            yield part, name, None


def _is_position(part: Any) -> bool:
    return not isinstance(part, nn.Module) or getattr(part, "built_as", "") == "position"


def _has(module: nn.Module, name: str) -> bool:
    return module._parameters.get(name) is not None or module._buffers.get(name) is not None


def _tensors(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parameters of a module and its submodules."""
    return [(m, name) for m in module.modules() for name, p in m._parameters.items() if p is not None]


class Divided:
    """A part that computes with this device's share of its weights."""

    def __init__(self, part: Any, devices: Devices) -> None:
        self.part, self.devices, self.layout = part, devices, Layout.of(part)
        self._entered: dict[int, tuple[Tensor, Tensor]] = {}  # by id: (x, x as it enters), so that it enters once

    def attach(self) -> None:
        """Let the part compute with its share from now on: its methods keep their names."""
        if _is_position(self.part):
            for method in POSITION_METHODS:
                if (own := getattr(self.part, method, None)) is not None:
                    call = self._bias if method == "bias" else self._call
                    setattr(self.part, method, partial(call, own))
            self.part.pair_bias = None  # it knows all heads
            return
        for _, _, module in _named(self.part, "column_parallel"):
            if module is not None:
                module.register_forward_pre_hook(self._enter)
        for _, _, module in _named(self.part, "enters"):
            assert module is not None
            module.register_forward_hook(lambda module, inputs, output: self.devices.enter(output))
        for _, _, module in _named(self.part, "row_parallel"):
            assert module is not None
            module.register_forward_hook(lambda module, inputs, output: self.devices.leave(output))
        self.part.forward = partial(self._call, self.part.forward)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._own_weights():
            return method(*args, **kwargs)

    def _bias(self, method: Callable[..., Tensor], q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """This device's heads of a bias (..., H, T, S)."""
        whole: Tensor = self._call(method, q_pos, k_pos)
        return whole.chunk(self.devices.count, dim=-3)[self.devices.index]

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        if id(x) not in self._entered:
            self._entered[id(x)] = x, self.devices.enter(x)
        return self._entered[id(x)][1], *rest

    @contextmanager
    def _own_weights(self) -> Iterator[None]:
        """Context in which the modules hold this device's share of their tensors."""
        devices, held = self.devices, []
        share: list[tuple[nn.Module, str, Callable[[Tensor], Tensor]]] = [
            *((m, name, partial(self._own, axis)) for m, name, axis in self.layout.divided),
            *((m, name, devices.enter) for m, name in self.layout.copied),
            *((m, name, self._added_once) for m, name in self.layout.once),
        ]
        try:
            for module, name, change in share:
                table: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
                held.append((table, name, table[name]))
                table[name] = change(table[name])
            yield
        finally:
            for table, name, tensor in reversed(held):
                table[name] = tensor
            self._entered.clear()

    def _own(self, axis: int, tensor: Tensor) -> Tensor:
        return self.devices.own(tensor, axis)

    def _added_once(self, bias: Tensor) -> Tensor:
        return self.devices.enter(bias) * float(self.devices.index == 0)


def parts_of(model: nn.Module) -> list[Any]:
    """The parts of a model that can be divided: attentions, feed-forward parts, positions (which may be no modules)."""
    kinds = ("attention", "mlp", "position")
    modules = [m for m in model.modules() if getattr(m, "built_as", "") in kinds and not getattr(m, "absent", False)]
    used = {id(p): p for stack in model.modules() if isinstance(stack, Stack) for p in stack.positions}
    return [*modules, *(p for p in used.values() if not isinstance(p, nn.Module))]


def refuse_what_does_not_divide(parts: list[Any], count: int) -> None:
    """Raise UserError if the tensors of a part do not divide by the number of devices."""
    for part in parts:
        for module, name, axis in Layout.of(part).divided:
            size = getattr(module, name).shape[axis]
            if size % count:
                raise UserError(
                    f"strategy=tensor divides {type(part).__name__}, and {size} {'columns' if axis else 'rows'} of "
                    f"{type(module).__name__}.{name} do not divide over {count} devices\n    try: strategy=fsdp"
                )
