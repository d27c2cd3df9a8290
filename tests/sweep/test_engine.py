"""Sweep engine: each job completes once, despite failures of runs, servers or the sweep.  The runs are fakes."""

import json
import multiprocessing as mp
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import engine, job, states, table

from ablatio.errors import Preempted, UserError
from ablatio.sweep.engine import Engine, owned
from ablatio.sweep.ledger import Ledger

JOBS = [job(f"j{i}") for i in range(4)]


def in_child(act: Callable[[], Any]) -> mp.process.BaseProcess:
    process = mp.get_context("fork").Process(target=act)
    process.start()
    return process


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"condition not met after {seconds} s"
        time.sleep(0.01)


def ledger_lines(folder: Path, state: str) -> list[dict[str, Any]]:
    """Ledger lines with the given state."""
    found = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [line for line in found if line["state"] == state]


def running(folder: Path, name: str) -> int:
    """Wait until a job has reached its second step; returns the process id of its run."""
    until(lambda: (folder / "runs" / name / "step").exists() and (folder / "runs" / name / "step").read_text() == "2")
    return next(int(e["pid"]) for e in reversed(ledger_lines(folder, "running")) if e["job"] == name)


def test_repeated_sweep_starts_no_finished_job(tmp_path: Path) -> None:
    results = engine(tmp_path, *JOBS).run()
    assert [r.job.id for r in results] == ["j0", "j1", "j2", "j3"] and all(r.summary["steps"] == 4 for r in results)
    size = (tmp_path / "ledger.jsonl").stat().st_size
    again = engine(tmp_path, *JOBS)
    assert again.run() == results and not again.started
    assert (tmp_path / "ledger.jsonl").stat().st_size == size


@pytest.mark.parametrize(
    ("do", "kind", "message"),
    [
        ("exit", "exited", "code 3"),
        ("sys.exit", "exited", "SystemExit"),
        ("kill", "killed", "SIGKILL"),
        ("raise", "crash", "ValueError: no such thing"),
        ("diverge", "diverged", "the loss is nan"),
        ("disk", "environment", "No space left"),
        pytest.param("hang", "timeout", "timeout=", marks=pytest.mark.slow),
    ],
)
def test_failing_run_does_not_affect_other_runs(
    tmp_path: Path, do: str, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablatio_std.launchers.pool.GRACE", 0.5)
    made = engine(tmp_path, job("bad", do), *JOBS, knobs={"workers": 2, "timeout": 1.0})
    results = {r.job.id: r.entry for r in made.run()}
    assert {n: e.state for n, e in results.items()} == {"bad": "failed"} | dict.fromkeys(
        ("j0", "j1", "j2", "j3"), "done"
    )
    assert results["bad"].kind == kind and message in results["bad"].message
    assert len([e for e in ledger_lines(tmp_path, "running") if e["job"] == "bad"]) == (3 if do == "kill" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("do", ["hang", "slow"])  # `hang` ignores SIGTERM, `slow` handles it
def test_hung_run_is_stopped(tmp_path: Path, do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablatio_std.launchers.pool.GRACE", 0.5)
    made = engine(tmp_path, job("bad", do), job("talks", "chat"), *JOBS, knobs={"workers": 3}, hang=1.5)
    results = {r.job.id: r.entry for r in made.run()}
    assert {n for n, e in results.items() if e.state == "done"} == {"talks", "j0", "j1", "j2", "j3"}
    assert (results["bad"].state, results["bad"].kind) == ("failed", "hung") and "1.5 s" in results["bad"].message
    assert len(ledger_lines(tmp_path, "running")) == 6


def test_unwritable_run_result_is_an_environment_failure(tmp_path: Path) -> None:
    """As on a full disk: the run can write neither its error nor its ledger line; it is retried as `environment`."""
    obstacle = tmp_path / "runs/bad/error.txt/taken"
    obstacle.mkdir(parents=True)
    results = {r.job.id: r.entry for r in engine(tmp_path, job("bad", "raise"), *JOBS).run()}
    assert (results["bad"].state, results["bad"].kind) == ("failed", "environment") and "write" in results[
        "bad"
    ].message
    shutil.rmtree(obstacle.parent)
    retried = engine(tmp_path, job("bad", "raise"), *JOBS, retry="environment").run()
    assert [r.entry.kind for r in retried if r.job.id == "bad"] == ["crash"]


def test_child_processes_of_a_finished_run_are_killed(tmp_path: Path) -> None:
    engine(tmp_path, job("leaks", "leak"), *JOBS).run()
    pid = ledger_lines(tmp_path, "running")[0]["pid"]
    group = [p for p in Path("/proc").glob("[0-9]*") if _group(p) == pid]
    assert not group


def _group(process: Path) -> int:
    try:
        state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return 0
    return 0 if state == "Z" else int(group)


@pytest.mark.parametrize("do", ["once:kill", "once:kill server"])
def test_run_resumes_from_checkpoint_after_run_or_server_is_killed(tmp_path: Path, do: str) -> None:
    engine(tmp_path / "whole", *JOBS, job("bad")).run()
    made = engine(tmp_path / "cut", *JOBS, job("bad", do))
    assert {r.entry.state for r in made.run()} == {"done"}
    assert table(tmp_path / "whole") == table(tmp_path / "cut")
    assert "bad starts at step 2" in (tmp_path / "cut/runs/bad/log.txt").read_text()
    assert len(ledger_lines(tmp_path / "cut", "done")) == 5


def test_run_that_kills_its_server_fails_without_ending_the_sweep(tmp_path: Path) -> None:
    made = engine(tmp_path, *JOBS, job("bad", "kill server"), knobs={"workers": 1})
    results = {r.job.id: r.entry for r in made.run()}
    assert results["bad"].state == "failed" and results["bad"].kind == "lost"
    assert [results[f"j{i}"].state for i in range(4)] == ["done"] * 4


def test_retry_selects_which_failed_runs_are_repeated(tmp_path: Path) -> None:
    both = [job("a", "raise"), job("b", "diverge")]
    engine(tmp_path, *both).run()
    assert len(ledger_lines(tmp_path, "running")) == 2
    engine(tmp_path, *both).run()
    assert len(ledger_lines(tmp_path, "running")) == 2
    engine(tmp_path, *both, retry="crash").run()
    assert len(ledger_lines(tmp_path, "running")) == 3
    engine(tmp_path, *both, retry="failed").run()
    assert len(ledger_lines(tmp_path, "running")) == 5
    with pytest.raises(UserError, match="retry=nonsense"):
        engine(tmp_path, *both, retry="nonsense")


def test_sigterm_preempts_sweep_which_can_be_resumed(tmp_path: Path) -> None:
    def sweep() -> None:
        with pytest.raises(Preempted, match="ablatio resume"):
            engine(tmp_path, job("slow", "once:slow"), *JOBS, knobs={"workers": 1}).run()

    process = in_child(sweep)
    running(tmp_path, "slow")
    assert process.pid
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 0
    assert Ledger(tmp_path / "ledger.jsonl").read()["slow"].state == "preempted"
    results = engine(tmp_path, job("slow", "once:slow"), *JOBS).run()
    assert {r.entry.state for r in results} == {"done"} and len(ledger_lines(tmp_path, "done")) == 5
    assert "slow starts at step 2" in (tmp_path / "runs/slow/log.txt").read_text()


def test_sweep_resumes_after_its_process_is_killed(tmp_path: Path) -> None:
    process = in_child(lambda: engine(tmp_path, job("slow", "once:slow"), *JOBS, knobs={"workers": 1}).run())
    run = running(tmp_path, "slow")
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    until(lambda: not Path(f"/proc/{run}").exists() or Ledger(tmp_path / "ledger.jsonl").read()["slow"].taken is False)
    results = engine(tmp_path, job("slow", "once:slow"), *JOBS).run()
    assert {r.entry.state for r in results} == {"done"} and len(ledger_lines(tmp_path, "done")) == 5


def test_second_sweep_is_rejected_unless_it_joins(tmp_path: Path) -> None:
    jobs = [job("slow", "once:slow"), *JOBS]
    process = in_child(lambda: engine(tmp_path, *jobs, knobs={"workers": 1}).run())
    run = running(tmp_path, "slow")
    with pytest.raises(UserError, match=f"(?s)process {process.pid} on .*join=true"):
        engine(tmp_path, *jobs).run()

    def joiner() -> None:
        engine(tmp_path, *jobs, join=True).run()

    other = in_child(joiner)
    # These are done by the joined sweep: the owner's only worker is busy with `slow`.
    until(lambda: len(ledger_lines(tmp_path, "done")) == 4)
    os.kill(run, signal.SIGKILL)
    process.join(30)
    other.join(30)
    assert process.exitcode == other.exitcode == 0
    done = ledger_lines(tmp_path, "done")
    assert sorted(e["job"] for e in done) == ["j0", "j1", "j2", "j3", "slow"]


def test_joined_sweep_without_open_jobs_waits_for_the_owner(tmp_path: Path) -> None:
    """It launches nothing and returns when the owner's runs are finished."""
    process = in_child(lambda: engine(tmp_path, job("only", "nap"), job("last", "chat"), knobs={"workers": 2}).run())
    until(lambda: (tmp_path / "ledger.jsonl").exists() and len(ledger_lines(tmp_path, "running")) == 2)
    joiner = engine(tmp_path, job("only", "nap"), job("last", "chat"), join=True)
    assert {r.entry.state for r in joiner.run()} == {"done"} and not joiner.started
    process.join(30)
    assert process.exitcode == 0 and len(ledger_lines(tmp_path, "done")) == 2


def test_rung_pauses_and_continues(tmp_path: Path) -> None:
    asked: list[Mapping[str, Any]] = []

    def more(results: Mapping[str, Any]) -> list[Any]:
        asked.append(dict(results))
        if set(results) == {"a", "b"} and results["b"]["steps"] == 2 and results["a"]["steps"] == 2:
            return [job("b", role="rung"), job("fresh", seed=2)]
        return []

    made = engine(tmp_path, job("a", role="rung", until=2), job("b", role="rung", until=2), more=more)
    results = {r.job.id: r.entry for r in made.run()}
    assert {n: (e.state, e.step) for n, e in results.items()} == {
        "a": ("paused", 2), "b": ("done", 4), "fresh": ("done", 4)
    }  # fmt: skip
    assert asked[0] == {} and "b starts at step 2" in (tmp_path / "runs/b/log.txt").read_text()
    again = engine(tmp_path, job("a", role="rung", until=2), job("b", role="rung"), job("fresh", seed=2))
    assert not again.started and len(again.run()) == 3


def test_lock_is_released_when_its_owner_dies(tmp_path: Path) -> None:
    def hold() -> None:
        with owned(tmp_path, False):
            os.kill(os.getpid(), signal.SIGKILL)

    in_child(hold).join()
    with owned(tmp_path, False) as owner:
        assert owner


def test_running_jobs_of_other_hosts_are_kept_unless_retried(tmp_path: Path) -> None:
    """Whether a process of another host is alive cannot be checked, so its run is assumed to be running."""
    engine(tmp_path, *JOBS).run()
    far = Ledger(tmp_path / "ledger.jsonl")
    claim = far.claim("j0", far.read()["j0"])
    assert claim
    lines = (tmp_path / "ledger.jsonl").read_text()
    host = os.uname().nodename
    made: Engine = engine(tmp_path, *JOBS)
    entry = made.ledger.read()["j0"]
    assert host in lines and entry.taken and not made.is_open(JOBS[0], entry)
    from dataclasses import replace

    away = replace(entry, host="far away", state="running")
    assert not made.is_open(JOBS[0], away)
    assert engine(tmp_path, *JOBS, retry="running").is_open(JOBS[0], away)
    assert states(made)["j1"] == "done"
