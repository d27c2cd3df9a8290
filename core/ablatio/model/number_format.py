"""Dtypes of a pass under autocast, and computations that keep float32 in it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of matrix products: autocast's if it is enabled on the device, else `dtype`."""
    return torch.get_autocast_dtype(device.type) if autocasts(device) else dtype


def autocasts(device: torch.device) -> bool:
    """True if autocast is enabled on the device; the meta device has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for 16-bit dtypes, and wider dtypes unchanged."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which autocast is off; on the meta device, which has no autocast, it does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
