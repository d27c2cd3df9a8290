"""Run a program in its own process, with limits on time, memory, files and processes, and without the network.

The limits stop accidents: endless loops, memory, fork bombs, large files, programs that remove files or call a server.
On Linux they hold for root as well: new processes, threads, sockets and signals to other processes are refused by
seccomp, and writing outside the program's folder by Landlock.  Where a system lacks these, the limits of `setrlimit`
are left, which leave the number of root's processes open.  None of this is a protection against a program that was
written to attack this machine: run untrusted models in a container.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

FILE_BYTES = 1 << 20
LIMITER = Path(__file__).with_name("_program_limits.py")
# Libraries that would start threads, which are refused, compute with one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def runs(program: str, *, seconds: int, megabytes: int) -> bool:
    """True if the program ends with exit code 0 within the limits.

    It runs in an empty folder that is removed afterwards, without the environment of this process; its output is
    dropped.
    """
    with tempfile.TemporaryDirectory(prefix="ablatio-program-") as place:
        folder = Path(place)
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        limits = map(str, (seconds, megabytes, FILE_BYTES))
        # A new session, so that the whole process group can be killed, children included.
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(LIMITER), *limits, "program.py"], cwd=folder, env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            # One second more than the limit on CPU time, which does not count sleep.
            return process.wait(seconds + 1) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
