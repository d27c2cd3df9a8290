"""Dtypes of a pass under autocast, and computations that keep float32 in it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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


@contextmanager
def casts_kept(device: torch.device) -> Iterator[None]:
    """Context without gradients in which autocast converts each weight once, not once for each pass.

    Lightning turns torch's cache of conversions off, because its copies of a pass without gradients must not serve one
    with gradients.  For a rollout, which has a pass for each token, it is turned on, and emptied at the end.
    """
    if not autocasts(device):
        yield
        return
    torch.clear_autocast_cache()
    try:
        with torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()
