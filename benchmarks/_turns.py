"""Contenders that take turns, each in its own process: CPU seconds of a step, and peak memory."""

import gc
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ablatio.training.device import WIDE, Machine

Step = Callable[[], float]
WARM_UP = 2


def status_kb(key: str) -> int:
    """Value of `key` in /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def contend(make: Callable[..., Step], given: tuple[Any, ...], tiny: tuple[Any, ...], pipe: Connection) -> None:
    """Answer each request by (the step's result, its CPU seconds, peak MB so far).

    The peak is relative to the memory after the imports and two steps of a tiny model.
    """
    Machine("cpu", "32", 1).prepare(WIDE)  # the matrix products of our runs, for all contenders
    warnings.simplefilter("ignore")
    first = make(*tiny)
    first(), first()
    del first
    gc.collect()
    before = status_kb("VmRSS")
    step = make(*given)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    pipe.send(None)
    while pipe.recv():
        start = time.process_time()
        found = step()
        pipe.send((found, time.process_time() - start, (status_kb("VmHWM") - before) / 1024))


@dataclass
class Contender:
    """A contender in its own process: make(*given) makes its step, make(*tiny) a step that loads all libraries.

    found    results of the steps
    seconds  CPU seconds of the counted steps
    peak     peak memory in MB
    """

    make: Callable[..., Step]
    given: tuple[Any, ...]
    tiny: tuple[Any, ...]
    found: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0

    def __post_init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        arguments = (self.make, self.given, self.tiny, theirs)
        self.process = spawn.Process(target=contend, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def step(self, *, counts: bool) -> None:
        """Do one step; its time is recorded if it counts."""
        self.pipe.send(True)
        found, seconds, self.peak = self.pipe.recv()
        self.found.append(found)
        if counts:
            self.seconds.append(seconds)

    def stop(self) -> None:
        """End the process."""
        self.pipe.send(False)
        self.process.join()

    def faster_than(self, other: "Contender") -> float:
        """Median over the turns of the other's seconds / ours."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def take_turns(contenders: Mapping[str, Contender], turns: int) -> None:
    """Do the warm-up steps, then one step of each contender in every turn, and end their processes."""
    for turn in range(WARM_UP + turns):
        for contender in contenders.values():
            contender.step(counts=turn >= WARM_UP)
    for contender in contenders.values():
        contender.stop()
