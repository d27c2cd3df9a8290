"""One core for what a test computes in its own process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_core() -> Iterator[None]:
    """Let trainings in this process use one thread though no setting says so.

    A training with two would leave a pool of threads behind, which is missing in the runs that are later forked from
    this process (helpers/runs.py): they would wait for it for ever.
    """
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[os.getpid() % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
