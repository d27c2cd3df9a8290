"""The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""

import os
import sys
from collections.abc import Iterable


def gpus() -> list[str]:
    """Those that this process may use; none of them is touched, so the process can still be forked."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    torch = sys.modules.get("torch")  # without it the runs use none
    return [str(i) for i in range(torch.cuda.device_count())] if torch else []


def least_used(names: Iterable[str], in_use: Iterable[str]) -> str:
    """The GPU that the fewest runs have; "" where there is none."""
    runs = dict.fromkeys(names, 0)
    for name in in_use:
        if name in runs:
            runs[name] += 1
    return min(runs, key=runs.__getitem__, default="")
