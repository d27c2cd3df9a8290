"""Runs that go at the same time have a GPU each, as far as they reach; no GPU is needed to see that."""

from pathlib import Path

import pytest
from visible_gpus import TOGETHER, say

from ablatio import launchers
from ablatio.orders import Order


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("0,1", ["0", "0", "1", "1"]),
        ("GPU-b, GPU-a,GPU-c", ["GPU-a", "GPU-b", "GPU-b", "GPU-c"]),
        ("3", ["3"] * 4),
        ("", [""] * 4),
    ],
)
def test_runs_share_the_gpus_evenly(
    machine: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine)
    pool = launchers.build("pool", {"workers": TOGETHER}, work=say)
    pool.start()
    try:
        for i in range(TOGETHER):
            pool.submit(Order(str(tmp_path), f"run{i}", 1, 0))
        ends = []
        while len(ends) < TOGETHER:
            ends += pool.poll(1.0)
    finally:
        pool.stop()
    assert {end.code for end in ends} == {0}
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == expected
