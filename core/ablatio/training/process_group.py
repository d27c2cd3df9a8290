"""The ranks of a run over torch.distributed: gloo between CPUs, NCCL between GPUs."""

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d

from ablatio.errors import EnvironmentFault, UserError
from ablatio.model.ranks import Ranks
from ablatio.storage.state_json import decode_state, encode_state
from ablatio.training.rank_environment import STORE_OF_SUPERVISOR, Place

T = TypeVar("T")
_joined = itertools.count()  # several runs of one process use one store
GRACE = 3.0  # seconds in which the ranks that wait for a lost one tell the others so


class PeerLost(EnvironmentFault):
    """Another rank of the run ended or does not answer; that one knows why."""

    exit_code = 76


@dataclass(frozen=True, slots=True)
class Group:
    """The open process group: the store that the ranks share, and the seconds after which a rank counts as lost."""

    store: Any
    timeout: float


class ProcessRanks(Ranks):
    """Ranks of a run in several processes; `device` is where tensors of this rank are.

    splits   what a rank has less of than the whole, a fact of the strategy
    sharing  number of ranks, one after the other, that have the same rows
    """

    def __init__(
        self, place: Place, group: Group, device: torch.device, splits: str = "rows", sharing: int = 1
    ) -> None:
        self.world, self.rank, self.local = place.world, place.rank, place.local
        self.replicas, self.by_row = place.world // sharing, splits != "tokens"
        self._draws_alone = splits == "layers"
        self.group, self.device = group, device

    @property
    def stream(self) -> int:
        """Number of this rank's random numbers: devices that divide the layers draw for other ones."""
        return self.rank if self._draws_alone else self.replica

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor of one shape over the groups, without a gradient."""
        summed = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        in_group = self.world // self.replicas
        if in_group == 1:
            return summed
        return summed / in_group if summed.is_floating_point() else summed // in_group

    def gather_rows(self, rows: Tensor, fill: float = 0) -> Tensor:
        """Concatenate the rows of all groups, padded to one width."""
        if self.replicas == 1:
            return rows
        shapes = self._of_groups(torch.tensor([*rows.shape], device=self.device))
        longest = [int(n) for n in torch.stack(shapes).amax(0)]
        padding = [
            n for own, most in zip(reversed(rows.shape), reversed(longest), strict=True) for n in (0, most - own)
        ]
        padded = torch.nn.functional.pad(rows, padding, value=fill) if any(padding) else rows
        counts = [int(shape[0]) for shape in shapes]
        gathered: Tensor = _GatherRows.apply(padded, self, counts)  # type: ignore[no-untyped-call]
        return gathered

    def _gathered(self, value: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which have one shape."""
        found = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(found, value.contiguous())
        return found

    def _of_groups(self, value: Tensor) -> list[Tensor]:
        """The tensors of all groups, which have one shape; in a group all ranks have the same."""
        return self._gathered(value)[:: self.world // self.replicas]

    def agree(self, flag: bool) -> bool:
        """True if the flag is True on any rank."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)

    def told(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes, on all ranks."""
        text = json.dumps(make()).encode() if self.first else b""
        said: T = json.loads(self._bytes_of(text, 0))
        return said

    def _bytes_of(self, own: bytes, source: int) -> bytes:
        """The bytes of rank `source`, on all ranks."""
        length = torch.tensor(len(own), device=self.device)
        dist.broadcast(length, source)
        data = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == source and own:
            data.copy_(torch.frombuffer(bytearray(own), dtype=torch.uint8))
        dist.broadcast(data, source)
        return bytes(data.cpu().numpy().tobytes())

    def collected(self, state: Any) -> list[Any]:
        """Return the states of all ranks on rank 0, those of others in the memory of the host."""
        structure, tensors = encode_state(state)
        found = [state] if self.first else []
        for source in range(1, self.world):
            said = json.loads(self._bytes_of(json.dumps(structure).encode(), source))
            layout = [[name, [*t.shape], str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()]
            layout = json.loads(self._bytes_of(json.dumps(layout).encode(), source))
            if self.rank == source:
                for tensor in tensors.values():
                    dist.send(tensor.detach().to(self.device).contiguous(), 0)
            elif self.first:
                received = {}
                for name, shape, dtype in layout:
                    tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                    dist.recv(tensor, source)
                    received[name] = tensor.cpu()
                found.append(decode_state(said, received))
        return found

    def wait(self) -> None:
        """Return when all ranks have come here."""
        self.total(torch.zeros(1, device=self.device))


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all groups; backward: number of groups * the gradient of the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: ProcessRanks, counts: list[int]) -> Tensor:
        ctx.groups, ctx.first, ctx.count = ranks.replicas, sum(counts[: ranks.replica]), counts[ranks.replica]
        missing = max(counts) - len(rows)  # all_gather needs equal shapes
        padded = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
        pieces = ranks._of_groups(padded.detach())
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.first : ctx.first + ctx.count] * ctx.groups, None, None


@contextmanager
def joined(
    place: Place, device: torch.device, timeout: float, splits: str = "rows", sharing: int = 1
) -> Iterator[ProcessRanks]:
    """Join the ranks of the run and leave them at the end.

    timeout  seconds after which a rank that does not come, or does not answer, counts as lost
    splits, sharing  as for ProcessRanks

    Raises EnvironmentFault if the port is taken or ranks do not come in time: it names them.
    """
    group = Group(PrefixStore(f"run{next(_joined)}", _store(place, timeout)), timeout)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=group.store, rank=place.rank, world_size=place.world, timeout=timedelta(seconds=timeout)
    )
    try:
        with _new_groups_wait(timeout), _peers_named(place, group):
            yield ProcessRanks(place, group, device, splits, sharing)
    finally:
        dist.destroy_process_group()


@contextmanager
def _new_groups_wait(timeout: float) -> Iterator[None]:
    """Give the run's time-out to groups that libraries make inside, such as DeepSpeed's and those of a mesh.

    torch has no setting for it: without one in the call, which is theirs, a group waits for half an hour.
    """
    names = ("default_pg_timeout", "default_pg_nccl_timeout")
    old = {name: getattr(distributed_c10d, name) for name in names}
    try:
        for name in names:
            setattr(distributed_c10d, name, timedelta(seconds=timeout))
        yield
    finally:
        for name, value in old.items():
            setattr(distributed_c10d, name, value)


def _store(place: Place, timeout: float) -> Any:
    """Connect to the store of the run, and wait until all ranks are there."""
    where = f"{place.address}:{place.port}"
    hosts = place.rank == 0 and not os.environ.get(STORE_OF_SUPERVISOR)
    try:
        store = TCPStore(
            place.address, place.port, place.world, hosts, timedelta(seconds=timeout), wait_for_workers=False
        )
    except RuntimeError as error:
        if hosts:
            why = _first_line(error).rpartition("message: ")[2]
            raise EnvironmentFault(
                f"rank 0 cannot listen at {where}: {why}\n    try: MASTER_PORT={_free_port()}, on every machine"
            ) from None
        raise EnvironmentFault(
            f"rank {place.rank} cannot reach rank 0 at {where} within {timeout:g} s\n"
            "    try: check MASTER_ADDR and the firewall, or a longer trainer.timeout"
        ) from None
    names = [f"here/{rank}" for rank in range(place.world)]
    store.set(names[place.rank], "yes")
    try:
        store.wait(names, timedelta(seconds=timeout))
    except RuntimeError:
        missing = [rank for rank, name in enumerate(names) if not store.check([name])]
        raise EnvironmentFault(
            f"{_named(missing)} of {place.world} did not come to {where} within {timeout:g} s\n"
            "    try: look at the output of that process, or a longer trainer.timeout"
        ) from None
    return store


@contextmanager
def _peers_named(place: Place, group: Group) -> Iterator[None]:
    """Turn an error of a collective into PeerLost, which names the ranks that did not take part."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        text = str(error)
        if not any(sign in text for sign in ("onnection", "imed out", "imeout", "recv", "NCCL")):
            raise
        raise PeerLost(_lost(place, group, text)) from None


def _lost(place: Place, group: Group, text: str) -> str:
    """Say which ranks do not report that they wait for another one."""
    names = [f"waits/{rank}" for rank in range(place.world)]
    try:
        group.store.set(names[place.rank], "yes")
        end = time.monotonic() + GRACE
        while time.monotonic() < end and sum(group.store.check([name]) for name in names) < place.world - 1:
            time.sleep(0.1)
        missing = [rank for rank, name in enumerate(names) if not group.store.check([name])]
    except RuntimeError:  # the store has ended with its rank
        missing = []
    who = _named(missing) if missing else "another rank"
    return f"rank {place.rank} lost {who}, which ended or did not answer for {group.timeout:g} s ({_first_line(text)})"


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _first_line(error: Any) -> str:
    return str(error).strip().split("\n")[0][:200]


def refuse_mismatch(place: Place, trainer: Mapping[str, Any]) -> None:
    """Raise UserError if the number of ranks that were started is not that of the config."""
    wanted = int(trainer["devices"]) * int(trainer["nodes"])
    if place.world != wanted:
        raise UserError(
            f"WORLD_SIZE={place.world} ranks were started, and trainer.devices * trainer.nodes = {wanted}\n"
            f"    try: trainer.devices={place.world // int(trainer['nodes']) or 1}, or unset RANK"
        )
