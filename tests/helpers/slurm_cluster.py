"""A Slurm cluster of one node on this machine: real daemons, without accounting, as on many clusters."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
MinJobAge=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=short Nodes={host} Default=YES MaxTime=60
"""


def is_missing() -> str:
    """Why the cluster cannot be started here; empty if it can."""
    if not all(shutil.which(name) for name in DAEMONS):
        return "no slurmctld or slurmd on this machine"
    return "" if os.geteuid() == 0 else "slurmd starts the jobs of others, as root only"


class SlurmCluster:
    """Running daemons; SLURM_CONF tells Slurm's commands where they are.

    log     what the daemons printed
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        ports = dict(zip(("ctld", "slurmd"), _free_ports(2), strict=True))
        host = socket.gethostname().split(".")[0]
        self.config = folder / "slurm.conf"
        self.config.write_text(CONFIG.format(host=host, folder=folder, **ports), encoding="utf-8")
        self.log = folder / "daemons.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "SlurmCluster":
        with self.log.open("wb") as log:
            for name in DAEMONS:
                command = [name, "-D", "-f", str(self.config)]
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment()))
        deadline = time.monotonic() + 60
        while "idle" not in self.ask("sinfo", "--noheader", "--format=%T"):
            if time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"Slurm did not start:\n{self.log.read_text()}")
            time.sleep(0.2)
        return self

    def __exit__(self, *error: object) -> None:
        self.ask("scancel", "--partition=short")
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=60)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.config)}

    def ask(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False).stdout


def _free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports
