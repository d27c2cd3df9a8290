"""The work of a run that only says which GPU it sees.  A server that is spawned imports it by this module's name."""

import os
import time
from pathlib import Path

from ablatio.registry.kinds.launch_types import LaunchRequest

TOGETHER = 4


def say(order: LaunchRequest, threads: int) -> int:
    """Write down which GPU one sees, and wait until all have."""
    Path(order.folder, order.job).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    deadline = time.monotonic() + 60
    while len(list(Path(order.folder).iterdir())) < TOGETHER and time.monotonic() < deadline:
        time.sleep(0.01)
    return 0


say.warm = lambda: None  # type: ignore[attr-defined]
