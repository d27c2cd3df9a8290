"""The benchmark of the parts takes every kind that it names, and a plugin's part like ours."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "parts.py"


@pytest.mark.slow
def test_parts_are_measured(tmp_path):
    parts = ["layernorm", "identity", "relu", "gelu", "glu", "none", "t5", "dense", "pre", "sequential"]
    found = tmp_path / "parts.csv"
    command = [sys.executable, SCRIPT, "--parts", *parts, "--width", "64", "--turns", "1", "--csv", found]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "Error" not in run.stdout, run.stdout + run.stderr
    rows = list(csv.DictReader(found.read_text().splitlines()))
    assert [r["part"] for r in rows] == [
        *("layernorm", "identity", "relu", "gelu", "gelu approximate=tanh", "glu"),
        *("none", "t5", "dense", "pre", "sequential"),
    ]
    assert next(r for r in rows if r["part"] == "glu")["against"] == "reglu"
    assert all(float(r["forward"]) > 0 and float(r["both_ms"]) > 0 for r in rows)
