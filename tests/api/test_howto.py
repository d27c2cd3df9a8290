"""The code of docs/howto/python.md runs, block after block, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/howto/python.md"
CALLS = ("train", "open_run", "run_study", "open_study", "build_model", "list_parts", "resume_run", "resume_study")


@pytest.mark.long  # tests/docs runs the page in the process of the tests; here it is a script of its own
@pytest.mark.slow
def test_the_blocks_of_the_page_run_in_order(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 8
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("done, 20 of 20 steps", "did you mean rmsnorm", "norm=rmsnorm {", "ablatio new-plugin my-norms"):
        assert said in done.stdout
    assert (tmp_path / "runs/norms/report/report.html").exists()


def test_the_page_names_every_call() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in CALLS if f"ablatio.{name}(" not in text] == []
