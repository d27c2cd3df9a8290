"""Detection of tensors without values: on the meta device, or fake tensors."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_meta_tensor(tensor: Tensor) -> bool:
    """True if the tensor has a shape but no values; a part whose shapes depend on values then uses typical ones."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
