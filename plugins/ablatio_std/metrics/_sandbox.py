"""Run a program in its own process, with limits on time, memory, files and processes, and without the network.

The limits stop accidents: endless loops, memory, fork bombs, large files.  They are no protection against a program
that was written to attack this machine; run untrusted models in a container.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

FILE_BYTES = 1 << 20
LIMITER = """\
import os, resource, sys
seconds, megabytes, file_bytes = map(int, sys.argv[1:4])
try:
    # A new network namespace has no interfaces; it needs a user namespace where the user is not root. Some systems
    # forbid both: the other limits still hold.
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
except (AttributeError, OSError):
    pass
for name, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes << 20),
                    (resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0),
                    (resource.RLIMIT_NPROC, 0)):
    resource.setrlimit(name, (limit, limit))
os.execv(sys.executable, [sys.executable, "-I", "-B", "program.py"])
"""


def runs(program: str, *, seconds: int, megabytes: int) -> bool:
    """True if the program ends with exit code 0 within the limits.

    It runs in an empty folder that is removed afterwards, with an empty environment; its output is dropped.
    """
    with tempfile.TemporaryDirectory(prefix="ablatio-program-") as place:
        folder = Path(place)
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        (folder / "limits.py").write_text(LIMITER, encoding="utf-8")
        limits = map(str, (seconds, megabytes, FILE_BYTES))
        # A new session, so that the whole process group can be killed, children included.
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "limits.py", *limits], cwd=folder, env={}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
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
