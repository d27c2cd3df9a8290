"""Kill processes that write checkpoints; run by test_checkpoint_kill.py, prints one JSON line per kill.

    checkpoint_killer.py random FOLDER COUNT    writers that save in an endless loop, each killed at a random time
    checkpoint_killer.py points FOLDER STEP     writers of one step, the k-th killed before its k-th file operation

It imports torch once and forks for each writer, so a kill costs milliseconds.
"""

import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ablatio.storage.checkpoints import Checkpoint, Checkpoints

SIZE = 100_000


def save(saved: Checkpoints, step: int, mark: int = 0) -> None:
    weight = torch.full((SIZE,), float(step))
    state = {"optimizer": {"exp_avg": weight + 1, "exp_avg_sq": weight + 2}, "step": step, "mark": mark}
    saved.save(step, {"weight": weight, "head": weight, "bias": torch.ones(3)}, state)


def is_intact(got: Checkpoint) -> bool:
    optimizer = got.state["optimizer"]
    tensors = [got.model["weight"], got.model["head"], optimizer["exp_avg"] - 1, optimizer["exp_avg_sq"] - 2]
    return got.state["step"] == got.step and all(bool((tensor == got.step).all()) for tensor in tensors)


def fork(work: Callable[[], Any]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def kill_at_random(folder: Path, count: int) -> None:
    saved = Checkpoints(folder, run="killed")
    save(saved, 0)
    begun = time.perf_counter()
    save(saved, 0)
    once = time.perf_counter() - begun
    for _ in range(count):
        read, write = os.pipe()

        def write_on(pipe: int = write) -> None:
            mine = Checkpoints(folder, run="killed")
            begin = mine.load().step
            os.write(pipe, b"%d\n" % begin)
            for step in itertools.count(begin + 1):
                save(mine, step)
                os.write(pipe, b"%d\n" % step)

        child = fork(write_on)
        os.close(write)
        seen = os.read(read, 100)  # wait until the child has started
        time.sleep(random.uniform(0, 3 * once))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 100_000):
            seen += more
        os.close(read)
        report(int(seen.split()[-1]), saved)


def kill_at_points(folder: Path, step: int) -> None:
    """Save `step` into a folder with steps 1 and 2, killed before each write, sync, rename and removal in turn."""
    for point in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        saved = Checkpoints(folder, run="killed")
        save(saved, 1)
        save(saved, 2)

        def die(left: int = point) -> None:
            calls = itertools.count(1)

            def before(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **options: Any) -> Any:
                    if next(calls) == left:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args, **options)

                return call

            class Slow(io.FileIO):
                write = before(io.FileIO.write)

            opened = Path.open
            Path.open = lambda path, mode="r": (Slow if mode == "xb" else opened)(path, mode)  # type: ignore
            os.fsync, Path.replace, Path.unlink = before(os.fsync), before(Path.replace), before(Path.unlink)  # type: ignore
            save(Checkpoints(folder, run="killed"), step, mark=1)

        _, status = os.waitpid(fork(die), 0)
        report(2, saved, point=point)
        save(saved, 4)
        left = len(list(folder.iterdir()))
        print(json.dumps({"next": saved.load().step, "steps": saved.steps(), "files": left}))
        if status != signal.SIGKILL:  # the writer finished: all its file operations were tried
            sys.exit(os.waitstatus_to_exitcode(status))


def report(committed: int, saved: Checkpoints, **more: int) -> None:
    got = saved.load()
    line = {"committed": committed, "loaded": got.step, "mark": got.state["mark"], "skipped": got.skipped}
    print(json.dumps({**line, "right": is_intact(got), **more}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    random.seed(0)
    kind, where, number = sys.argv[1:]
    {"random": kill_at_random, "points": kill_at_points}[kind](Path(where), int(number))
