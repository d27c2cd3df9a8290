"""Detection of tensors without values: on the meta device, or fake tensors."""

from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode


def is_meta_tensor(tensor: Tensor) -> bool:
    """True if the tensor has a shape but no values; a part whose shapes depend on values then uses typical ones."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


class ReadAsOne(TorchFunctionMode):
    """Gives 1 where code reads a value of a tensor without values, as Adafactor does for a tensor's mean square."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = {Tensor.item: 1.0, Tensor.__float__: 1.0, Tensor.__int__: 1, Tensor.__bool__: True}
        return values[func] if func in values else func(*args, **(kwargs or {}))
