"""Find what makes a GPU step wait: reading values, shapes that depend on values, blocking copies from the host."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

READS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
    Tensor.__contains__, Tensor.equal, torch.equal, torch.allclose, Tensor.allclose,
}  # fmt: skip
SHAPES = {
    Tensor.nonzero, torch.nonzero, torch.argwhere, Tensor.argwhere, Tensor.unique, torch.unique, Tensor.masked_select,
    torch.masked_select, torch.unique_consecutive, Tensor.unique_consecutive, torch.bincount, Tensor.bincount,
}  # fmt: skip
COPIES = {Tensor.new_tensor, torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}


class WaitsForDevice(AssertionError):
    """An operation for which a GPU's queue would have to be empty."""


class ForbidWaiting(TorchFunctionMode):
    """Raises WaitsForDevice where a tensor of the meta device, which stands for a GPU, would make the host wait.

    Allowed are new tensors that are filled on the device (`new_full`), copies with non_blocking=True, and everything
    that concerns tensors of the CPU alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if (func in READS or func in SHAPES) and _on_device(args):
            raise WaitsForDevice(_said(func, "reads values of the device"))
        if func is Tensor.__getitem__ and _selects_by_mask(args[1]) and _on_device(args):
            raise WaitsForDevice(_said(func, "selects by a mask, so that its shape depends on values"))
        if func in (torch.repeat_interleave, Tensor.repeat_interleave) and "output_size" not in given:
            repeats = given.get("repeats", args[1] if len(args) > 1 else args[0])
            if isinstance(repeats, Tensor) and repeats.is_meta:
                raise WaitsForDevice(_said(func, "has a shape that depends on values"))
        try:
            result = func(*args, **given)
        except NotImplementedError as error:  # a meta tensor has no data to copy
            if "meta tensor" not in str(error):
                raise
            raise WaitsForDevice(_said(func, "copies to the host")) from None
        if isinstance(result, Tensor) and result.is_meta:
            if func is Tensor.new_tensor or (func in COPIES and not _on_device(args)):
                raise WaitsForDevice(_said(func, "copies from the host"))
            moved = func in (Tensor.to, Tensor.cuda) and not args[0].is_meta
            if moved and not given.get("non_blocking", False):
                raise WaitsForDevice(_said(func, "copies from the host and waits for it"))
        return result


def _on_device(args: Any) -> bool:
    return any(isinstance(a, Tensor) and a.is_meta for a in args)


def _selects_by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool and part.dim() > 0 for part in parts)


def _said(func: Any, why: str) -> str:
    """What was called and why it waits, with the line of the package or plugin that calls it."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    where = frames[-1]
    return f"{getattr(func, '__name__', func)} {why}, in {where.filename}:{where.lineno}: {where.line}"


@contextmanager
def meta_as_gpu() -> Iterator[None]:
    """Context in which tensors of the meta device take the way of a GPU, and waiting for it is forbidden.

    `is_meta_tensor` says False, by which parts tell counting of shapes from a pass over values.
    """
    name, held = "is_meta_tensor", []
    for module in list(sys.modules.values()):
        if name in getattr(module, "__dict__", {}):
            held.append((module, module.__dict__[name]))
            setattr(module, name, lambda tensor: False)
    try:
        with ForbidWaiting():
            yield
    finally:
        for module, function in held:
            setattr(module, name, function)
