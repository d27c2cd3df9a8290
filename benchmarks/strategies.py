"""Two ranks on CPU cores against one device, for each strategy: CPU time, bytes sent and memory of a rank.

    python benchmarks/strategies.py [--turns 3] [--steps 2] [--only NAME ...] [--json FILE]

A step is forward, loss, backward, gradient norm and fused AdamW on 16 rows of 128 random ids; width 256, 6 layers,
4 heads, tied embeddings.  One device and the pairs of ranks wait in processes of one thread and take turns (A B A B).

cpu     median over the turns of a rank's CPU time (mean of both) / one device's in the same turn
sent    bytes that a rank sends in a step, counted by TCP, / formula
memory  peak of a rank in its steps, above the process before the model was built, / formula of the strategy
idle    of a pipeline: share of the passes of a step in which a stage does not compute (mean of both) / formula
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing as mp
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _traffic import Model, collectives, with_whole_sums
from _turns import status_kb

SIZES = {"d_model": 256, "n_layers": 6, "n_heads": 4, "max_len": 128}
ROWS, VOCAB, WORLD = 16, 257, 2
BUCKET_MB = 4.0
PARTS: dict[str, dict[str, Any]] = {
    "ddp": {"bucket_mb": BUCKET_MB}, "fsdp": {},
    "zero1": {"bucket_mb": BUCKET_MB}, "zero2": {"bucket_mb": BUCKET_MB}, "zero3": {"bucket_mb": BUCKET_MB},
    "pipeline 1f1b": {"schedule": "1f1b", "microbatches": 8},
    "pipeline gpipe": {"schedule": "gpipe", "microbatches": 8},
    "pipeline of 2": {"schedule": "1f1b", "microbatches": 2},
}  # fmt: skip
# Imported before the processes are forked, so that no library is counted as memory of a strategy.
PRELOADED = [
    "torch", "lightning", "ablatio.model.build", "ablatio.testing.tiny_models", "ablatio_std.strategies.zero",
    "deepspeed", "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
]  # fmt: skip
BYTES_ACKED = 120  # offset in Linux's struct tcp_info: bytes that the other side has received


def bytes_sent() -> int:
    """Bytes that this process has sent over its TCP connections."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                    if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                        total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
    return total


def rank_main(pipe: Connection, name: str | None, rank: int, port: int) -> None:
    """Build a model and take steps whenever the pipe asks for some; name: None for one device."""
    import torch

    from ablatio.model.ranks import Ranks, using
    from ablatio.model.strategy import Strategy
    from ablatio.registry.registry import REGISTRIES
    from ablatio.training.process_group import joined
    from ablatio.training.rank_environment import STORE_OF_SUPERVISOR, Place

    torch.set_num_threads(1)
    if name is None:
        _serve(pipe, Strategy(Ranks()), Ranks())
        return
    part = strategy_of(name)
    splits = REGISTRIES["strategy"][part].facts["splits"]
    place = Place(rank, WORLD, rank, WORLD, "127.0.0.1", port)
    os.environ.update({STORE_OF_SUPERVISOR: "1", **place.to_environment()})
    with joined(place, torch.device("cpu"), 300.0, splits) as ranks, using(ranks):
        _serve(pipe, REGISTRIES["strategy"].build(part, PARTS[name], ranks=ranks), ranks)


def strategy_of(name: str) -> str:
    """The strategy of a row of the table: `pipeline gpipe` is a pipeline."""
    return name.split()[0]


class Busy:
    """Seconds in which the stage of a pipeline computes, and those of whole passes."""

    def __init__(self) -> None:
        self.computing = self.passing = 0.0

    def watch(self) -> None:
        """Measure the passes of all stages of this process from now on."""
        from torch.distributed.pipelining import PipelineStage

        for name in ("forward_one_chunk", "backward_one_chunk"):
            setattr(PipelineStage, name, self._timed(getattr(PipelineStage, name)))

    def _timed(self, compute: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.monotonic()
            try:
                return compute(*args, **kwargs)
            finally:
                self.computing += time.monotonic() - start

        return timed

    @property
    def idle(self) -> float:
        """Share of the passes in which the stage waits."""
        return 1 - self.computing / self.passing if self.passing and self.computing else 0.0


def _serve(pipe: Connection, strategy: Any, ranks: Any) -> None:
    import torch

    from ablatio.model.build import build_model
    from ablatio.model.example import Example
    from ablatio.model.parameter_roles import groups_by_role
    from ablatio.model.strategy import Pass
    from ablatio.registry.registry import REGISTRIES
    from ablatio.testing import tiny_models

    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    before = status_kb("VmRSS")
    net = build_model(tiny_models.config(**SIZES), VOCAB).train()
    strategy.place(Pass(net, lambda model, example: model.loss(example)))
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = strategy.wrap(
        strategy.optimizer(
            lambda groups: REGISTRIES["optimizer"].build("adamw", {}, groups=groups), groups_by_role(net), "entry"
        )
    )
    draws, busy = torch.Generator().manual_seed(0), Busy()
    if hasattr(strategy, "stage"):
        busy.watch()

    def step() -> None:
        ids = torch.randint(VOCAB, (ROWS, SIZES["max_len"] + 1), generator=draws)
        start = time.monotonic()
        loss = strategy.loss(Example(ids[:, :-1], ids[:, 1:]).rows(ranks), True)
        busy.passing += time.monotonic() - start
        strategy.zero_grad(optimizer)
        strategy.backward(loss.total / (ROWS * SIZES["max_len"]), True)
        strategy.gradient_norm(parameters)
        strategy.before_update()
        optimizer.step()
        strategy.after_update()

    step()  # builds state of the optimizer and plans of communication
    trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    pipe.send("ready")
    while (steps := pipe.recv()) is not None:
        sent, cpu, busy.computing, busy.passing = bytes_sent(), time.process_time(), 0.0, 0.0
        for _ in range(steps):
            step()
        cpu = (time.process_time() - cpu) / steps
        ranks.wait()  # what was sent has arrived
        sent, memory = (bytes_sent() - sent) / steps, (status_kb("VmHWM") - before) * 1024
        pipe.send({"cpu": cpu, "sent": sent, "memory": memory, "idle": busy.idle})


@contextlib.contextmanager
def gang(name: str | None) -> Iterator[list[Connection]]:
    """The processes of a strategy, each at the other end of a pipe."""
    from ablatio.training.gang import store_of_supervisor

    context = mp.get_context("forkserver")
    with store_of_supervisor(1) as (_, port, _):
        pairs = [context.Pipe() for _ in range(WORLD if name else 1)]
        processes = [
            context.Process(target=rank_main, args=(theirs, name, rank, port)) for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in processes:
            process.start()
        try:
            yield [ours for ours, _ in pairs]
        finally:
            for process in processes:
                process.kill()
                process.join()


def asked(pipes: list[Connection], steps: int) -> list[dict[str, float]]:
    """Let all ranks of a strategy take steps, and return what each has measured."""
    for pipe in pipes:
        pipe.send(steps)
    return [pipe.recv() for pipe in pipes]


def formulas(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Bytes that a rank sends in a step, its memory and its idle time, for one device (key `one`) and each strategy.

    `zero3` sends them at most: layers that are still whole when they are wanted again are not sent.  A stage of a
    pipeline sends the states of all rows, or their gradients, and its part of the sum of the tied matrix's gradients.
    """
    import torch

    from ablatio.model.build import build_model
    from ablatio.model.cost.memory import memory_of
    from ablatio.model.device_memory import DeviceMemory
    from ablatio.model.strategy import layers_of
    from ablatio.registry.registry import REGISTRIES
    from ablatio.testing import tiny_models
    from ablatio.training.memory_per_device import PlannedRanks

    config = tiny_models.config(**SIZES)
    found = memory_of(config, VOCAB)
    with torch.device("meta"):
        net = build_model(config, VOCAB)
    layers = [sum(p.numel() * 4 for p in layer.parameters()) for layer in layers_of(net)]
    outside = found.weights - sum(layers)
    one = DeviceMemory(
        found.weights, found.gradients, 2 * found.weights, 0, (found.activations or 0) * ROWS, max(layers), outside,
        layers=tuple(layers), rows=ROWS,
    )  # fmt: skip
    sizes = Model(one.weights, outside, len(layers))
    sends = {
        name: sum(each.sent(WORLD) for each in with_whole_sums(collectives(name, sizes, bucket=BUCKET_MB * 2**20)))
        for name in map(strategy_of, names)
        if name != "pipeline"
    }
    states = 4 * ROWS * SIZES["max_len"] * SIZES["d_model"]
    sends["pipeline"] = states * (WORLD - 1) * 2 / WORLD + 4 * VOCAB * SIZES["d_model"]
    wanted: dict[str, dict[str, float]] = {"one": {"sent": 0, "memory": one.total, "idle": 0}}
    for name in names:
        strategy: Any = REGISTRIES["strategy"].build(strategy_of(name), PARTS[name], ranks=PlannedRanks(WORLD))
        count = PARTS[name].get("microbatches", 0)
        wanted[name] = {
            "sent": sends[strategy_of(name)],
            "memory": strategy.memory(one, "entry").total,
            "idle": (WORLD - 1) / (count + WORLD - 1) if count else 0,
        }
    return wanted


def compare(names: Sequence[str], turns: int, steps: int) -> dict[str, Any]:
    """Let one device and the strategies take turns."""
    seen: dict[str, list[list[dict[str, float]]]] = {name: [] for name in ("one", *names)}
    with contextlib.ExitStack() as stack:
        gangs = {name: stack.enter_context(gang(None if name == "one" else name)) for name in seen}
        for pipes in gangs.values():
            for pipe in pipes:
                pipe.recv()
        for _ in range(turns):
            for name, pipes in gangs.items():
                seen[name].append(asked(pipes, steps))
    return {name: _summary(found, seen["one"]) for name, found in seen.items()}


def _summary(found: list[list[dict[str, float]]], one: list[list[dict[str, float]]]) -> dict[str, float]:
    cpus = [statistics.mean(rank["cpu"] for rank in turn) for turn in found]
    return {
        "cpu_seconds": statistics.median(cpus),
        "cpu": statistics.median(cpu / alone[0]["cpu"] for cpu, alone in zip(cpus, one, strict=True)),
        "sent_bytes": statistics.median(statistics.mean(rank["sent"] for rank in turn) for turn in found),
        "memory_bytes": max(rank["memory"] for turn in found for rank in turn),
        "idle": statistics.median(statistics.mean(rank["idle"] for rank in turn) for turn in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="NAME", help="rows of the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCH_CPP_LOG_LEVEL": "ERROR"})
    start, load = time.monotonic(), os.getloadavg()[0]
    mp.set_forkserver_preload(PRELOADED)
    figures, wanted = compare(args.only, args.turns, args.steps), formulas(args.only)
    for name, row in figures.items():
        row |= {f"{what}_formula": value for what, value in wanted[name].items()}
    show(figures)
    if args.json:
        import torch

        about = {
            "torch": torch.__version__, "turns": args.turns, "steps": args.steps, "load": [load, os.getloadavg()[0]],
            "cores": os.cpu_count(), "seconds": round(time.monotonic() - start), **SIZES, "rows": ROWS,
        }  # fmt: skip
        args.json.write_text(json.dumps(about | {"strategies": figures}, indent=1) + "\n", encoding="utf-8")


def show(figures: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table in Markdown."""
    print("| | CPU s / step | / one device | MB sent | / formula | peak MB | / formula | idle | formula |")
    print("|---" * 9 + "|")
    for name, row in figures.items():
        sent = f"{row['sent_bytes'] / row['sent_formula']:.2f}" if row["sent_formula"] else ""
        cells = (
            f"{row['cpu_seconds']:.3f}", f"{row['cpu']:.2f}", f"{row['sent_bytes'] / 1e6:.1f}", sent,
            f"{row['memory_bytes'] / 1e6:.0f}", f"{row['memory_bytes'] / row['memory_formula']:.2f}",
        )  # fmt: skip
        idle = (f"{row['idle']:.2f}", f"{row['idle_formula']:.2f}") if row["idle_formula"] else ("", "")
        print(f"| {name} | {' | '.join((*cells, *idle))} |")


if __name__ == "__main__":
    sys.exit(main())
