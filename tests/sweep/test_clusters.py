"""Ray and submitit launchers: the same jobs and ledger as the process pool.  The runs are fakes."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import engine, fake_work, homes_of_packages, job, states, stop_when, table

from ablatio import launchers
from ablatio.api.multirun import multirun
from ablatio.cli.main import main
from ablatio.errors import ConfigError, Preempted, UserError
from ablatio.sweep.launcher_choice import LauncherChoice, chosen_launcher
from ablatio.sweep.ledger import Ledger

JOBS = [job(f"j{i}") for i in range(4)]
TROUBLE = [job("bad", "raise"), job("dead", "kill"), job("left", "exit")]
LOCAL = {"cluster": "local", "workers": 2}
# Fake sbatch, srun and squeue: start each job of an array immediately on this machine.  Like Slurm, sbatch keeps a copy
# of the script: submitit moves its own as soon as sbatch returns.
SBATCH = """#!/bin/sh
for given; do :; done
script="$(dirname "$0")/script"
cp "$given" "$script"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
echo "$last" >> "$(dirname "$0")/arrays"
for i in $(seq 0 "${last:-0}"); do
  id=$$
  [ -z "$last" ] || id="$$_$i"
  echo "$id|RUNNING|None" >> "$(dirname "$0")/queue"
  export SLURM_JOB_ID=$$
  [ -z "$last" ] || export SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID="$i"
  sh "$script" > /dev/null 2>&1 &
done
echo "Submitted batch job $$"
"""
SQUEUE = '#!/bin/sh\ncat "$(dirname "$0")/queue"\n'
SRUN = """#!/bin/sh
while [ "${1%/python*}" = "$1" ]; do shift; done
exec "$@"
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fakes and the packages on PYTHONPATH for the processes that Ray and submitit start."""
    monkeypatch.setenv("PYTHONPATH", homes_of_packages())


@pytest.fixture
def cluster(importable: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray cluster: a head node without CPUs and one worker node with one CPU."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    made.grow = lambda: made.add_node(num_cpus=1, **node)
    made.first = made.grow()
    yield made
    made.shutdown()


def has_begun(folder: Path) -> Callable[[Any], bool]:
    """True once the job `slow` has reached its second step."""
    return lambda made: (folder / "runs/slow/once").exists()


@pytest.mark.slow
def test_ray_on_two_nodes_gives_the_results_of_the_pool(cluster: Any, tmp_path: Path) -> None:
    cluster.grow()
    engine(tmp_path / "pool", *JOBS, *TROUBLE).run()
    made = engine(tmp_path / "ray", *JOBS, *TROUBLE, launcher="ray", knobs={"address": cluster.address})
    kinds = {r.job.id: r.entry.kind for r in made.run()}
    assert made.launcher.slots == 2
    assert states(made) == {n: e.state for n, e in Ledger(tmp_path / "pool/ledger.jsonl").read().items()}
    assert table(tmp_path / "ray") == table(tmp_path / "pool")
    assert [kinds[j.id] for j in TROUBLE] == ["crash", "killed", "exited"]


@pytest.mark.long
def test_ray_sweep_finishes_with_fewer_slots_than_workers(cluster: Any, tmp_path: Path) -> None:
    """Two workers on a cluster with one CPU: Ray waits for a second slot forever, so the sweep must not."""
    knobs = {"address": cluster.address, "workers": 2}
    made = engine(tmp_path, *JOBS, launcher="ray", knobs=knobs)
    assert [r.entry.state for r in made.run()] == ["done"] * len(JOBS)


@pytest.mark.slow
def test_run_of_a_lost_ray_node_resumes_on_another_node(cluster: Any, tmp_path: Path) -> None:
    """Removing a node interrupts only its own run, which resumes from its checkpoint on the remaining node."""

    class Unplug:
        """Add a second node while the first runs `slow`; remove the first once all other jobs are done."""

        def __init__(self) -> None:
            self.wanted = 0
            self.steps = iter([lambda: cluster.grow(), lambda: cluster.remove_node(cluster.first, False)])

        def update(self, made: Any) -> None:
            done = sum(e.state == "done" for e in made.ledger.entries.values())
            if (tmp_path / "runs/slow/once").exists() and done == self.wanted:
                next(self.steps, lambda: None)()
                self.wanted = 4

    made = engine(
        tmp_path, job("slow", "once:slow"), *JOBS, launcher="ray", watcher=Unplug(),
        knobs={"address": cluster.address, "workers": 2},
    )  # fmt: skip
    assert {r.entry.state for r in made.run()} == {"done"}
    assert made.ledger.entries["slow"].attempt == 2
    assert "slow starts at step 2" in (tmp_path / "runs/slow/log.txt").read_text()


@pytest.mark.long
def test_sigterm_preempts_ray_sweep_which_can_be_resumed(tmp_path: Path) -> None:
    """Ray installs its own SIGTERM handler in this process; the sweep's handler must take precedence."""
    with pytest.raises(Preempted, match="ablatio resume"):
        engine(
            tmp_path,
            job("slow", "once:slow"),
            launcher="ray",
            watcher=stop_when(has_begun(tmp_path)),
            knobs={"workers": 1},
        ).run()
    assert Ledger(tmp_path / "ledger.jsonl").read()["slow"].state == "preempted"
    assert [r.entry.state for r in engine(tmp_path, job("slow", "once:slow")).run()] == ["done"]


def test_submitit_gives_the_results_of_the_pool(tmp_path: Path) -> None:
    engine(tmp_path / "pool", JOBS[0], *TROUBLE[::2]).run()
    made = engine(tmp_path / "local", JOBS[0], *TROUBLE[::2], launcher="slurm", knobs=LOCAL)
    kinds = {r.job.id: r.entry.kind for r in made.run()}
    assert states(made) == {"j0": "done", "bad": "failed", "left": "failed"}
    assert table(tmp_path / "local") == table(tmp_path / "pool")
    assert [kinds[j.id] for j in TROUBLE[::2]] == ["crash", "exited"]


def test_sigterm_preempts_submitit_sweep_which_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(Preempted, match="ablatio resume"):
        engine(
            tmp_path, job("slow", "once:slow"), launcher="slurm", watcher=stop_when(has_begun(tmp_path)), knobs=LOCAL
        ).run()
    assert Ledger(tmp_path / "ledger.jsonl").read()["slow"].state == "preempted"
    results = engine(tmp_path, job("slow", "once:slow"), launcher="slurm", knobs=LOCAL).run()
    assert [r.entry.state for r in results] == ["done"]
    assert "slow starts at step 2" in (tmp_path / "runs/slow/log.txt").read_text()


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the fake commands, which is first on PATH."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scancel": "#!/bin/sh\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return commands


def test_ready_jobs_are_submitted_as_one_slurm_array(tmp_path: Path, fake_slurm: Path) -> None:
    knobs = {"workers": 7, "time": 30, "cpus": 2, "gpus": 1, "memory": 3.0}
    names = {"partition": "short", "account": "lab", "qos": "low", "constraint": "a100|h100", "exclude": "node[3-4]"}
    made = engine(tmp_path / "study", *JOBS[:2], TROUBLE[2], launcher="slurm", knobs={**knobs, **names})
    assert {r.job.id: r.entry.state for r in made.run()} == {"j0": "done", "j1": "done", "left": "failed"}
    assert (fake_slurm / "arrays").read_text() == "2\n"
    script = next((tmp_path / "study/slurm").glob("*submission*.sh")).read_text()
    wanted = ["array=0-2%3", "time=30", "cpus-per-task=2", "gpus-per-node=1", "mem=3GB", "partition=short"]
    for line in (*wanted, "account=lab", "qos=low", "constraint='a100|h100'", "exclude='node[3-4]'"):
        assert f"#SBATCH --{line}\n" in script


def test_jobs_that_slurm_does_not_accept_now_are_submitted_later(
    tmp_path: Path, fake_slurm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Slurm may limit the number of a user's jobs."""
    monkeypatch.setattr("ablatio_std.launchers.slurm.INTERVAL", 0.5)
    limit = f"""#!/bin/sh
echo call >> {tmp_path}/calls
[ "$(wc -l < {tmp_path}/calls)" != 2 ] || {{ echo "sbatch: error: Job violates policy" >&2; exit 1; }}
"""
    (fake_slurm / "sbatch").write_text(limit + SBATCH.removeprefix("#!/bin/sh\n"))
    made = engine(tmp_path, job("talks", "chat"), *JOBS[:2], launcher="slurm", knobs={"workers": 2})
    assert [r.entry.state for r in made.run()] == ["done"] * 3
    assert "run j1 will be submitted when others have ended" in caplog.text and "Job violates policy" in caplog.text
    assert (tmp_path / "calls").read_text() == "call\n" * 3


@pytest.fixture
def losing_slurm(tmp_path: Path, fake_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that loses the first job that it is given."""
    monkeypatch.setattr("ablatio_std.launchers._slurm_queue.INTERVAL", 0.2)
    (fake_slurm / "queue").touch()
    loses_the_first = SBATCH.replace("  id=", f"  mkdir {tmp_path}/lost 2> /dev/null && continue\n  id=", 1)
    (fake_slurm / "sbatch").write_text(loses_the_first)
    return fake_slurm


def test_a_job_that_slurm_no_longer_lists_is_submitted_again(
    tmp_path: Path, losing_slurm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine(tmp_path / "study", *JOBS[:2], launcher="slurm")
    assert [r.entry.state for r in made.run()] == ["done"] * 2
    assert made.ledger.entries["j0"].attempt == 2
    assert "of run j0 is gone without a result" in caplog.text


def test_no_job_counts_as_lost_while_slurm_gives_no_answer(
    tmp_path: Path, losing_slurm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ablatio_std.launchers.slurm.GRACE", -4)
    (losing_slurm / "squeue").write_text("#!/bin/sh\necho the controller is away >&2; exit 1\n")
    stop = stop_when(lambda made: "the controller is away" in caplog.text and states(made)["j1"] == "done")
    made = engine(tmp_path / "study", *JOBS[:2], launcher="slurm", watcher=stop)
    with pytest.raises(Preempted):
        made.run()
    assert states(made) == {"j0": "preempted", "j1": "done"}
    assert caplog.text.count("the controller is away") == 1


@pytest.mark.parametrize("knob", ["partition", "account", "qos", "constraint", "exclude"])
@pytest.mark.parametrize("name", ["x\ntouch pwned #", "a b", "$(touch pwned)", "'", ";"])
def test_a_name_that_is_a_command_of_the_shell_is_refused(tmp_path: Path, knob: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"launcher\.{knob}: expected a name without spaces and quotes"):
        engine(tmp_path, JOBS[0], launcher="slurm", knobs={knob: name})


@pytest.mark.filterwarnings("ignore:.*DEBUG_.*_log:pytest.PytestUnraisableExceptionWarning")
def test_debug_cluster_runs_jobs_sequentially(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, without changing its signal handlers; submitit leaves log files open, hence the filter."""
    handler = signal.getsignal(signal.SIGTERM)
    made = engine(tmp_path, *JOBS[:2], TROUBLE[0], launcher="slurm", knobs={"cluster": "debug"})
    assert made.launcher.slots == 1
    assert [r.entry.state for r in made.run()] == ["done", "done", "failed"]
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_missing_launcher_library_gives_install_command(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"pip install 'ablatio\[{name}\]'"):
        launchers.build(name, work=fake_work).start()


def test_slurm_launcher_without_slurm_suggests_local_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"srun(.|\n)*launcher.cluster=local"):
        engine(tmp_path / "study", JOBS[0], launcher="slurm").run()
    assert Ledger(tmp_path / "study/ledger.jsonl").read()["j0"].state == "preempted"


@pytest.mark.parametrize(
    ("overrides", "name", "knobs"),
    [
        (["hydra/launcher=ray", "hydra.launcher.num_cpus=2"], "ray", {"num_cpus": 2, "address": None}),
        (["launcher=slurm", "launcher.cluster=local"], "slurm", {"cluster": "local", "time": 240}),
    ],
)
def test_own_launcher_takes_precedence_over_hydra_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], name: str, knobs: dict[str, Any]
) -> None:
    """Plugins such as hydra-ray-launcher register launchers of the same names in Hydra's ConfigStore."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports Hydra's own plugins, which fill the store once per process
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", dict(store.repo))
    store.repo["hydra"] = {**store.repo["hydra"], "launcher": dict(store.repo["hydra"].get("launcher", {}))}
    store.store(group="hydra/launcher", name=name, node={"_target_": "theirs.Launcher", "theirs": 1}, provider="theirs")
    chosen: dict[str, Any] = {}

    def execute(plan: Any, folder: Path, replaced: Any, choice: LauncherChoice, quiet: bool) -> int:
        chosen.update(choice.knobs, name=choice.name)
        return 0

    monkeypatch.setattr("ablatio.api.multirun._execute", execute)
    multirun(["seed=1", f"out={tmp_path}", "table=0", *overrides])
    assert chosen.items() >= {"name": name, **knobs}.items() and "theirs" not in chosen


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["hydra/launcher=basic"], "without a ledger(.|\n)*expected one of pool, ray, slurm(.|\n)*launcher=pool"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], "joblib runs jobs without a ledger(.|\n)*launcher=pool"),
        (["launcher=submitit_local"], "without a ledger(.|\n)*try: launcher=slurm launcher.cluster=local"),
        (["launcher=submitit_slurm"], "without a ledger(.|\n)*try: launcher=slurm$"),
        (["launcher=slurmm"], "did you mean slurm"),
        (["launcher=ray,slurm"], "one of pool, ray, slurm was expected"),
        (["~hydra/launcher"], "one launcher and its knobs were expected"),
        (["hydra/launcher@x=ray"], "one launcher and its knobs were expected"),
        (["launcher.workerz=2"], "did you mean workers"),
        (["launcher=slurm", "launcher.exclude=a[3]"], r"got a\[3\](.|\n)*try: \"launcher.exclude='a\[3\]'\"$"),
        (["launcher=slurm", "launcher.exclude=a,b"], r"got a,b(.|\n)*try: \"launcher.exclude='a,b'\"$"),
        (["launcher.workers=1,2"], "launcher.workers: got 1,2, expected one value$"),
        (["launcher=ray", "launcher.num_cpus=many"], "launcher.num_cpus: expected float, got 'many'"),
    ],
)
def test_what_is_no_launcher_of_a_study_is_refused(said: list[str], words: str) -> None:
    """Hydra's own launchers keep no ledger; the error names those that do."""
    with pytest.raises((ConfigError, UserError), match=words):
        chosen_launcher(said)


def test_one_run_has_no_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "hydra/launcher=ray"]) == 2
    assert "this is one run" in capsys.readouterr().err
