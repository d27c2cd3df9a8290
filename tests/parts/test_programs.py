"""Programs of metric=pass_at_k: what passes, and what each limit stops."""

import time
from pathlib import Path

import pytest

from ablatio import metrics
from ablatio.data.items import Item, Response
from ablatio_std.metrics._sandbox import runs


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
        ("import os; assert not os.environ.get('HOME')", True),
        ("import os; assert os.listdir('.') == ['limits.py', 'program.py'] or len(os.listdir('.')) == 2", True),
    ],
)
def test_what_passes(program: str, passes: bool) -> None:
    if "fork" in program and Path("/proc/self/status").read_text().find("Uid:\t0") >= 0:
        pytest.skip("the number of processes of root is not limited")
    assert runs(program, seconds=2, megabytes=256) is passes


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
