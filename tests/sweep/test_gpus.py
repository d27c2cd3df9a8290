"""Assignment of GPUs to concurrent runs by CUDA_VISIBLE_DEVICES; these tests need no GPU."""

import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.visible_gpus import TOGETHER, say

import ablatio_std.launchers.pool as pool_module
from ablatio import launchers
from ablatio.registry.kinds.launch_types import LaunchRequest


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("0,1", ["0", "0", "1", "1"]),
        ("GPU-b, GPU-a,GPU-c", ["GPU-a", "GPU-b", "GPU-b", "GPU-c"]),
        ("3", ["3"] * 4),
        ("", [""] * 4),
    ],
)
def test_concurrent_runs_are_spread_evenly_over_gpus(
    machine: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine)
    pool = launchers.build("pool", {"workers": TOGETHER}, work=say)
    pool.start()
    try:
        for i in range(TOGETHER):
            pool.submit(LaunchRequest(str(tmp_path), f"run{i}", 1, 0, together=TOGETHER))
        ends = []
        while len(ends) < TOGETHER:
            ends += pool.poll(1.0)
    finally:
        pool.stop()
    assert {end.code for end in ends} == {0}
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == expected


@pytest.mark.parametrize("machine, forks", [("0,1", False), ("", True)])
def test_pool_does_not_fork_when_gpus_are_visible(machine: str, forks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = sys.platform == "linux" and threading.active_count() == 1 and pool_module._os_threads() == 1
        assert pool_module._may_fork() == (forks and alone)
    finally:
        torch.set_num_threads(threads)
