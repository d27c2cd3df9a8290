"""The first day of a stranger, in a new environment from the wheel; see first_day.py."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_first_day() -> None:
    script = Path(__file__).with_name("first_day.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-12000:]}\n{done.stderr[-3000:]}"
    assert "0 failures" in done.stdout
