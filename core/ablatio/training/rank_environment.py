"""Place of this process among the ranks of a run, as torchrun, srun or our supervisor write it into the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablatio.errors import UserError

STORE_OF_SUPERVISOR = "TORCHELASTIC_USE_AGENT_STORE"  # set if the process that started the ranks holds their store


DEFAULT_PORT = 29500  # that of torchrun
FIRST_PORT, PORTS = 15000, 15000  # those of Slurm's steps: below the ports that systems give to clients


@dataclass(frozen=True, slots=True)
class Place:
    """rank of world, local rank of local_world on this machine, address and port of the store of rank 0."""

    rank: int
    world: int
    local: int
    local_world: int
    address: str
    port: int

    def to_environment(self) -> dict[str, str]:
        """The variables that torch and `from_environment` read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local),
            "LOCAL_WORLD_SIZE": str(self.local_world),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def from_environment() -> Place | None:
    """The place of this process; None if RANK is not set, or WORLD_SIZE is 1.

    Raises UserError for values that are no numbers or contradict each other.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        return None
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    local, local_world = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world)
    if not (0 <= rank < world and 0 <= local < local_world):
        raise UserError(
            f"RANK={rank} WORLD_SIZE={world} LOCAL_RANK={local} LOCAL_WORLD_SIZE={local_world}: a rank is less than "
            "its world\n    try: unset RANK WORLD_SIZE, or torchrun --nproc-per-node 2 -m ablatio train ..."
        )
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    return Place(rank, world, local, local_world, address, _number("MASTER_PORT", DEFAULT_PORT))


def join_slurm_step(trainer: Mapping[str, Any]) -> None:
    """Make the tasks of a Slurm step the ranks of the run, in the environment: `srun --ntasks 8 ablatio train ...`.

    Tasks that are alone on their machine stay supervisors, each of which starts the ranks of its machine, and a step
    may consist of runs of one device each.  Raises UserError if there are several tasks on a machine, but not one for
    each device of the run.
    """
    if "RANK" in os.environ or not several_devices(trainer) or not os.environ.get("SLURM_STEP_NUM_TASKS"):
        return
    world, counts = _number("SLURM_STEP_NUM_TASKS"), _tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    if max(counts) == 1:
        return
    if world != int(trainer["devices"]) * int(trainer["nodes"]):
        raise UserError(
            f"this Slurm step has {world} tasks, {max(counts)} on a machine, and the run has trainer.devices * "
            f"trainer.nodes = {int(trainer['devices']) * int(trainer['nodes'])} devices: expected a task for each\n"
            f"    try: trainer.devices={max(counts)} trainer.nodes={len(counts)}, or srun --ntasks-per-node 1"
        )
    node = _number("SLURM_NODEID", 0)
    local_world = counts[node] if node < len(counts) else max(counts)
    place = Place(
        _number("SLURM_PROCID"), world, _number("SLURM_LOCALID"), local_world, master_address(), master_port()
    )
    os.environ.update(place.to_environment())


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's list of counts: 2(x3),1 -> 2 2 2 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))] or [1]


def master_address() -> str:
    """Machine of rank 0: MASTER_ADDR, or the first one of Slurm's step or job; empty if neither is known."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    return os.environ.get("MASTER_ADDR") or _first_host(nodes)


def master_port() -> int:
    """MASTER_PORT; else 29500, or another for each step of Slurm, since jobs of several users share a machine."""
    job, step = (os.environ.get(f"SLURM_{name}_ID", "") for name in ("JOB", "STEP"))
    if not (job.isdigit() and step.isdigit()):
        return _number("MASTER_PORT", DEFAULT_PORT)
    return _number("MASTER_PORT", FIRST_PORT + (int(job) + int(step)) % PORTS)


def _first_host(nodes: str) -> str:
    """First host of Slurm's list: node[3-5,9],other -> node3."""
    head, bracket, rest = nodes.partition("[")
    return head + rest.split("]")[0].split(",")[0].split("-")[0] if bracket else nodes.split(",")[0]


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{name}={text!r} in the environment: expected a whole number, as torchrun sets it\n    try: unset RANK"
        ) from None


def several_devices(trainer: Mapping[str, Any]) -> bool:
    """True if more than one device trains the run."""
    return int(trainer.get("devices", 1)) * int(trainer.get("nodes", 1)) > 1


def is_first() -> bool:
    """True unless this process is a rank other than 0."""
    place = from_environment()
    return place is None or place.rank == 0


def node_rank(nodes: int) -> int:
    """Number of this machine among those of the run: NODE_RANK, or Slurm's."""
    if nodes == 1:
        return 0
    text = os.environ.get("NODE_RANK") or os.environ.get("SLURM_NODEID") or ""
    if not text.isdigit() or int(text) >= nodes:
        raise UserError(
            f"trainer.nodes={nodes}: NODE_RANK={text or 'not set'}; each machine needs its number, 0 ... {nodes - 1}\n"
            "    try: NODE_RANK=0 ablatio train ..."
        )
    return int(text)
