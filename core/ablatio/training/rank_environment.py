"""Place of this process among the ranks of a run, as torchrun and our supervisor write it into the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablatio.errors import UserError

STORE_OF_SUPERVISOR = "TORCHELASTIC_USE_AGENT_STORE"  # set if the process that started the ranks holds their store


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
    return Place(rank, world, local, local_world, address, _number("MASTER_PORT", 29500))


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
