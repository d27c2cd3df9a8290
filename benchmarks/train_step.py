"""Speed and peak memory of one training step, ours and peers' on identical work.

    python benchmarks/train_step.py [--vocab 4096 50304] [--compile] [--repeats 9] [--json FILE]

A step is forward, loss on all tokens, backward, clipping to norm 1 and fused AdamW.  Time is the CPU time of the
process on one thread, which other work on the machine changes little; the contenders take turns (A B C A B C ...), each
in its own process, and a ratio is the median over the turns of theirs / ours.  Peak memory is relative to the process's
memory after the imports: weights, gradients, optimizer state, activations.
"""

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peers import FAMILIES, Maker, NotInstalled, Shape, compile_blocks
from rich.console import Console
from rich.table import Table
from torch import nn

Step = Callable[[], None]
TOKENS = ((8, 128), (4, 256))
OURS = "ablatio"
WARM_UP = 3


def make_step(maker: Maker, shape: Shape, compiled: bool = False) -> tuple[Step, int]:
    """Build a model and return (a training step on the next batch, number of parameters)."""
    torch.manual_seed(0)
    model, loss = maker(shape)
    model.train()
    if compiled:
        compile_blocks(model)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.95), fused=True)
    batches = torch.Generator().manual_seed(1)

    def step() -> None:
        rows = torch.randint(shape.vocab, (shape.batch, shape.length + 1), generator=batches)
        loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in parameters)


# Each contender has its own process, as a training run has, and does one step for each request: in one process a
# contender would profit from memory that another one has already got from the system.


def status_kb(key: str) -> int:
    """Value of `key` in /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def contend(family: str, name: str, shape: Shape, compiled: bool, pipe: Connection) -> None:
    """Send the number of parameters, None if not installed; then for each request (CPU seconds of a step, peak MB).

    The peak is relative to the memory after the imports and a step of a tiny model of the same kind.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        make_step(FAMILIES[family][name], Shape(16, 1, 16))[0]()
    except NotInstalled:
        pipe.send(None)
        return
    gc.collect()
    before = status_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    step, parameters = make_step(FAMILIES[family][name], shape, compiled)
    pipe.send(parameters)
    while pipe.recv():
        start = time.process_time()
        step()
        pipe.send((time.process_time() - start, (status_kb("VmHWM") - before) / 1024))


class Contender:
    """A contender in its own process: number of parameters, CPU seconds of its steps, peak memory in MB."""

    def __init__(self, family: str, name: str, shape: Shape, compiled: bool = False) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=contend, args=(family, name, shape, compiled, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.parameters: int | None = self.pipe.recv()
        self.seconds: list[float] = []
        self.peak = 0.0

    def step(self) -> None:
        self.pipe.send(True)
        seconds, self.peak = self.pipe.recv()
        self.seconds.append(seconds)

    def stop(self) -> None:
        if self.parameters is not None:
            self.pipe.send(False)
        self.process.join()


def take_turns(family: str, shape: Shape, with_compile: bool, repeats: int) -> dict[str, Contender]:
    """Measure all contenders of a family: WARM_UP steps of each, then one step in every turn."""
    each = {name: Contender(family, name, shape) for name in FAMILIES[family]}
    if with_compile:
        found = [name for name in each if each[name].parameters is not None]
        each |= {f"{name}, compiled": Contender(family, name, shape, compiled=True) for name in found}
    racing = [c for c in each.values() if c.parameters is not None]
    for turn in range(WARM_UP + repeats):
        for contender in racing:
            contender.step()
            if turn < WARM_UP:
                contender.seconds.clear()
    for contender in each.values():
        contender.stop()
    return each


Row = dict[str, Any]


def compare(family: str, shape: Shape, args: argparse.Namespace) -> list[Row]:
    """Measure a family; return a row for each contender: tokens/s, ratio to ours, peak memory, ratio of ours to it."""
    each = take_turns(family, shape, args.compile, args.repeats)
    rows: list[Row] = []
    for name, contender in each.items():
        row: Row = {"family": family, "name": name, "vocab": shape.vocab, "batch": shape.batch, "length": shape.length}
        rows.append(row)
        row["parameters"] = contender.parameters
        if contender.parameters is None:
            continue
        row["tokens_per_second"] = shape.batch * shape.length / statistics.median(contender.seconds)
        row["speed"] = [against(contender, each[ours]) for ours in (OURS, f"{OURS}, compiled") if ours in each]
        row |= {"peak_mb": contender.peak, "memory": each[OURS].peak / contender.peak}
    return rows


def against(theirs: Contender, ours: Contender) -> float:
    """Median over the turns of theirs / ours."""
    return statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True))


def show(rows: list[Row], title: str, console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title=title, title_justify="left")
    compiled = max(len(row.get("speed", [])) for row in rows) > 1
    heads = ["", "parameters", "tokens/s", "ours is faster by"] + ["ours compiled, by"] * compiled
    for head in [*heads, "peak MB", "ours takes"]:
        table.add_column(head, justify="right" if head else "left")
    for row in rows:
        if row["parameters"] is None:
            table.add_row(row["name"], "not installed")
            continue
        numbers = [f"{row['parameters'] / 1e6:.2f} M", f"{row['tokens_per_second']:.0f}"]
        numbers += [f"{ratio:.2f}x" for ratio in row["speed"]]
        table.add_row(row["name"], *numbers, f"{row['peak_mb']:.0f}", f"{row['memory']:.2f}x")
    console.print(table)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 50304])
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--length", type=int, nargs="+", default=[128, 256], choices=[length for _, length in TOKENS])
    parser.add_argument("--compile", action="store_true", help="measure all with torch.compile on each layer as well")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Measure the chosen families and sizes, print the tables, and write the JSON file."""
    args, console = arguments(), Console(width=110)
    everything: list[Row] = []
    torch.set_num_threads(1)
    console.print(f"torch {torch.__version__}, {platform.machine()}, one thread, {args.repeats} turns")
    for vocab in args.vocab:
        for batch, length in TOKENS:
            for family in args.family if length in args.length else ():
                rows = compare(family, Shape(vocab, batch, length), args)
                show(rows, f"{family}, vocabulary {vocab}, {batch} x {length} tokens", console)
                everything += rows
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": everything}, indent=1))


if __name__ == "__main__":
    main()
