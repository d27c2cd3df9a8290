"""The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""

import os
import sys
from collections.abc import Iterable


def gpus() -> list[str]:
    """Return the GPUs that this process may use.  CUDA is not initialized, so the process can still be forked."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    torch = sys.modules.get("torch")  # not imported: the runs use no GPU
    return [str(i) for i in range(torch.cuda.device_count())] if torch else []


def least_used(names: Iterable[str], in_use: Iterable[str], count: int = 1) -> list[str]:
    """Return the `count` names with the fewest occurrences in `in_use`; all if there are fewer."""
    runs = dict.fromkeys(names, 0)
    for name in in_use:
        if name in runs:
            runs[name] += 1
    return sorted(runs, key=runs.__getitem__)[:count]
