"""State of the process that training may change, and how it is restored."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARY_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")
_one_at_a_time = threading.RLock()


@contextmanager
def composing() -> Iterator[None]:
    """Context manager for composing configs: Hydra's global state of the caller is restored afterwards."""
    from hydra.core.global_hydra import GlobalHydra

    with _one_at_a_time:
        theirs = GlobalHydra.instance().hydra
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs


@contextmanager
def computing() -> Iterator[None]:
    """Context manager for training, scoring and sampling: the state of the process is restored afterwards.

    Restored are the environment, torch's threads, its float32 matmul precision and its random state, the filters of
    warnings, and Lightning's log level.  The training loop restores signal handlers itself.  torch has one random state
    per process, so trainings in two threads run one after the other.
    """
    import torch

    with _one_at_a_time, composing(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        environment, threads = dict(os.environ), torch.get_num_threads()
        precision = torch.get_float32_matmul_precision()
        levels = {name: logging.getLogger(name).level for name in LIBRARY_LOGGERS}
        try:
            yield
        finally:
            restore(environment)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def executing() -> Iterator[None]:
    """Context manager for executing a study, whose runs are separate processes, so that little changes here.

    torch is not imported: a process without it can be forked, and the runs start sooner.
    """
    environment = dict(os.environ)
    torch = sys.modules.get("torch")
    with composing():
        try:
            if torch is None:
                yield
            else:
                with computing():
                    yield
        finally:
            restore(environment)
            if torch is None and "OMP_NUM_THREADS" not in environment:
                _all_threads()


def _all_threads() -> None:
    """The estimate of a study imports torch with one thread, to be forked; what comes later has the usual number."""
    if torch := sys.modules.get("torch"):
        from ablatio.training.device import cores

        torch.set_num_threads(cores())


def restore(environment: dict[str, str]) -> None:
    """Make os.environ say what it said, variable by variable."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
