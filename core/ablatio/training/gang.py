"""Start the ranks of a run on this machine, watch them, and end them together.

Own code, because torch.distributed's elastic agent loses what a run says by its end: every failure becomes exit code 1,
and a stop signal becomes an exception after at most 30 seconds, although the ranks have written a checkpoint and ended
with 75.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from ablatio.errors import AblatioError, Diverged, EnvironmentFault, Preempted, UserError
from ablatio.registry.parts_file import current as parts_file
from ablatio.storage.process import stop_signals
from ablatio.training.device import Machine
from ablatio.training.process_group import PeerLost
from ablatio.training.rank_environment import STORE_OF_SUPERVISOR, Place, master_address, master_port, node_rank

SETTLE = 5.0  # seconds in which the rank that failed first may end after those that lost it
PATIENCE = 20.0  # seconds between SIGTERM and SIGKILL, when a rank has failed
TICK = 0.05


class RankFailed(AblatioError):
    """A rank ended by an error of the code, whose traceback is in its output."""

    exit_code = 1


ERRORS: dict[int, type[AblatioError]] = {e.exit_code: e for e in (UserError, Diverged, EnvironmentFault, Preempted)}


def train_on_ranks(config: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    """Start the ranks of this machine with `request` (see rank_process) and wait for their end.

    Raises what the first rank that failed has raised.
    """
    trainer = config["trainer"]
    devices, nodes = int(trainer["devices"]), int(trainer["nodes"])
    if Machine.choose(trainer).device == "cuda" and devices > torch.cuda.device_count():
        raise EnvironmentFault(
            f"trainer.devices={devices}, and this process sees {torch.cuda.device_count()} GPUs\n"
            f"    try: trainer.devices={torch.cuda.device_count()}, or a launcher that gives a run more of them"
        )
    with (
        tempfile.TemporaryDirectory(prefix="ablatio-ranks-") as place,
        store_of_supervisor(nodes) as (address, port, ours),
    ):
        first = node_rank(nodes) * devices
        ranks = [Place(first + i, nodes * devices, i, devices, address, port) for i in range(devices)]
        file = parts_file()
        words = json.dumps({**request, "parts": {"path": file.path, "text": file.text} if file else None})
        gang = Gang(ranks, words, Path(place), ours)
        with gang.forwarding_signals():
            code, message = gang.wait()
    if code:
        raise ERRORS.get(code, RankFailed)(message)


@contextmanager
def store_of_supervisor(nodes: int) -> Iterator[tuple[str, int, bool]]:
    """Address and port of the store, and whether this process holds it: it outlives every rank, and no port is raced.

    With several machines, rank 0 holds it at MASTER_ADDR:MASTER_PORT.
    """
    if nodes == 1:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        yield "127.0.0.1", store.port, True
        del store
        return
    address = master_address()
    if not address:
        raise UserError(
            f"trainer.nodes={nodes}: the machines find each other at MASTER_ADDR, which is not set\n"
            "    try: MASTER_ADDR=HOST MASTER_PORT=29500 NODE_RANK=0 ablatio train ..., with NODE_RANK=1 on the second"
        )
    yield address, master_port(), False


class Gang:
    """The processes of the ranks on this machine.

    folder  where each writes rank<n>.json when it fails, and all but rank 0 their output
    """

    def __init__(self, ranks: Sequence[Place], request: str, folder: Path, holds_store: bool) -> None:
        self.folder, self.ranks = folder, ranks
        self.stopping: signal.Signals | None = None  # the first stop signal
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # its warnings are advice to programmers
        environment = quiet | os.environ | ({STORE_OF_SUPERVISOR: "1"} if holds_store else {})
        self.processes = [self._start(place, request, environment) for place in ranks]

    def _start(self, place: Place, request: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        log = None if place.local == 0 else (self.folder / f"log.rank{place.rank}.txt").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "ablatio.training.rank_process", str(self.folder / f"rank{place.rank}.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**environment, **place.to_environment()},
            text=True,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which forwards it
        )
        if log:
            log.close()  # the rank has its own
        assert process.stdin is not None
        process.stdin.write(request + "\n")
        process.stdin.flush()  # kept open: the rank ends when it closes, however this process ends
        return process

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Forward stop signals to all ranks, and leave none behind."""
        old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            old = {number: signal.signal(number, self._forward) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            self._end(0.0)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self.stopping == signal.SIGINT == number:  # as with one device: a second Ctrl-C does not wait
            raise KeyboardInterrupt
        if self.stopping is None:  # the ranks are told once: later signals would come while they save and end
            self.stopping = signal.Signals(number)
            self._send(self.stopping)

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Wait for all ranks; returns exit code and message of the first that failed, 0 if all have succeeded."""
        failed: list[int] = []
        while len(failed) < len(self.processes):
            codes = [process.poll() for process in self.processes]
            failed += [i for i, code in enumerate(codes) if code and i not in failed]
            if failed:
                break
            if all(code == 0 for code in codes):
                return 0, ""
            time.sleep(TICK)
        self._settle(failed)
        return self._verdict(failed)

    def _settle(self, failed: list[int]) -> None:
        """Give the rank that failed first time to end too, if another one has noticed it before; then end all."""
        end = time.monotonic() + (PATIENCE if self.stopping else SETTLE)
        while time.monotonic() < end and not all(process.poll() is not None for process in self.processes):
            if any(self._known(i)[0] not in (PeerLost.exit_code, Preempted.exit_code) for i in failed):
                break
            time.sleep(TICK)
            failed += [i for i, p in enumerate(self.processes) if p.poll() and i not in failed]
        self._end(PATIENCE if self.stopping else 2.0)

    def _end(self, patience: float) -> None:
        """End all ranks: SIGTERM, and SIGKILL to those that are still there after `patience` seconds."""
        self._send(signal.SIGTERM)
        end = time.monotonic() + patience
        while time.monotonic() < end and any(process.poll() is None for process in self.processes):
            time.sleep(TICK)
        self._send(signal.SIGKILL)
        for process in self.processes:
            process.wait()
            if process.stdin:
                process.stdin.close()

    def _known(self, index: int) -> tuple[int, str]:
        """Exit code and message of a rank that has ended."""
        process, rank = self.processes[index], self.ranks[index].rank
        try:
            said = json.loads((self.folder / f"rank{rank}.json").read_text(encoding="utf-8"))
            return int(said["code"]), str(said["message"])
        except (OSError, ValueError):
            code = process.returncode
            if self.stopping and code == -self.stopping:  # before the rank had handlers
                return Preempted.exit_code, (
                    f"{self.stopping.name} came before the first step; nothing is lost\n    try: the same command"
                )
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return EnvironmentFault.exit_code, f"rank {rank} was ended by {name}{self._last_words(rank)}"

    def _last_words(self, rank: int) -> str:
        try:
            lines = (self.folder / f"log.rank{rank}.txt").read_text(encoding="utf-8").strip().split("\n")
        except OSError:
            return ""
        return "".join(f"\n    {line}" for line in lines[-3:] if line)

    def _verdict(self, failed: Sequence[int]) -> tuple[int, str]:
        """The cause: the first failure that is not the loss of another rank; a rank that does not answer is named."""
        known = [(i, *self._known(i)) for i in failed]
        causes = [found for found in known if found[1] != PeerLost.exit_code]
        index, code, message = (causes or known)[0]
        name = f"rank {self.ranks[index].rank}"
        if code in (UserError.exit_code, EnvironmentFault.exit_code) and name not in message and self._is_alone(index):
            message = f"{name}: {message}"
        return (EnvironmentFault.exit_code if code == PeerLost.exit_code else code), message

    def _is_alone(self, index: int) -> bool:
        """True if a rank other than the first failed as none of the others did."""
        message = self._known(index)[1]
        return index > 0 and all(self._known(i)[1] != message for i in range(len(self.ranks)) if i != index)
