"""What a training may change of the process that it runs in, and how that is put back."""

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
    """Inside, configs are composed; a Hydra program that calls us finds Hydra's own state as it left it."""
    from hydra.core.global_hydra import GlobalHydra

    with _one_at_a_time:
        theirs = GlobalHydra.instance().hydra
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs


@contextmanager
def computing() -> Iterator[None]:
    """Inside, models are trained, scored or sampled; afterwards the process is as it was.

    Put back: the environment, torch's threads, its precision of float32 products and its random state, the filters of
    warnings, and how much Lightning logs.  Signal handlers are the training loop's own business, which puts them back.
    torch has one random state a process, so that two trainings in two threads take their turn.
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
    """Inside, a study is executed; its runs are processes of their own, so that little changes here.

    torch is not imported for this: a process without it can be forked, and the runs start sooner.
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
