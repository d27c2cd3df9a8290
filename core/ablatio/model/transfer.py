"""Copies from the host to a device that do not make the host wait for the work queued there."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to a GPU from pinned memory, so that the copy is queued like a kernel."""
    if tensor.device.type != "cpu":
        return tensor.to(device)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return these numbers (n,) on the device and in the dtype of `like`; `new_tensor` would wait for a GPU."""
    return to_device(torch.tensor(values, dtype=like.dtype), like.device)
