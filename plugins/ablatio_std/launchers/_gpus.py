"""The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""

import os
import sys
from collections.abc import Iterable, Sequence


def gpus() -> list[str]:
    """Return the GPUs that this process may use.  CUDA is not initialized, so the process can still be forked."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    torch = sys.modules.get("torch")  # not imported: the runs use no GPU
    return [str(i) for i in range(torch.cuda.device_count())] if torch else []


def sharing(together: int, names: Sequence[str]) -> int:
    """Largest number of runs on a GPU when `together` runs of one device are spread over all of them."""
    return -(-together // len(names))


def least_used(names: Iterable[str], runs: Iterable[Sequence[str]], count: int = 1, most: int = 1) -> list[str]:
    """GPUs of a run of `count` devices; fewer than `count` if it has to wait for them.

    A run of one device takes the GPU with the fewest runs, if these are fewer than `most`.  A run of several devices
    takes GPUs that no other run uses, and no run joins it: its ranks wait for each other in every step, so the slowest
    GPU would hold up all of them.

    runs  the GPUs of each run that is being executed
    """
    load = dict.fromkeys(names, 0)
    for used in runs:
        for name in used:
            if name in load:
                load[name] += 1 if len(used) == 1 else most
    free = [name for name in load if load[name] < (most if count == 1 else 1)]
    return sorted(free, key=load.__getitem__)[:count]
