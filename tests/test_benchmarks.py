"""Benchmarks, shortened: that of the parts takes every kind that it names; that of policies finds one model twice."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "parts.py"


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


@pytest.mark.slow
def test_policies_are_measured_against_trl_and_transformers(tmp_path):
    """Both sides assert that they do the same work: one model, prompts and answers of one length."""
    pytest.importorskip("trl")
    found = tmp_path / "policies.json"
    sizes = ["--width", "32", "--turns", "1", "--prompt", "4", "--new", "4"]
    command = [sys.executable, BENCHMARKS / "policies.py", "--only", "generation", "grpo", *sizes, "--json", found]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(found.read_text())
    assert len(rows) == 3 and all(min(r["ours"], r["theirs"], r["ratio"]) > 0 for r in rows)
