"""Build a model on the meta device, or copy one to it: shapes without values."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
_LINSPACE = torch.linspace


@contextmanager
def on_meta() -> Iterator[None]:
    """Tensors are created on the meta device, whatever has used torch before in this process.

    torch.device("meta") alone is not enough: torch notes its constructors when a device is first used as a context.
    transformers' from_pretrained replaces torch.linspace while it does so, and from then on torch.linspace is not
    among them.
    """
    with torch.device("meta"):
        knows_all = torch.linspace(0, 1, 1).is_meta
    with nullcontext() if knows_all else _LinspaceOnMeta(), torch.device("meta"):
        yield


class _LinspaceOnMeta(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _LINSPACE and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def meta_copy(model: M) -> M:
    """Copy a model to the meta device, for counting parameters and FLOPs; nothing is initialized or allocated.

    Tensors that the model shares (a tied head) are shared in the copy.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    with _ToMeta():
        return copy.deepcopy(model, memo)


class _ToMeta(TorchFunctionMode):
    """Makes deepcopy put on the meta device also tensors that are neither parameters nor buffers (lookup tables)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().to("meta"))
        return func(*args, **(kwargs or {}))
