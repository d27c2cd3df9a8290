"""Restore the state of the calling process after training, composing and sweeping."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARY_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")
# Reentrant, because `computing` enters `composing`.
_one_at_a_time = threading.RLock()


@contextmanager
def composing() -> Iterator[None]:
    """Context for composing configs; afterwards Hydra's global state is as before, for callers that use Hydra."""
    from hydra.core.global_hydra import GlobalHydra

    with _one_at_a_time:
        theirs = GlobalHydra.instance().hydra
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs


@contextmanager
def computing() -> Iterator[None]:
    """Context for training, scoring and sampling; afterwards the process is as before.

    Restored are the environment, torch's number of threads, float32 precision and random state, warning filters and
    Lightning's log levels.  The training loop restores signal handlers itself.  torch has one random state per
    process, so only one thread at a time may be inside.
    """
    import torch

    with _one_at_a_time, composing(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        environment, threads = dict(os.environ), torch.get_num_threads()
        precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        levels = {name: logging.getLogger(name).level for name in LIBRARY_LOGGERS}
        try:
            yield
        finally:
            restore(environment)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = convolutions
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def executing() -> Iterator[None]:
    """Context for executing a study, whose runs are processes of their own; afterwards the environment is as before.

    torch is not imported here: a process without it can be forked, so that runs start faster.
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
    """Give torch the usual number of threads again.

    The estimate of a study imports torch with one thread, so that the process can be forked.
    """
    if torch := sys.modules.get("torch"):
        from ablatio.training.device import cores

        torch.set_num_threads(cores())


def restore(environment: dict[str, str]) -> None:
    """Set os.environ back to `environment`, changing only the variables that differ."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
