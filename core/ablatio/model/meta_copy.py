"""Copy a model to the meta device: shapes without values."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


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
