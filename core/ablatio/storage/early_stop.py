"""Stop signals outside the training loop: while a command imports, composes, plans, prepares and reports."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ablatio.storage.process import Stopped, stop_signals

_trained: list[bool] = [False]  # whether the last loop of this process has ended


def training(ended: bool) -> None:
    """Record that a run is being prepared (False) or that its loop has ended (True), for the message of a signal."""
    _trained[0] = ended


@contextmanager
def early_stops() -> Iterator[None]:
    """Raise Stopped at a stop signal while no loop has handlers of its own.  Only the main thread can do this."""
    # Python lets only the main thread install handlers; elsewhere the program that called us handles signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in stop_signals()}
    training(False)
    try:
        for number in old:
            signal.signal(number, _stop)
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    when = "after the last step; what was trained is saved" if _trained[0] else "before the first step; nothing is lost"
    raise Stopped(f"{signal.Signals(number).name} came {when}\n    try: the same command")
