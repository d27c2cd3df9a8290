"""Device, precision and threads of a run, chosen from the capabilities of the machine."""

import ctypes
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ablatio.data.workers import available_cores
from ablatio.errors import EnvironmentFault
from ablatio.model import flex_attention
from ablatio.model.decoding import token_steps
from ablatio.registry.kinds.launch_types import GPU_RUNS
from ablatio.training.rank_environment import Place

# d_model from which oneDNN is used: it compiles a kernel per shape (0.5 ms), which does not pay for narrower models.
WIDE = 128
TF32_SINCE = 8  # compute capability (Ampere)
FLOAT32 = 1e-5  # largest relative error of a matrix product in true float32; with bfloat16 it is 2e-3
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's mallopt
_KEEP_ALL = 2**31 - 1  # trim threshold in bytes: never return freed memory to the system
_LARGEST_MMAP_THRESHOLD = 2**25  # bytes; the largest value that glibc accepts
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}  # dtype of matrix products; weights stay in float32


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware settings of a run.

    device     cpu or cuda
    precision  32: float32; tf32: float32 whose matrix products a GPU rounds to 10 bits of mantissa; bf16, 16: matrix
               products in 16 bits (autocast), weights and optimizer state in float32
    threads    threads of torch on the CPU
    flex_attention  whether attention may take FlexAttention on a GPU
    cuda_graphs     whether decoding may replay CUDA graphs on a GPU
    """

    device: str
    precision: str
    threads: int
    flex_attention: bool = False
    cuda_graphs: bool = False

    @classmethod
    def choose(cls, trainer: Mapping[str, Any], place: Place | None = None) -> "Machine":
        """Resolve the `auto` settings of the `trainer` section from the capabilities of the machine.

        On the CPU the precision is 32 bits: without bf16 units in the processor autocast makes a small step 2.5x
        slower, and with them results would differ between a laptop and a cluster.  On a GPU it is bf16 if the chip
        computes it natively, else 32 bits.  The ranks of a run on one machine (`place`) share its cores.

        Raises EnvironmentFault for trainer.device=cuda without a GPU, and for trainer.precision=tf32 on a device that
        has no such units.
        """
        device = trainer["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentFault("trainer.device=cuda came, but torch finds no GPU here\n    try: trainer.device=cpu")
        precision = trainer["precision"]
        if precision == "auto":
            native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if native else "32"
        if precision == "tf32" and not (device == "cuda" and torch.cuda.get_device_capability()[0] >= TF32_SINCE):
            raise EnvironmentFault(
                f"trainer.precision=tf32 came, and device={device} here has no units for it: expected a GPU of compute "
                f"capability {TF32_SINCE} or later\n    try: trainer.precision=32"
            )
        if (threads := trainer["threads"] or 0) > (most := openmp_limit()):
            raise EnvironmentFault(
                f"trainer.threads={threads} came, and the environment has OMP_THREAD_LIMIT={most}: torch would leave "
                f"parts of its results unset\n    try: trainer.threads={most}"
            )
        each = threads or max(1, cores() // (place.local_world if place else 1))
        flex, graphs = trainer.get("flex_attention", False), trainer.get("cuda_graphs", False)
        return cls(device, precision, each, flex, graphs)

    def prepare(self, width: int) -> None:
        """Apply these settings to torch, for a model with d_model = `width`."""
        torch.set_num_threads(self.threads)
        flex_attention.allow(self.flex_attention)
        token_steps.allow(self.cuda_graphs)
        # Set explicitly for each run: a sweep forks its runs from a process that may have timed a wider model before.
        # Of a run in 16 bits, float32 products are those of 16-bit numbers and running sums: TF32 adds up in float32.
        rounded = self.device == "cuda" and self.precision != "32"
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        torch.backends.cudnn.allow_tf32 = rounded  # of convolutions, which torch rounds by default
        if self.device == "cuda" and runs_on_gpu() > 1:
            # A run that grows beyond its share fails itself, not the others.
            torch.cuda.set_per_process_memory_fraction(1 / runs_on_gpu())
        if self.device == "cpu":
            keep_freed_memory()
            if width >= WIDE and onednn_is_faster():
                multiply_with_onednn()

    def autocast(self) -> torch.autocast:
        """Context in which matrix products have the run's precision; it does nothing for 32 and tf32.

        Everything that computes with the model is inside it: training, scores, rollouts, references.
        """
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def peak_memory(self) -> int:
        """Peak memory use in bytes: of the GPU with device=cuda, else of this process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse instead of returning it to the system.

    The system clears each page before it hands it out again: 800 to 3600 pages per step of a small model, 1 to 3 % of
    its time.  Blocks of more than 32 MB are still returned, and the peak stays the same.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        adjust = ctypes.CDLL(None).mallopt
        adjust(_TRIM_THRESHOLD, _KEEP_ALL)
        adjust(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def onednn_is_faster() -> bool:
    """True if oneDNN multiplies float32 faster than MKL: about twice as fast on AMD processors with AVX-512."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMD" in str(known.get("cpu_name")) and bool(known.get("avx512_f"))


def multiply_with_onednn() -> bool:
    """Route float32 matrix products to oneDNN unless it rounds them to bfloat16; True if it is used.

    torch calls oneDNN for float32 only with the precision "medium", which permits rounding to bfloat16; there is no
    other switch.  Today oneDNN rounds only on processors with AMX units.  A test product is computed, because a later
    version may behave differently.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    thirds = torch.arange(1.0, 16385.0).view(128, 128) / 3
    exact = thirds.double() @ thirds.double().T
    relative_error = float(((thirds @ thirds.T).double() - exact).norm() / exact.norm())
    if relative_error > FLOAT32:
        torch.set_float32_matmul_precision(before)
    return relative_error <= FLOAT32


def runs_on_gpu() -> int:
    """Number of runs that may share this process's GPU, as its launcher says; 1 if nobody says anything."""
    said = os.environ.get(GPU_RUNS, "")
    return max(1, int(said)) if said.isdigit() else 1


def cores() -> int:
    """Number of CPU cores that a computation of this process may use."""
    return min(available_cores(), openmp_limit())


def openmp_limit() -> int:
    """The environment's OMP_THREAD_LIMIT, or a large number.

    torch must not be told of more threads: some of its kernels divide their work by that number, and what a thread that
    OpenMP does not start would have computed stays unset (attention with a mask then gives NaN).
    """
    said = os.environ.get("OMP_THREAD_LIMIT", "")
    return max(1, int(said)) if said.isdigit() else sys.maxsize
