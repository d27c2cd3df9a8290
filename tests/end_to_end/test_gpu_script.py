"""benchmarks/gpu.sh in its tiny form on a CPU: each of its steps runs to its end and writes its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_limits_of_the_steps_fit_into_ten_minutes() -> None:
    lines = [line.split() for line in (BENCHMARKS / "gpu.sh").read_text().splitlines() if line.startswith("step ")]
    assert len(lines) == 8 and sum(int(words[2]) for words in lines) <= 10 * 60
    assert all((BENCHMARKS / words[3]).exists() for words in lines)
    subprocess.run(["sh", "-n", BENCHMARKS / "gpu.sh"], check=True)


@pytest.mark.slow
def test_a_step_writes_its_results(tmp_path: Path) -> None:
    found = tmp_path / "attention.json"
    command = [sys.executable, BENCHMARKS / "gpu_speed.py", "attention", "--out", found, "--tiny"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(found.read_text())["rows"]
    masks = ["causal", "documents", "window", "alibi", "alibi, documents", "softcap", "sinks"]
    assert [row["mask"] for row in rows] == masks and all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_generation_is_measured_with_graphs_and_without(tmp_path: Path) -> None:
    found = tmp_path / "generation.json"
    command = [sys.executable, BENCHMARKS / "gpu_speed.py", "generation", "--out", found, "--tiny"]
    subprocess.run(command, capture_output=True, check=True)
    rows = json.loads(found.read_text())["rows"]
    assert [row["graphs"] for row in rows] == [True, False] and all(row["tokens/s"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_script_runs_on_a_cpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = ["sh", BENCHMARKS / "gpu.sh", "--tiny"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    steps = dict(line.split() for line in (tmp_path / "steps.txt").read_text().splitlines())
    assert set(steps.values()) == {"0"}, steps
    for name in ("parts", "kernels", "graphs", "runs"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["checked"] and not found["failed"]
    assert all(row["exit"] == 0 for row in json.loads((tmp_path / "shared.json").read_text())["rows"])
