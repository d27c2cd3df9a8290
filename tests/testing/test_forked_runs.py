"""Runs that are forked from a test process end, whatever the process computed before (helpers/runs.py)."""

from pathlib import Path

import torch
from helpers.runs import TINY, ablatio
from helpers.threads import as_told


def test_a_run_with_threads_ends_after_a_computation_with_threads(text_file: Path, tmp_path: Path) -> None:
    with as_told():
        torch.set_num_threads(2)
        assert (torch.ones(600, 600) @ torch.ones(600, 600)).exp().sum() > 0
        settings = [setting for setting in TINY if "threads" not in setting]
        words = ["train", *settings, f"source.path={text_file}", "trainer.threads=2", f"out={tmp_path}", "name=forked"]
        done = ablatio(words, tmp_path / "log", seconds=60)
        assert done.code == 0, done.err
