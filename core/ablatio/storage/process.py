"""Identity of processes across machines, the signals that ask a process to stop, and the end of a parent."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

# What batch systems, terminals and people send before they kill: Slurm and SGE send USR1 or USR2, a lost terminal HUP.
STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGQUIT,
)

_PR_SET_PDEATHSIG = 1


class Stopped(KeyboardInterrupt):
    """A stop signal came while no handler of the training loop could save anything.

    It is no Exception, so that nothing between the signal and the command line takes it for an error of its own.
    """


def stop_signals() -> tuple[signal.Signals, ...]:
    """The stop signals to handle: without SIGHUP and the like if the caller ignores them, as `nohup` does."""
    # A shell starts background jobs with SIGINT ignored, and a scheduler may pass that on; these two always stop a run.
    always = (signal.SIGTERM, signal.SIGINT)
    return tuple(s for s in STOP_SIGNALS if s in always or signal.getsignal(s) != signal.SIG_IGN)


def end_with_parent(number: signal.Signals) -> None:
    """Let the kernel send a signal to this process when the thread that has started it ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def this_process() -> dict[str, Any]:
    """pid, host and start time of this process."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": started(os.getpid())}


def is_alive(pid: int, host: str, start: int) -> bool | None:
    """True if the process is alive; None if it is on another machine.

    start  its start time, which tells it from a later process with the same pid
    """
    if host != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, but owned by another user
        pass
    return started(pid) == start


def started(pid: int) -> int:
    """Start time of a process in kernel ticks since boot; 0 if unknown, -1 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        # Without /proc (macOS) nothing is known; with it, a missing entry means that the process has ended.
        return -1 if Path("/proc/self/stat").exists() else 0
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    # A zombie has ended, and waits for its parent only; field 22 is the start time.
    state, *rest = stat.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(rest[18])
