"""Contenders that take turns, each in a process of its own: CPU seconds of a step, and the peak of its memory."""

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
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def contend(make: Callable[..., Step], given: tuple[Any, ...], tiny: tuple[Any, ...], pipe: Connection) -> None:
    """For each request (what the step gave, its CPU seconds, peak MB till now).

    The peak is counted from what the imports and two steps of a tiny model left behind.
    """
    Machine("cpu", "32", 1).prepare(WIDE)  # the same products for all, those of a run of ours
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
    """make(*given) gives the step; make(*tiny) one that only loads what there is to load."""

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
        self.pipe.send(True)
        found, seconds, self.peak = self.pipe.recv()
        self.found.append(found)
        if counts:
            self.seconds.append(seconds)

    def stop(self) -> None:
        self.pipe.send(False)
        self.process.join()

    def faster_than(self, other: "Contender") -> float:
        """The median over the turns of the other's seconds by ours."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def take_turns(contenders: Mapping[str, Contender], turns: int) -> None:
    """Steps to warm up, then one step of each in every turn."""
    for turn in range(WARM_UP + turns):
        for contender in contenders.values():
            contender.step(counts=turn >= WARM_UP)
    for contender in contenders.values():
        contender.stop()
