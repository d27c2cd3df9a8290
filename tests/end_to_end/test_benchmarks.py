"""Shortened runs of the benchmarks, and a check that both sides do the same work."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import warm_python

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_parts_benchmark_measures_each_named_part(tmp_path):
    """Parts of every kind are measured, with their variants and their reference implementation."""
    parts = ["layernorm", "identity", "relu", "gelu", "glu", "none", "t5", "dense", "pre", "sequential"]
    found = tmp_path / "parts.csv"
    options = ["--parts", *parts, "--width", "64", "--turns", "1", "--csv", str(found)]
    run = warm_python.run([str(BENCHMARKS / "parts.py"), *options])
    assert run.returncode == 0 and "Error" not in run.stdout, run.stdout + run.stderr
    rows = list(csv.DictReader(found.read_text().splitlines()))
    assert [r["part"] for r in rows] == [
        *("layernorm", "identity", "relu", "gelu", "gelu approximate=tanh", "glu"),
        *("none", "t5", "dense", "pre", "sequential"),
    ]
    assert next(r for r in rows if r["part"] == "glu")["against"] == "reglu"
    assert all(float(r["forward"]) > 0 and float(r["both_ms"]) > 0 for r in rows)


@pytest.mark.slow
def test_mixers_benchmark_writes_its_ratios(tmp_path):
    found = tmp_path / "mixers.json"
    options = ["--mixers", "mingru", "--length", "40", "--turns", "1", "--json", str(found)]
    run = warm_python.run([str(BENCHMARKS / "mixers.py"), *options])
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(found.read_text())["mixers"]
    assert [row["attention"] for row in rows] == ["mingru"]
    assert all(row["step / mha's"] > 0 and row["peak MB"] > 0 for row in rows)


@pytest.mark.slow
def test_layers_benchmark_measures_the_stack_against_a_plain_loop(tmp_path):
    found = tmp_path / "layers.json"
    options = ["--sizes", "0", "--turns", "2", "--json", str(found)]
    run = warm_python.run([str(BENCHMARKS / "layers.py"), *options])
    assert run.returncode == 0, run.stdout + run.stderr
    (row,) = json.loads(found.read_text())["sizes"]
    assert row["ratio"] > 0 and row["width"] == 32
    assert row["mechanism %"] < 5  # 0.2 in a quiet process; the rest is for a busy machine


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_data_benchmark_finds_the_same_tokens_with_all_contenders(tmp_path, workers):
    """The benchmark itself compares what each contender wrote: documents, and how often each id."""
    found = tmp_path / "data.json"
    options = ["--megabytes", "1", "--turns", "1", "--workers", str(workers), "--json", found]
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "data.py", *options], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    made = json.loads(found.read_text())
    assert made["documents"] >= 250 and made["tokens"] > 250_000
    assert all(made[f"{peer} / ours"]["ratio"] > 0 for peer in ("datasets", "datatrove"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of trl
@pytest.mark.oracle("task=preference", "trl's DPOTrainer, step by step")
@pytest.mark.oracle("task=sft", "trl's SFTTrainer, step by step")
@pytest.mark.oracle("task=reward", "trl's RewardTrainer, step by step")
def test_training_losses_match_trl(monkeypatch):
    """The speed comparison is fair only if both sides train alike: the losses of three successive steps agree."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ABLATIO_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")  # lets monkeypatch restore them after the test
    from _feedback import TINY, ours, theirs

    for task, settings in (
        ("preference", {}),
        ("preference", {"precompute_ref_log_probs": True}),
        ("sft", {}),
        ("reward", {}),
    ):
        own, other = ours(task, TINY), theirs(task, TINY, settings)
        assert [own() for _ in range(3)] == pytest.approx([other() for _ in range(3)], rel=1e-4)


@pytest.mark.slow
@pytest.mark.long
def test_preferences_benchmark_runs():
    small = ["--turns", "1", "--pairs", "2", "--width", "32", "--layers", "1", "--vocab", "512"]
    command = [sys.executable, BENCHMARKS / "preferences.py", *small, "--case", "short", "--task", "reward"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    row = next(line for line in run.stdout.splitlines() if "RewardTrainer" in line).split("│")
    assert all(float(cell) > 0 for cell in row[2:-1])


@pytest.mark.slow
@pytest.mark.long
def test_policies_benchmark_runs(tmp_path):
    """The benchmark itself asserts equal work on both sides: one model, prompts and answers of equal length."""
    found = tmp_path / "policies.json"
    sizes = ["--width", "32", "--turns", "1", "--prompt", "4", "--new", "4"]
    command = [sys.executable, BENCHMARKS / "policies.py", "--only", "generation", "grpo", *sizes, "--json", found]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(found.read_text())
    assert len(rows) == 3 and all(min(r["ours"], r["theirs"], r["ratio"]) > 0 for r in rows)
