"""Programs of metric=pass_at_k: what passes, and what each limit stops."""

import ctypes
import socket
import sys
import time
from pathlib import Path

import pytest

from ablatio import metrics
from ablatio.data.items import Item, Response
from ablatio_std.metrics._sandbox import runs


def landlock() -> bool:
    """True if this system can limit where a process writes."""
    return sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("print('x' * 10)", True),
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("this is no program", False),
        ("import sys; sys.exit(3)", False),
        ("x = bytearray(400 << 20)", False),
        ("open('big', 'wb').write(b'x' * (8 << 20))", False),
        ("import os; os.fork()", False),
        ("import subprocess; subprocess.run(['true'])", False),
        ("import threading; threading.Thread(target=print).start()", False),
        ("import os, signal; os.kill(os.getppid(), signal.SIGTERM)", False),
        ("import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1", True),
        ("import numpy; assert (numpy.ones((9, 9)) @ numpy.ones((9, 9))).sum() == 729", True),
        ("import os; assert not os.environ.get('HOME')", True),
        ("import os; assert os.listdir('.') == ['program.py']", True),
        ("import os; open('a', 'w').write('x'); os.rename('a', 'b'); os.mkdir('c'); os.remove('b')", True),
        ("import os; open(os.devnull, 'w').write('x')", True),
    ],
)
def test_what_passes(program: str, passes: bool) -> None:
    assert runs(program, seconds=4, megabytes=256) is passes


def test_a_program_reaches_no_server_on_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        socket.create_connection((host, port), 1).close()  # outside the limits one can
        program = f"import socket; socket.create_connection(({host!r}, {port}), 1)"
        assert not runs(program, seconds=4, megabytes=256)


@pytest.mark.skipif(not landlock(), reason="the system has no Landlock, which limits where a program writes")
@pytest.mark.parametrize(
    "program", ["open({0!r}, 'w')", "import os; os.truncate({0!r}, 0)", "import os; os.remove({0!r})",
                "import os; os.mkdir({0!r} + '.d')"],
)  # fmt: skip
def test_a_program_changes_no_file_outside_its_folder(tmp_path: Path, program: str) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    assert not runs(program.format(str(kept)), seconds=4, megabytes=256)
    assert kept.read_text() == "as it was"
    assert [*tmp_path.iterdir()] == [kept]


@pytest.mark.slow
def test_an_endless_program_is_ended_with_its_children() -> None:
    begin = time.monotonic()
    assert not runs("while True: pass", seconds=1, megabytes=256)
    assert not runs("import time; time.sleep(60)", seconds=1, megabytes=256)
    assert time.monotonic() - begin < 10


def test_samples_are_run_with_the_tests_of_the_item() -> None:
    part = metrics.build("pass_at_k", {"k": 1, "samples": 4})
    more = {"test": "def check(f):\n    assert f(2, 3) == 5\n", "entry_point": "add"}
    item = Item("0", "def add(a, b):\n", more=more, stop=("\ndef",), room=32)
    bodies = ("    return a + b\n", "    return a - b\n", "    return 5\n", "    retur\n")
    assert part.score(item, [Response(texts=bodies)]) == {"pass_at_k": pytest.approx(0.5)}
    request = part.requests(item)[0]
    assert (request.samples, request.temperature, request.stop) == (4, 0.8, ("\ndef",))
