"""Tensors that are shapes alone: on the meta device, or the fake ones in which activations are counted."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_meta_tensor(tensor: Tensor) -> bool:
    """Whether nobody can ask for its numbers; a part whose shapes follow them then takes the usual ones."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
