"""Limit this process and start a program in its place: `python _program_limits.py SECONDS MEGABYTES FILE_BYTES FILE`.

A script that imports the standard library alone.  `_sandbox` says what the limits are.
"""

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # flags of unshare
SET_SECCOMP, FILTER_MODE, NO_NEW_PRIVILEGES = 22, 2, 38  # of prctl
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls, the same on all processors
# Numbers of the calls that are refused: new processes and threads, sockets, signals to others, other processes' memory.
CALLS = {
    # clone, fork, vfork, clone3, socket, kill, tkill, pidfd_send_signal, io_uring_setup, ptrace, process_vm_writev
    "x86_64": (0xC000003E, (56, 57, 58, 435, 41, 62, 200, 424, 425, 101, 311)),
    "aarch64": (0xC00000B7, (220, 435, 198, 129, 130, 424, 425, 117, 271)),
}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # operations of a filter
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # REFUSE: the call fails with EPERM
WRITE_FILE = 1 << 1  # Landlock's rights
WRITES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # write, remove and make files
LATER = {2: 1 << 13, 3: 1 << 14}  # rename between folders, truncate: from these versions of Landlock on


def refuse_network(libc: Any) -> None:
    """Enter a network namespace without interfaces; needs a user namespace where the user is not root."""
    if libc.unshare(NEW_USER | NEW_NETWORK):
        libc.unshare(NEW_NETWORK)


def refuse_calls(libc: Any) -> None:
    """Let the calls of CALLS fail, for root as well (seccomp); other processors have no list and are not limited."""
    if platform.machine() not in CALLS:
        return
    audit, numbers = CALLS[platform.machine()]
    steps = [
        (LOAD, 0, 0, 4),
        (EQUAL, 0, len(numbers) + 3, audit),
        (LOAD, 0, 0, 0),
        (AT_LEAST, len(numbers), 0, 1 << 30),
    ]
    steps += [(EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    # Another architecture's calls (32 bits, x32) are refused, since their numbers mean something else.
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HP", len(steps), ctypes.addressof(code))
    libc.prctl(SET_SECCOMP, FILTER_MODE, program, 0, 0)


def refuse_writes(libc: Any) -> None:
    """Let files be written and removed in the working directory alone (Landlock), if the system has it."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    writes = WRITES | sum(right for since, right in LATER.items() if version >= since)
    rules = libc.syscall(CREATE_RULESET, struct.pack("Q", writes), ctypes.c_size_t(8), 0)
    for place, allowed in ((".", writes), (os.devnull, WRITE_FILE)):
        opened = os.open(place, os.O_PATH)
        libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, opened), 0)
        os.close(opened)
    libc.syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)


def limit(seconds: int, megabytes: int, file_bytes: int) -> None:
    """Limit this process and those that it starts or becomes."""
    # Systems without these calls, or that forbid them, keep the other limits.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        refuse_network(libc)
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        refuse_writes(libc)
        refuse_calls(libc)
    for name, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes << 20),
                       (resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0),
                       (resource.RLIMIT_NPROC, 0)):  # fmt: skip
        resource.setrlimit(name, (most, most))


if __name__ == "__main__":
    limit(*map(int, sys.argv[1:4]))
    os.execv(sys.executable, [sys.executable, "-I", "-B", sys.argv[4]])
