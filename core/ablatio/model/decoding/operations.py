"""Record the operations of a decoding step: only steps that are equal in all but values can be replayed as one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablatio.model.static_cache import NotStaticError

READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")  # by a mask: its shape is a value
COPIED = "lift_fresh"  # part of torch.tensor(...)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations in this context, in order: name, inputs and settings; tensors as shape, strides, dtype and source.

    A tensor's source is its address if it was there before, else the number of the operation that made its memory.

    Raises NotStaticError for an operation that reads values of the device, copies numbers to it, or has a shape that
    depends on values.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.found = device, list[tuple[Any, ...]]()
        self._made: dict[int, int] = {}  # address of memory: number of the operation that made it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        self._allow(func, given)
        inputs = [self._described(x) if isinstance(x, Tensor) else repr(x) for x in given]
        result = func(*args, **kwargs)
        before = {_address(x) for x in given if isinstance(x, Tensor)}
        for made in _tensors(result):
            if _address(made) not in before:
                self._made[_address(made)] = len(self.found)
        self.found.append((str(func), *inputs))
        return result

    def _described(self, x: Tensor) -> tuple[Any, ...]:
        made = self._made.get(_address(x))
        source = ("outside", _address(x)) if made is None else ("made by", made)
        return tuple(x.shape), x.stride(), x.dtype, x.storage_offset(), source

    def _allow(self, func: Any, given: list[Any]) -> None:
        name = func.overloadpacket.__name__
        tensors = [*_tensors(given)]
        masked = any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])  # the first one is indexed
        if name in INDEXED:
            if masked and any(x.dim() for x in tensors[1:] if x.dtype in (torch.bool, torch.uint8)):
                raise NotStaticError(f"{name} selects by a mask")
        elif name == COPIED:
            raise NotStaticError("numbers are copied from the host")
        elif any(tag in func.tags for tag in READS):
            raise NotStaticError(f"{name} reads values of the device")
        elsewhere = {x.device.type for x in tensors} | {x.type for x in given if isinstance(x, torch.device)}
        if elsewhere - {self.device.type}:
            raise NotStaticError(f"{name} works on {', '.join(sorted(elsewhere))}")


def _tensors(x: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor))


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
