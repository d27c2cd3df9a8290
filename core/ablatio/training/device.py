"""What the machine offers: device, precision and threads, chosen from what it does natively."""

import ctypes
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ablatio.errors import EnvironmentFault

WIDE = 128  # d_model: of narrower ones a run is over before oneDNN's kernels, half a millisecond a shape, have paid
FLOAT32 = 1e-5  # how far a product of float32 may be from the exact one; of bfloat16 it is 2e-3
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names for mallopt
_KEPT, _LARGEST = 2**31 - 1, 2**25  # bytes: all that is freed; what glibc takes at most for the second
LIGHTNING_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True, slots=True)
class Machine:
    """device: cpu or cuda; precision: 32, bf16 or 16; threads: of torch on the CPU."""

    device: str
    precision: str
    threads: int

    @classmethod
    def choose(cls, trainer: Mapping[str, Any]) -> "Machine":
        """`auto` settings by capability.

        On the CPU 32 bits: without bf16 units in the processor autocast makes a small step 2.5x slower, and with them
        results would differ between a laptop and a cluster.  On a GPU bf16 where the chip computes it, else 32 bits.
        """
        device = trainer["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentFault("trainer.device=cuda came, and torch sees no GPU here\n    try: trainer.device=cpu")
        precision = trainer["precision"]
        if precision == "auto":
            native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if native else "32"
        return cls(device, precision, trainer["threads"] or cores())

    def prepare(self, width: int) -> None:
        """Make torch use it, for a model of this width."""
        torch.set_num_threads(self.threads)
        # Said anew for each model: the sweep that forks its runs may have timed a wider one for its table.
        torch.set_float32_matmul_precision("high" if self.device == "cuda" else "highest")
        if self.device == "cpu":
            keep_freed_memory()
            if width >= WIDE and onednn_is_faster():
                multiply_with_onednn()

    def peak_memory(self) -> int:
        """The most bytes that were in use at once: of the GPU, or of this process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Let this process reuse what it frees.

    glibc gives it back to the system, which clears each page before it gives it out again: 800 to 3600 pages a step of
    small models, 1 to 3 % of its time.  Blocks of more than 32 MB still go back; the peak is the same.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        adjust = ctypes.CDLL(None).mallopt
        adjust(_TRIM_THRESHOLD, _KEPT)
        adjust(_MMAP_THRESHOLD, _LARGEST)


def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL: twice as fast on AMD processors with AVX-512."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMD" in str(known.get("cpu_name")) and bool(known.get("avx512_f"))


def multiply_with_onednn() -> bool:
    """Hand float32 products to oneDNN, unless it would round them; whether it has them.

    torch does so where it may round to bfloat16 ("medium"), and there is no other switch.  oneDNN rounds on processors
    with units for it (AMX) alone, and a product is tried, for what a later version does is not known.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    thirds = torch.arange(1.0, 16385.0).view(128, 128) / 3
    exact = thirds.double() @ thirds.double().T
    apart = float(((thirds @ thirds.T).double() - exact).norm() / exact.norm())
    if apart > FLOAT32:
        torch.set_float32_matmul_precision(before)
    return apart <= FLOAT32


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
